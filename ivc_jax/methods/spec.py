"""Strings that name a method, read and written.

ivc:layer=16,keep_ratio=0.5
fastv+ivc:keep_ratio=0.5,cos_fraction=0.05
ivc:frequencies=0-15/20                          planes 0 to 15, and 20
pyramiddrop:layers=7/14/21,ratios=0.5/0.25/0.125
scope@192                                        as published, see `presets`
./own.py:LongValues:keep_ratio=0.25              a class in a file
"""

import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ivc_jax import methods  # for its tables, which are read when a string is
from ivc_jax.config import Released
from ivc_jax.methods import plugins
from ivc_jax.methods.base import Method, MethodError
from ivc_jax.methods.fields import list_fields, nest, read_field
from ivc_jax.methods.modifier import unwrap
from ivc_jax.methods.presets import list_presets
from ivc_jax.nearest import suggest

_T = TypeVar("_T")
_BOOLS = {"true": True, "false": False}


def parse(spec: str | Method) -> Method:
    """Build a method from `name[+ivc][:field=value,...]`; a method is returned as it is.

    "name@192" is a method as published for LLaVA-1.5 at so many tokens (`presets`).
    A class in a file of one's own is `FILE.py:Class[+ivc][:field=value,...]`. Packages may add
    methods through entry points of the group "ivc_jax.methods". Both are loaded here, once, and
    appear in `METHODS` under their names.

    Raises:
        MethodError: unknown name or field, or a value that the field cannot take.
    """
    if isinstance(spec, Method):
        return spec
    plugins.load_packages()
    if not isinstance(spec, str):
        raise MethodError(f"a method is named by a string, got {type(spec).__name__}")
    spec = plugins.name_own(spec)
    names, colon, assignments = spec.partition(":")
    name, *modifiers = (part.strip() for part in names.split("+"))
    preset = {}
    if "@" in name and name not in methods.METHODS:
        name, _, fields = _look_up(list_presets(), "preset", name).partition(":")
        preset = dict(field.split("=") for field in fields.split(","))
    kinds = [_look_up(methods.METHODS, "method", name)]
    kinds += [_look_up(methods.MODIFIERS, "modifier", modifier) for modifier in modifiers]
    values: list[dict[str, Any]] = [{} for _ in kinds]
    known = [list_fields(kind) for kind in kinds]
    for assignment in assignments.split(",") if colon else ():
        field, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise MethodError(f"{spec!r}: expected field=value, got {assignment!r}")
        # The first of method and modifiers that has such a field.
        owner = next((i for i, fields in enumerate(known) if field in fields), None)
        if owner is None:
            # The modifiers' own fields come first.
            listed = [name for fields in reversed(known) for name in sorted(fields)]
            raise MethodError(
                f"{names.strip()} has no field {field!r}{suggest(field, listed) or ';'} "
                f"known fields: {', '.join(listed) or 'none'}"
            )
        if field in values[owner]:
            raise MethodError(f"{spec!r}: {field} is given twice")
        values[owner][field] = _read(field, text, known[owner][field].type)
    for field, text in preset.items():
        values[0].setdefault(field, _read(field, text, known[0][field].type))
    # From the inside out: fastv+pore+ivc is ivc around pore around fastv.
    method = kinds[0](**nest(kinds[0], values[0]))
    for kind, given in zip(kinds[1:], values[1:], strict=True):
        method = kind(host=method, **nest(kind, given))
    return method


def describe(method: Method, released: Released | None = None) -> str:
    """Write a method as the string that `parse` reads back to an equal one.

    It holds keep_ratio and every field that differs from its default, in the order of
    `fields.list_fields`: one method has one string, which serves as its key in records.

    Args:
        method: to write.
        released: of the model that the method was resolved against; what it fills in is left out,
            the layer excepted.
    """
    usual = vars(released) | {"layer": None} if released else {}
    parts = []
    for layer in reversed(unwrap(method)):
        for name, field in list_fields(type(layer)).items():
            value = read_field(layer, name)
            said = (field.default, usual.get(name, field.default))
            if value is not None if name == "keep_ratio" else value not in said:
                parts.append(f"{name}={_write(value, field.type)}")
    return ":".join([method.name, ",".join(parts)]) if parts else method.name


def _look_up(table: Mapping[str, _T], role: str, name: str) -> _T:
    if name not in table:
        hint = suggest(name, table) or ";"
        raise MethodError(f"unknown {role} {name!r}{hint} known {role}s: {', '.join(table)}")
    return table[name]


def _list_choices(annotation: Any) -> tuple[Any, ...]:
    """List the types that a field takes."""
    union = isinstance(annotation, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _read(field: str, text: str, annotation: Any) -> Any:
    """Read a value as the first type of the annotation that it fits; text comes last."""
    choices = _list_choices(annotation)
    # Any text would do as a string, so that this is tried last.
    for choice in sorted(choices, key=lambda choice: choice is str):
        try:
            if choice is types.NoneType and text.lower() == "none":
                return None
            if choice is bool and text.lower() in _BOOLS:
                return _BOOLS[text.lower()]
            if typing.get_origin(choice) is tuple and float in typing.get_args(choice):
                return tuple(float(part) for part in text.split("/"))
            if typing.get_origin(choice) is tuple:
                return _read_planes(text)
            if choice in (int, float, str) and text:
                return choice(text)
        except ValueError:
            continue
    names = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    value, _, modifier = text.partition("+")
    known = modifier in methods.MODIFIERS
    remedy = f"; modifiers stand before the colon: NAME+{modifier}:{field}={value}" if known else ""
    raise MethodError(f"{field}={text!r} is not {names.replace('NoneType', 'none')}{remedy}")


def _write(value: Any, annotation: Any) -> str:
    if isinstance(value, tuple) and any(isinstance(part, float) for part in value):
        return "/".join(map(repr, value))
    if isinstance(value, tuple):
        return _write_planes(value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    # An int in a float field reads back as a float, so it is written as one.
    return repr(float(value)) if float in _list_choices(annotation) else str(value)


def _read_planes(text: str) -> tuple[int, ...]:
    """Read "0-3/8" as (0, 1, 2, 3, 8)."""
    planes: list[int] = []
    for run in text.split("/"):
        first, _, last = run.partition("-")
        planes += range(int(first), int(last or first) + 1)
    return tuple(planes)


def _write_planes(planes: tuple[int, ...]) -> str:
    """Write (0, 1, 2, 3, 8) as "0-3/8"."""
    runs: list[list[int]] = []
    for plane in planes:
        if runs and plane == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], plane]
        else:
            runs.append([plane])
    return "/".join("-".join(map(str, run)) for run in runs)
