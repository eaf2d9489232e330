"""Results of a run -> the paper's tables: our numbers, and the published ones beside them.

`Meta.paper` says what to show: `tables` by name, `model` whose numbers stand beside ours (None
if there are none for the checkpoint), `rows` (the paper's name of a specification) and `resolved`
(the specification with the fields that depend on the model).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ivc_jax.evals.benchmarks import metrics
from ivc_jax.evals.benchmarks.tasks import RESIZED_SUFFIX, TASKS
from ivc_jax.evals.schema import Meta, Row
from ivc_jax.reports.labels import PERCENT, find_points, label_methods
from ivc_jax.reports.results import Results
from ivc_jax.studies.paper.published import PUBLISHED, TABLES, Number

_DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        ours: in percent or the benchmark's points; None if it did not run.
        partial: ours is not on all rows of the set, or not on all sets.
        paper: None if the paper has none for this model, or we do not know it.
    """

    ours: float | None = None
    partial: bool = False
    paper: Number | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A method: its name, its specification, and a cell a column."""

    label: str
    method: str
    kept: Cell
    cells: tuple[Cell, ...]
    average: Cell


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        columns: heading by set; sets without records are among them.
        tasks: the tasks that ran, by set (a file in the resized frame is a task of its own).
        partial: by set that is not complete, (rows that count, usual rows or None).
        lines: in order of the run.
    """

    name: str
    columns: Mapping[str, str]
    tasks: Mapping[str, str]
    partial: Mapping[str, tuple[int, int | None]]
    lines: tuple[Line, ...]


def build(results: Results) -> list[Table]:
    """Arrange the rows of a run as the tables that its `Meta.paper` names."""
    return [_make_table(name, results.meta, results.rows) for name in results.meta.paper["tables"]]


def _make_table(name: str, meta: Meta, rows: Sequence[Row]) -> Table:
    columns = TABLES[name]
    # A file with boxes in the resized frame is a task of its own, but the same set of the paper.
    here = [row for row in rows if row.task.removesuffix(RESIZED_SUFFIX) in columns]
    tasks = {row.task.removesuffix(RESIZED_SUFFIX): row.task for row in here}
    tasks = {set_: tasks[set_] for set_ in columns if set_ in tasks}  # in the order of the columns
    partial = {}  # by set: rows that count, rows that there should be
    for set_, task in tasks.items():
        # the fewest rows that any method has: failed ones do not count
        counted, usual = min(row.n for row in here if row.task == task), TASKS[task].rows
        # without a known size only --limit tells
        if counted < (usual or 0) or (usual is None and meta.limit is not None):
            partial[set_] = counted, usual
    labels = label_methods(meta.methods)
    lines = []
    for method in meta.methods:
        cells = {row.task: row for row in here if row.method == method}
        label = meta.paper["rows"].get(method)
        numbers = _find_numbers(meta.paper["model"], label)
        by_set = {set_: cells.get(task) for set_, task in tasks.items()}
        lines.append(_make_line(label or labels[method], method, columns, by_set, partial, numbers))
    return Table(name, columns, tasks, partial, tuple(lines))


def _make_line(
    label: str,
    method: str,
    columns: Mapping[str, str],
    rows: Mapping[str, Row | None],
    partial: Mapping[str, Any],
    numbers: Mapping[str, Number],
) -> Line:
    """Make the line of a method from its row of each set that ran, None where it has none."""
    present = [row for row in rows.values() if row is not None]
    cells = tuple(_make_cell(set_, rows.get(set_), set_ in partial, numbers) for set_ in columns)
    kept = metrics.mean([row.metrics["cached_share"] for row in present]) if present else None
    # a set without a row of this method leaves it without an average
    ratios = [None if row is None else row.retention for row in rows.values()]
    average = metrics.mean(ratios) if ratios and None not in ratios else None
    # "grounding" or "general VQA": key of the published average
    group = TASKS[next(iter(columns))].group
    return Line(
        label=label,
        method=method,
        kept=Cell(_to_percent(kept), paper=numbers.get("kept")),
        cells=cells,
        average=Cell(
            _to_percent(average), bool(partial) or len(rows) < len(columns), numbers.get(group)
        ),
    )


def _make_cell(set_: str, row: Row | None, partial: bool, numbers: Mapping[str, Number]) -> Cell:
    ours = None if row is None else find_points(row.task) * row.score
    return Cell(ours, ours is not None and partial, numbers.get(set_))  # "-" gets no mark


def _to_percent(share: float | None) -> float | None:
    return None if share is None else PERCENT * share


def _find_numbers(model: str | None, label: str | None) -> Mapping[str, Number]:
    """Return the published numbers of a row, by set and group."""
    found = (published.numbers for published in PUBLISHED if published.model == model)
    return next(found, {}).get(label, {})
