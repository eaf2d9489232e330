"""Measure speed and memory on this machine, beside torch where it is installed.

    ivc-jax bench                     everything, half an hour on two CPU cores
    ivc-jax bench prefill decode
    ivc-jax bench --quick             tiny shapes: does it run?

Each question is a script of its own (`benchmarks/` in a checkout) and runs in a process of its own.
It writes one JSON record; the table shows medians of ours and of torch, measured in turns, their
ratio, and the share of the machine's own limit that ours reaches.
"""

import ast
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.nearest import suggest

BENCHMARKS = (
    *("prefill", "decode", "tower", "throughput"),
    *("memory", "loading", "selection_cost", "scaling"),
)
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_COMPARED = ("torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure speed and memory on this machine, beside torch where it is installed.

    Attributes:
        names: of benchmarks; all of them if none is named.
        quick: tiny shapes, to see that everything runs.
        size: width of the models.
        dtype: what to compute in.
        out: folder of the records.
        traceback: show where an error came from.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, option("NAME ...")] = ()
    quick: bool = False
    size: Annotated[str | None, option("tiny|2b|7b", "2b")] = None
    dtype: Annotated[str | None, option("NAME", "float32 on CPU, else bfloat16")] = None
    out: Annotated[str, option("DIR")] = "runs/bench"
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} bench") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program)


def list_benchmarks() -> dict[str, str]:
    """List the benchmarks: the question that each asks, by name."""
    paths = {name: _find_scripts() / f"{name}.py" for name in BENCHMARKS}
    docs = {name: ast.get_docstring(ast.parse(path.read_text())) for name, path in paths.items()}
    return {name: (doc or "").partition("\n")[0] for name, doc in docs.items()}


def _run(arguments: Arguments, _command: str, console: Console) -> None:
    names = arguments.names or BENCHMARKS
    for name in names:
        if name not in BENCHMARKS:
            known = ", ".join(BENCHMARKS)
            hint = suggest(name, BENCHMARKS)
            raise ValueError(f"unknown benchmark {name!r}; known: {known}{hint}")
    alone = not all(importlib.util.find_spec(library) for library in _COMPARED)
    if alone:
        console.print("torch and transformers are not installed: this package is measured alone")
    options = ["--out", str(pathlib.Path(arguments.out).resolve())]
    options += ["--quick"] if arguments.quick else []
    options += ["--alone"] if alone else []
    for field in ("size", "dtype"):
        value = getattr(arguments, field)
        options += [f"--{field}", value] if value else []
    failed = []
    for name in names:
        record = _measure(name, options, console)
        if record is None:
            failed.append(name)
        else:
            console.print(_make_table(record))
    if failed:
        raise ValueError(f"no record of {', '.join(failed)}: see what is printed above")


def _measure(name: str, options: list[str], console: Console) -> dict[str, Any] | None:
    """Run one script; return its record, None if it failed."""
    console.print(f"{name}: {list_benchmarks()[name]}", highlight=False)
    paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-u", str(_find_scripts() / f"{name}.py"), *options]
    path = ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            console.print(f"  {line.rstrip()}", markup=False, highlight=False)
            path = line.removeprefix("wrote ").strip() if line.startswith("wrote ") else path
    return json.loads(pathlib.Path(path).read_text()) if not process.returncode and path else None


def _make_table(record: dict[str, Any]) -> Table:
    """Lay out the rows of a record."""
    device = f"{record['device']}, {record['cpu_count']} cores, {record['dtype']}"
    table = Table(title=f"{record['benchmark']} on {device}, {record['commit']}")
    table.add_column("what")
    for name in ("ours", "torch", "ratio", "of the limit"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        share = row.get("of_limit")
        table.add_row(
            row["case"],
            f"{row['ours']:.4g} {row['unit']}",
            f"{row['torch']:.4g}" if row["torch"] else "-",
            f"{row['ratio']:.2f}" if row["ratio"] else "-",
            f"{100 * share:.0f} % of {row['limit']}" if share else "-",
        )
    return table


def _find_scripts() -> pathlib.Path:
    """Return the folder of the benchmarks: a wheel carries that of a checkout."""
    carried = _PACKAGE / "benchmarks"
    return carried if carried.is_dir() else _PACKAGE.parent / "benchmarks"
