"""Print the results of a finished run and write its report, again if need be.

ivc-jax report runs/default        # from the records of the run
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from ivc_jax.commands import terminal
from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import Tables
from ivc_jax.evals.schema import Meta


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Write the report of a finished run again, from its records.

    Attributes:
        folder: result folder of the run.
        tables: write the tables of the report as files of these formats too.
        traceback: show where an error came from.
    """

    folder: Annotated[tyro.conf.Positional[str], option("DIR")]
    tables: Tables = None
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} report") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program, width=160)


def report_on(
    folder: pathlib.Path, meta: Meta, console: Console, formats: Sequence[str] = ()
) -> None:
    """Summarise the records of a folder: tables, figures and report.

    Args:
        formats: of the files that the tables become besides.
    """
    # Imported late, so that a wrong option or --help does not wait for them.
    from ivc_jax.reports import report, tables
    from ivc_jax.reports.results import summarize
    from ivc_jax.studies import ablation
    from ivc_jax.studies.paper import report as paper

    results = summarize(folder, meta)
    # empty for a run without studies or the paper's tables
    leading = []
    if results.rows:
        leading = [*paper.make_sections(results), *ablation.make_sections(results)]
        terminal.print_results(console, results, leading)
    else:
        console.print(tables.explain_nothing(results), markup=False, highlight=False)
    terminal.print_failures(console, results.meta)
    written = report.write(folder, results, leading, formats)
    terminal.print_end(console, results.meta)
    console.print(f"report: {folder / 'report.html'}", markup=False)
    if written:
        console.print(f"tables: {written[0].parent}, {len(written)} files", markup=False)


def _run(arguments: Arguments, _command: str, console: Console) -> None:
    from ivc_jax.reports.results import read_meta

    folder = pathlib.Path(arguments.folder)
    report_on(folder, read_meta(folder), console, arguments.tables or ())
