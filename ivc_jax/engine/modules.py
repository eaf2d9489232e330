"""Modules of methods beside the parameters of a model: found, checked, read once."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import Method, MethodError
from ivc_jax.methods.requests import Parameters, Request, Weights
from ivc_jax.model import Model, find_bundled
from ivc_jax.weights.modules import FILE, CheckpointError, read_module

METHODS = "methods"  # beside "vision" and "decoder"
_BUNDLED = "bundled/"


@flax.struct.dataclass
class Stored(Parameters):
    """Parameters of a module, by name, and what is said of it."""

    arrays: dict[str, jax.Array]
    name: str = flax.struct.field(pytree_node=False, default="")
    # A static part of every program that reads them; a dict would have no hash.
    items: tuple[tuple[str, Any], ...] = flax.struct.field(pytree_node=False, default=())

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the file says of the module."""
        return dict(self.items)

    def __call__(self, like: Any) -> Any:
        """Return the parameters as a tree like this one; see `Parameters`."""
        wanted = {name: leaf.shape for name, leaf in flatten_dict(like, sep="/").items()}
        found = {name: array.shape for name, array in self.arrays.items()}
        wrong = [f"lacks {name} {shape}" for name, shape in wanted.items() if name not in found]
        wrong += [f"has {name}, which nobody reads" for name in found if name not in wanted]
        wrong += [
            f"{name} is {found[name]}, not {shape}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ]
        if wrong:
            raise MethodError(f"weights {self.name} do not fit: {'; '.join(wrong)}")
        return unflatten_dict({name: self.arrays[name] for name in wanted}, sep="/")


def name_model(config: ModelConfig) -> str:
    """Say which model a module is trained for, by its sizes."""
    sizes = config.decoder
    return (
        f"{config.family}, {sizes.num_layers} blocks of width {sizes.hidden_size}, vocabulary"
        f" {sizes.vocab_size}"
    )


def with_modules(model: Model, method: Method) -> dict[str, Any]:
    """Return the parameters of a model, with those of the modules that a method asks for.

    Args:
        method: resolved.

    Raises:
        MethodError: no such file, or it is of another model.
    """
    asked = dict.fromkeys(
        request.name
        for stage in method.stages
        for request in method.requests(stage)
        if isinstance(request, Weights)
    )
    if not asked:
        return model.params
    known = model.params.get(METHODS, {})
    found = {name: known.get(name) or _find(name, model, method.name) for name in asked}
    return {**model.params, METHODS: found}


def answer_modules(params: dict[str, Any], asked: Iterable[Request]) -> dict[Request, Any]:
    """Answer requests for modules from the parameters beside the model's own.

    Raises:
        MethodError: they are not there.
    """
    found: dict[Request, Any] = {}
    for request in asked:
        if isinstance(request, Weights):
            if request.name not in params.get(METHODS, {}):
                raise MethodError(f"weights {request.name!r} are not in params[{METHODS!r}]")
            found[request] = params[METHODS][request.name]
    return found


def _find(name: str, model: Model, method: str) -> Stored:
    """Read the module of a name and refuse that of another model."""
    remedy = f"give {method} weights=FILE, a module trained for this model"
    try:
        path = find_file(name)
        state = path.stat()
        stored = _read(name, path, state.st_mtime_ns, state.st_size, model.mesh)
    except (OSError, CheckpointError) as error:
        reason = f"{error.filename} does not exist" if isinstance(error, OSError) else error
        raise MethodError(f"no weights {name!r} ({reason}); {remedy}") from None
    trained, own = stored.settings.get("model"), name_model(model.config)
    if trained is not None and trained != own:
        raise MethodError(f"weights {name!r} are of {trained}, not {own}; {remedy}")
    return stored


def find_file(name: str) -> Path:
    """Return the file that a name of weights stands for.

    Raises:
        CheckpointError: the bundled model is not installed.
    """
    if name.startswith(_BUNDLED):
        folder = find_bundled().parent / "modules"
        return folder / f"{name.removeprefix(_BUNDLED)}.safetensors"
    path = Path(name).expanduser()
    return path / FILE if path.is_dir() else path


# Named by time and size too: a file that is trained anew is read anew.
@functools.lru_cache(maxsize=4)
def _read(name: str, path: Path, _time: int, _size: int, mesh: Mesh | None) -> Stored:
    tensors, settings = read_module(path)
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh else None
    arrays = {
        key: jax.device_put(jnp.asarray(tensor, jnp.float32), everywhere)
        for key, tensor in tensors.items()
    }
    return Stored(arrays, name, _freeze(settings))


def _freeze(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Make what hashes of what JSON says."""

    def hashable(value: Any) -> Any:
        if isinstance(value, dict):
            return _freeze(value)
        return tuple(map(hashable, value)) if isinstance(value, list) else value

    return tuple((name, hashable(value)) for name, value in sorted(settings.items()))
