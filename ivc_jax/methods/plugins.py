"""Methods that this package does not hold: of other packages, and of a file of one's own.

ivc-jax run --methods dense ./own.py:LongValues:keep_ratio=0.25
ivc-jax run --plugin own.py --methods dense long_values:keep_ratio=0.25 long_values+ivc
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import pathlib
import re
import sys
from types import ModuleType

from ivc_jax import methods  # for its tables, which grow
from ivc_jax.methods.base import Method, MethodError
from ivc_jax.methods.modifier import Modifier
from ivc_jax.nearest import suggest

PLUGINS = "ivc_jax.methods"  # group of entry points, each a name and a Method class
_IN_FILE = re.compile(r"\s*(?P<path>[^:]+\.py)\s*:\s*(?P<kind>\w+)(?P<rest>.*)", re.DOTALL)
_log = logging.getLogger(__name__)


@functools.cache
def load_packages() -> None:
    """Add the methods of other packages to the table; a broken one is logged and left out."""
    for entry in importlib.metadata.entry_points(group=PLUGINS):
        if entry.name in methods.METHODS:
            _log.warning("entry point %s: the name %r is taken", entry.value, entry.name)
            continue
        try:
            method = entry.load()
        except Exception as error:  # whatever a stranger's package raises
            _log.warning("method %r of %s does not load: %s", entry.name, entry.value, error)
            continue
        if not (isinstance(method, type) and issubclass(method, Method)):
            _log.warning("entry point %s is not a Method class", entry.value)
            continue
        methods.METHODS[entry.name] = method


def load_file(path: str | pathlib.Path) -> dict[str, type[Method]]:
    """Add the methods that a Python file defines to the tables.

    A class is known by its `name`, a modifier by its `suffix`, so that specifications, records and
    reports do not hang on where the file lies. Classes whose name begins with "_" are left out.

    Returns:
        The classes, by the name of the class.

    Raises:
        MethodError: the file does not load or defines no method, or a name is taken.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise MethodError(f"{path}: there is no such file")
    load_packages()  # names of packages are taken first
    module = _import_file(path.resolve(), path.stat().st_mtime_ns)
    kinds = {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, Method)
        and kind.__module__ == module.__name__
        and not name.startswith("_")
    }
    if not kinds:
        raise MethodError(f"{path} defines no method: a class of ivc_jax.methods.Method")
    for kind in kinds.values():
        _register(kind, path)
    return kinds


def name_own(spec: str) -> str:
    """Turn "own.py:LongValues..." into "long_values..." and load the file; leave others as is.

    Raises:
        MethodError: as `load_file`, or the file has no such class.
    """
    match = _IN_FILE.fullmatch(spec)
    if match is None:
        return spec
    path, name, rest = match.group("path", "kind", "rest")
    kinds = load_file(path)
    if (kind := kinds.get(name)) is None:
        known = f"{', '.join(kinds)}{suggest(name, kinds)}"
        raise MethodError(f"{path} defines no method {name!r}; it has {known}")
    if issubclass(kind, Modifier):
        raise MethodError(f"{name} changes another method: use --plugin {path} and +{kind.suffix}")
    return f"{kind.name}{rest}"


@functools.cache
def _import_file(path: pathlib.Path, _changed: int) -> ModuleType:
    """Import a file once, and once more after each change of it."""
    # One module a path: two files of one name are two modules, and equal methods stay equal.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"ivc_jax_own_{path.stem}_{digest}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file raises
        del sys.modules[module.__name__]
        raise MethodError(f"{path} does not load: {type(error).__name__}: {error}") from error
    return module


def _register(kind: type[Method], path: pathlib.Path) -> None:
    """Put a class into its table; one of the same file may be replaced."""
    modifier = issubclass(kind, Modifier)
    table, field = (methods.MODIFIERS, "suffix") if modifier else (methods.METHODS, "name")
    name = getattr(kind, field, None)
    where = f"{path}: {kind.__name__}"
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise MethodError(f"{where} needs a {field} of letters, digits and _, got {name!r}")
    parameters = getattr(kind, "__dataclass_params__", None)
    if "__dataclass_params__" not in vars(kind) or not parameters.frozen:
        raise MethodError(f"{where} must be a @dataclasses.dataclass(frozen=True)")
    taken = table.get(name)
    if taken is not None and taken.__module__ != kind.__module__:
        raise MethodError(
            f"{where}: the {field} {name!r} is taken by {taken.__module__}.{taken.__qualname__}; "
            f"set another {field}"
        )
    if taken is not None and taken.__qualname__ != kind.__qualname__:
        raise MethodError(f"{where} and {taken.__qualname__} have one {field}, {name!r}")
    table[name] = kind
