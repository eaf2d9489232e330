"""Settings of VFlowOpt that a search has found, in a small JSON file."""

import json
from pathlib import Path
from typing import Any

from ivc_jax.methods.base import Method, MethodError

FIELDS = {"layers": int, "ratios": float, "threshold": float, "cell": float, "alpha": float}
_EXCLUDED = ("keep_ratio", "budget")  # what the ratios decide


def read_preset(method: Method) -> None:
    """Fill in the fields of a method that is being made from the file that it names.

    Raises:
        MethodError: no such file, not such a file, or a field that is given beside it.
    """
    path = method.preset
    usual = {name: field.default for name, field in type(method).__dataclass_fields__.items()}
    for name in (*FIELDS, *_EXCLUDED):
        if getattr(method, name) != usual[name]:
            raise MethodError(f"{method.name}: preset and {name} exclude each other; give one")
    for name, value in _read(path).items():
        object.__setattr__(method, name, value)
    # The method is what it says, not where it was written.
    object.__setattr__(method, "preset", None)


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).expanduser().read_text())["fields"]
        return {
            name: tuple(map(kind, content[name]))
            if name in ("layers", "ratios")
            else kind(content[name])
            for name, kind in FIELDS.items()
        }
    except OSError as error:
        raise MethodError(f"preset={path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        message = f"preset={path} is no preset that `ivc-jax vflowopt-search` has written"
        raise MethodError(message) from None
