"""The fields of methods: what a value may be, and how nested settings are written flat."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ivc_jax import ivc
from ivc_jax.methods.base import MethodError

_T = TypeVar("_T")
_RULE = "rule"  # of nested settings: written as the settings themselves, coordinates=lattice


def require(value: _T | None, name: str, field: str = "layer") -> _T:
    """Return the value of a method's field, or raise MethodError if it still asks the model."""
    if value is None:
        raise MethodError(f"{name}: {field} is not set; give {field}=... or call resolve(config)")
    return value


def check_keep_ratio(keep_ratio: float, name: str = "keep_ratio") -> None:
    """Raise MethodError unless 0 < keep_ratio <= 1."""
    if not 0 < keep_ratio <= 1:
        raise MethodError(f"{name} must be in (0, 1], got {keep_ratio}")


def check_fractions(**fractions: float | None) -> None:
    """Raise MethodError unless every named fraction is in [0, 1]; None is not set yet."""
    try:
        ivc.check_fractions(**{name: x for name, x in fractions.items() if x is not None})
    except ValueError as error:
        raise MethodError(str(error)) from None


def check_not_negative(**values: float | None) -> None:
    """Raise MethodError if a named value is below 0; None is not set yet."""
    for name, value in values.items():
        if value is not None and not value >= 0:
            raise MethodError(f"{name} must not be negative, got {value}")


def check_choice(name: str, value: str | None, known: tuple[str, ...]) -> None:
    """Raise MethodError unless `value` is one of `known`; None is not set yet."""
    if value is not None and value not in known:
        raise MethodError(f"{name} must be one of {known}, got {value!r}")


def check_positions(positions: str | None) -> None:
    """Raise MethodError unless `positions` is "original", "reindex" or None."""
    if positions is not None:
        check_choice("positions", positions, ("original", "reindex"))


def check_merge(merge_in: str | None) -> None:
    """Raise MethodError unless `merge_in` is "tower", "decoder" or None."""
    check_choice("merge_in", merge_in, ("tower", "decoder"))


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise MethodError unless a random generator can take the seed."""
    if not 0 <= seed < 2**31:
        raise MethodError(f"{name} must be in [0, 2**31), got {seed}")


def sort_planes(name: str, planes: Sequence[int], least: int = 0) -> tuple[int, ...]:
    """Sort indices of rotary planes, so that equal sets are equal fields.

    Args:
        least: how many planes there have to be.

    Raises:
        MethodError: something is not an index, or there are too few.
    """
    # A mask of bools would be read as planes 0 and 1.
    whole = all(isinstance(p, int | np.integer) and not isinstance(p, bool) for p in planes)
    if not whole or len(planes) < least or min(planes, default=0) < 0:
        raise MethodError(f"{name} must be plane indices from 0 on, got {tuple(planes)}")
    return tuple(sorted({int(plane) for plane in planes}))


def flat(*names: str) -> Callable[[type[_T]], type[_T]]:
    """Let a method that nests its settings be written flat, in strings and as keywords.

    `IVCPrune(cos_fraction=0.05)` is `IVCPrune(coordinates=Coordinates(cos_fraction=0.05))`: a name
    means one thing in specifications, in records and in code. Their `rule` goes by the name of the
    settings: `coordinates="lattice"` is `coordinates=Coordinates(rule="lattice")`.

    Args:
        names: what a specification may hold, in the order in which it is written. Nested fields
            that are not listed have no meaning for the method; another value than their default
            is refused.
    """

    def decorate(kind: type[_T]) -> type[_T]:
        construct = kind.__init__

        @functools.wraps(construct)
        def init(self: _T, *args: Any, **values: Any) -> None:
            construct(self, *args, **nest(kind, values))
            # `Coordinates(axes="hw")` may be given whole to a method that has no `axes`.
            for name, (owner, field) in _find_nested(kind).items():
                if name not in names and getattr(getattr(self, owner), field.name) != field.default:
                    raise MethodError(f"{self.name} has no field {name!r}")

        kind.__init__, kind.flat_names = init, names
        return kind

    return decorate


def list_fields(kind: type) -> dict[str, dataclasses.Field]:
    """List the fields that a specification of a method may hold, in the order of writing."""
    nested = _find_nested(kind)
    own = {field.name: field for field in dataclasses.fields(kind) if field.name != "host"}
    fields = own | {name: field for name, (_, field) in nested.items()}
    # foreground_rule; not coordinates, which stands for its rule
    without = {owner for owner, _ in nested.values()} - nested.keys()
    names = kind.__dict__.get("flat_names", [name for name in fields if name not in without])
    return {name: fields[name] for name in names}


def nest(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Gather values given under the names of nested fields into the arguments of a method.

    Raises:
        MethodError: settings that cannot be.
    """
    nested, arguments = _find_nested(kind), dict(values)
    inner: dict[str, dict[str, Any]] = {}
    for name in nested.keys() & values.keys():
        owner, field = nested[name]
        if not dataclasses.is_dataclass(values[name]):  # settings may be given whole
            inner.setdefault(owner, {})[field.name] = arguments.pop(name)
    for owner, changes in inner.items():
        # `dataclasses.replace` gives the settings as they are beside the changes.
        settings = arguments.get(owner) or kind.__dataclass_fields__[owner].default
        try:
            arguments[owner] = dataclasses.replace(settings, **changes)
        except ValueError as error:  # of settings that are not a method's alone
            raise MethodError(str(error)) from None
    return arguments


def read_field(method: Any, name: str) -> Any:
    """Return the value of a field that `list_fields` lists."""
    if name not in (nested := _find_nested(type(method))):
        return getattr(method, name)
    owner, field = nested[name]
    return getattr(getattr(method, owner), field.name)


def name_nested(outer: dataclasses.Field, inner: dataclasses.Field) -> str:
    """Return what a specification calls a field of nested settings, which `outer` holds."""
    return outer.name if inner.name == _RULE else inner.name


def _find_nested(kind: type) -> dict[str, tuple[str, dataclasses.Field]]:
    """Map what fields of nested settings are called to the field that holds them, and to them."""
    return {
        name_nested(outer, inner): (outer.name, inner)
        for outer in dataclasses.fields(kind)
        if dataclasses.is_dataclass(outer.type) and outer.name != "host"
        for inner in dataclasses.fields(outer.type)
    }
