"""A finished run as reports read it: its records, and the rows that they add up to."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence

from ivc_jax.evals.running import summary
from ivc_jax.evals.running.records import read_all, write_atomically
from ivc_jax.evals.schema import Meta, Record, Row
from ivc_jax.reports import comparison

_RESULTS = "results.json"
_LISTED_FAILURES = 1000  # of a broken data set there may be as many as rows


@dataclasses.dataclass(frozen=True)
class Results:
    """What results.json holds, and the records that it was made from.

    Attributes:
        meta: of the run.
        rows: one a task and method, then averages.
        records: of this run's tasks, methods and rows that did not fail, in their order.
        failed: those that did.
        compared: cells of an earlier report, which stand in for those of the records.
    """

    meta: Meta
    rows: Sequence[Row]
    records: Sequence[Record] = ()
    failed: Sequence[Record] = ()
    compared: Sequence[comparison.Cell] | None = None

    @functools.cached_property
    def comparison(self) -> list[comparison.Cell]:
        """Methods at equal budgets; empty without budgets."""
        if self.compared is not None:
            return list(self.compared)
        return comparison.compare(self.records, self.meta.methods)


def summarize(folder: pathlib.Path, meta: Meta) -> Results:
    """Aggregate the records of a run and write results.json."""
    records = _read_wanted(folder, meta)
    failures = {  # a row that cannot be read fails under every method: once is enough
        (record.task, record.example_id): record.error for record in records if record.failed
    }
    meta = dataclasses.replace(
        meta,
        failed_rows=len(failures),
        failures=list(failures.values())[:_LISTED_FAILURES],
        commits=sorted({record.commit for record in records}),
    )
    rows = summary.make_rows(records, meta.tasks, meta.methods)
    text = json.dumps({"meta": meta.to_dict(), "rows": list(map(vars, rows))}, indent=1)
    write_atomically(folder / _RESULTS, text + "\n")
    scored, failed = ([r for r in records if r.failed is state] for state in (False, True))
    return Results(meta, rows, scored, failed)


def read_meta(folder: pathlib.Path) -> Meta:
    """Return the `meta` of a finished run.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        return Meta.from_dict(json.loads((folder / _RESULTS).read_text())["meta"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no finished run: {error}") from None


def _read_wanted(folder: pathlib.Path, meta: Meta) -> list[Record]:
    """Read the records of this run's tasks, methods and rows; the folder may hold more.

    They come in order of task, row and method, whatever processes and batches they are from.
    """
    methods = {name: place for place, name in enumerate(meta.methods)}
    tasks, last = {name: place for place, name in enumerate(meta.tasks)}, meta.limit
    found = [
        record
        for record in read_all(folder)
        if record.method in methods
        and record.task in tasks
        and (last is None or record.row <= last)  # rows count from 1
    ]
    # order of batches and processes must not show in examples and figures
    return sorted(found, key=lambda r: (tasks[r.task], r.row, methods[r.method]))
