"""List the pruning methods, or explain one: its fields, their defaults, meaning and source.

ivc-jax methods
ivc-jax methods ivc
ivc-jax methods +pore
ivc-jax methods ./own.py:LongValues
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Annotated

import docstring_parser
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ivc_jax import methods
from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import Plugin, load_plugins
from ivc_jax.methods.fields import list_fields, name_nested
from ivc_jax.methods.modifier import Modifier
from ivc_jax.methods.plugins import name_own
from ivc_jax.methods.presets import list_presets
from ivc_jax.nearest import suggest

_HIDDEN = ("host",)  # of a modifier: the method that it changes


@dataclasses.dataclass(frozen=True)
class Arguments:
    """List the pruning methods, or explain one.

    Attributes:
        name: of a method such as ivc, of a modifier such as +pore, or own.py:Class.
        plugin: Python files whose methods are listed and explained too.
        traceback: show where an error came from.
    """

    name: Annotated[tyro.conf.Positional[str | None], option("NAME", "list all")] = None
    plugin: Plugin = None
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} methods") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program)


def list_methods() -> dict[str, str]:
    """Return the first line about every method and modifier, by name."""
    return {name: (kind.__doc__ or "").partition("\n")[0] for name, kind in _find_kinds().items()}


def _find_kinds() -> dict[str, type[methods.Method]]:
    methods.parse("dense")  # methods of other packages join the table with the first parse
    return methods.METHODS | {f"+{name}": kind for name, kind in methods.MODIFIERS.items()}


def _run(arguments: Arguments, _command: str, console: Console) -> None:
    load_plugins(arguments.plugin)
    if arguments.name is None:
        table = Table.grid(padding=(0, 2))
        for name, text in list_methods().items():
            table.add_row(Text(name), Text(text))
        console.print(table)
        return
    name, kinds = name_own(arguments.name), _find_kinds()
    if (kind := kinds.get(name)) is None:
        known = f"{', '.join(kinds)}{suggest(name, kinds)}"
        raise ValueError(f"unknown method {name!r}; known: {known}")
    text = docstring_parser.parse(kind.__doc__ or "")
    console.print(Text(f"{name}: {text.short_description}"))
    if text.long_description:
        console.print(Text(f"\n{text.long_description}\n"))
    table = Table("field", "default", "meaning")
    taken = list_fields(kind)
    for called, field, meaning in _list_fields(kind):
        if called in taken:
            table.add_row(Text(called), Text(_write_default(field)), Text(meaning))
    if table.row_count:
        console.print(table)
    for preset, spec in list_presets().items():
        if preset.partition("@")[0] == name:
            console.print(Text(f"published for LLaVA-1.5: {preset} is {spec}"), soft_wrap=True)
    usage = f"METHOD{name}" if issubclass(kind, Modifier) else name
    console.print(Text(f"usage: --methods {usage}{':FIELD=VALUE,...' * bool(table.row_count)}"))
    module = sys.modules[kind.__module__]
    about = (module.__doc__ or "").strip().partition("\n")[0]
    console.print(Text(f"source: {about or 'no docstring'}\n{module.__file__}"))


def _list_fields(kind: type) -> Iterator[tuple[str, dataclasses.Field, str]]:
    """Yield the fields that a specification takes, nested ones too: name, field and meaning."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):  # from the base down: a class may explain a field anew
        for entry in docstring_parser.parse(base.__doc__ or "").params:
            meanings[entry.arg_name] = " ".join((entry.description or "").split())
    for field in dataclasses.fields(kind):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        # nested: a specification takes its fields as if they were the method's
        if dataclasses.is_dataclass(default):
            for _, inner, meaning in _list_fields(type(default)):
                yield name_nested(field, inner), inner, meaning
        elif field.name not in _HIDDEN:
            yield field.name, field, meanings.get(field.name, "")


def _write_default(field: dataclasses.Field) -> str:
    default = field.default
    if default is dataclasses.MISSING:
        return "needed"
    if isinstance(default, tuple):
        return "/".join(map(str, default))
    return str(default).lower() if isinstance(default, bool | None) else str(default)
