"""Benchmark files checked as tables, without a model: every broken row, and why it is."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

from ivc_jax.evals.benchmarks.tasks import Task
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.evals.running.tsv import RowError, TsvError

_THREADS = 4  # decoding pictures lets go of the interpreter


@dataclasses.dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        rows: of the file; 0 where it cannot be read as a table.
        faults: one message a broken row, or one about the whole file.
        remark: what is unusual and no fault, or None.
    """

    rows: int
    faults: tuple[str, ...]
    remark: str | None = None


def check_file(task: Task, path: str | os.PathLike) -> Checked:
    """Check the file of a task: its encoding, its columns, and each row with its pictures and its
    videos decoded.

    What depends on a checkpoint (tokens that stand for pictures, the longest prompt) shows when a
    run reads its rows.
    """
    try:
        entry = TaskEntry.open(task, path)
        entry = dataclasses.replace(entry, objects=entry.knows_objects)
        count = len(entry.file.list_ids())
    except TsvError as error:
        return Checked(0, (str(error),))

    def find_fault(position: int) -> str | None:
        try:
            row = entry.read(position)
        except RowError as error:
            return str(error)
        try:
            entry.find_objects(row)
            if row.holder == position:  # once for all rows that ask about it
                for video in row.videos:
                    video.check()
        except ValueError as error:
            return f"{entry.locate(row)}: {error}"
        return None

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(find_fault, range(count)))
    finally:
        entry.file.close()
    return Checked(count, tuple(filter(None, found)), task.remark_on_rows(count))
