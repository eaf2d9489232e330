"""Check benchmark files as tables, without a model: encoding, columns, and every row.

    ivc-jax check --data-dir TSVS
    ivc-jax check --data-dir TSVS --tasks RefCOCO_testA MMStar

Every broken row is listed with its file, its number and the reason. The exit code is 0 if there is
none. A run makes the same checks; it leaves broken rows out and counts them.
"""

import dataclasses
import pathlib
from typing import Annotated, Any

from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Check benchmark files as tables and list every broken row.

    Attributes:
        data_dir: folder of the TSV files.
        tasks: such as RefCOCO_testA or MMStar.
        traceback: show where an error came from.
    """

    data_dir: Annotated[str, option("DIR")]
    tasks: Annotated[tuple[str, ...] | None, option("NAME ...", "all with a file there")] = None
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} check") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program)


def _run(arguments: Arguments, _command: str, console: Console) -> None:
    """Check file by file, and end in an error if anything is broken."""
    # Imported late, so that a wrong option or --help does not wait for them.
    from ivc_jax.evals.running.checking import check_file

    rows = faults = 0  # over all files
    found = _find_files(arguments)
    for task, path in found:
        checked = check_file(task, path)
        for line in (*checked.faults, *filter(None, [checked.remark])):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        broken = f"{len(checked.faults)} broken" if checked.faults else "nothing broken"
        console.print(f"{path.name}: {checked.rows} rows, {broken}", markup=False, highlight=False)
        rows, faults = rows + checked.rows, faults + len(checked.faults)
    if faults:
        raise ValueError(f"{faults} faults in {rows} rows of {len(found)} files, listed above")


def _find_files(arguments: Arguments) -> list[tuple[Any, pathlib.Path]]:
    """Find the file of each task: all that are named, or all that the folder has."""
    from ivc_jax.commands.data import find_file
    from ivc_jax.evals.benchmarks import tasks

    chosen = tasks.TASKS.values() if arguments.tasks is None else tasks.find(arguments.tasks)
    found = []
    for task in chosen:
        path = find_file(arguments.data_dir, task)
        if path.exists():
            found.append((task, path))
        elif arguments.tasks is not None:  # without a wish, a folder need not have every task
            raise ValueError(f"{arguments.data_dir} lacks the file {task.file_name}")
    if not found:
        raise ValueError(f"{arguments.data_dir} holds no file NAME.tsv of a known task")
    return found
