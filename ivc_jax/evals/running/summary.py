"""Records -> the rows of `results.json`. Tables are made from records, never typed."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ivc_jax.evals.benchmarks import metrics
from ivc_jax.evals.benchmarks.scorers.base import Scoring
from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.schema import Record, Row

AVERAGE = "average"
_DENSE = "dense"
COSTS = ("cached_share", "flops")  # metrics that say what a method costs
# part of a metric's name -> column of the file
_LEVELS = {"": "category", "l2": "l2-category", "split": "split"}


@dataclasses.dataclass(frozen=True)
class CategoryTable:
    """One measure of one task by category, a line a method.

    Attributes:
        measure: "accuracy", "precision", "recall" or "f1" (from 0 to 1), "points" (of MME, up to
            200) or "count" (of OCRBench).
        level: what the columns are: "category", "l2-category" or "split".
        lines: by method, one value a category, None where the method has no row of it.
    """

    task: str
    measure: str
    level: str
    categories: tuple[str, ...]
    lines: Mapping[str, tuple[float | None, ...]]


def make_rows(records: Iterable[Record], tasks: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """Build one row a task and method, in the given order, then the averages over tasks.

    Failed examples do not count. `score` is the headline metric of the task; `retention` is score /
    dense score of these records. `low` and `high` among the metrics bound the score with 95 %
    confidence, `change` is the difference to dense on the examples that both have.
    """
    found: dict[tuple[str, str], list[Record]] = {}  # (task, method) -> records
    for record in records:
        if not record.failed:
            found.setdefault((record.task, record.method), []).append(record)
    rows = [
        _make_row(found[task, method], found.get((task, _DENSE), []))
        for task in tasks
        for method in methods
        if (task, method) in found
    ]
    return rows + _average_groups(rows, tasks, methods)


def count_failed(records: Iterable[Record]) -> int:
    """Count examples that failed, once each, however many methods met them."""
    return len({(record.task, record.example_id) for record in records if record.failed})


def collect_categories(rows: Iterable[Row]) -> list[CategoryTable]:
    """Collect the metrics of parts of tasks from rows of `results.json`.

    Returns:
        One table a task, measure and level, in order of appearance; categories in order of name.
    """
    # (task, measure, level) -> method -> category -> value
    found: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for row in rows:
        for name, value in row.metrics.items():
            # "accuracy", "accuracy/CATEGORY" or "accuracy/LEVEL/CATEGORY"; categories may hold "/"
            measure, _, part = name.partition("/")
            if not part:
                continue
            level, _, category = part.partition("/")
            if level not in _LEVELS or not category:
                level, category = "", part
            key = row.task, measure, _LEVELS[level]
            found.setdefault(key, {}).setdefault(row.method, {})[category] = value
    tables = []
    for key, by_method in found.items():
        # columns: every category that any method has
        names = tuple(sorted({name for values in by_method.values() for name in values}))
        lines = {m: tuple(values.get(name) for name in names) for m, values in by_method.items()}
        tables.append(CategoryTable(*key, names, lines))
    return tables


def _make_row(records: list[Record], dense: list[Record]) -> Row:
    """Make the row of one task and method.

    Args:
        dense: the records of the task without pruning, if there are any.
    """
    task, method = records[0].task, records[0].method
    scoring = TASKS[task].scoring
    values = scoring.aggregate(records)
    score = values[scoring.headline]
    values["low"], values["high"] = _find_interval(scoring, records)
    values |= {name: _average(records, name) for name in COSTS}
    dense_score = _measure(scoring, dense) if dense else None
    if dense and method != _DENSE:
        values |= _compare(scoring, records, dense)
    return Row(
        task=task,
        method=method,
        keep_ratio=records[0].keep_ratio,
        n=len(records),
        score=score,
        metrics=values,
        # None without dense, and where dense scores 0
        retention=score / dense_score if dense_score else None,
        visual_tokens=_average(records, "visual_tokens"),
        kept_tokens=_average(records, "kept_tokens"),
        kv_bytes=_average(records, "kv_bytes"),
        # a median: single batches stumble over other work
        prefill_ms=statistics.median(record.prefill_ms for record in records),
        decode_ms_per_token=statistics.median(
            record.decode_ms / max(record.decode_steps, 1) for record in records
        ),
    )


def _measure(scoring: Scoring, records: Sequence[Record]) -> float:
    return scoring.aggregate(records)[scoring.headline]


def _find_interval(scoring: Scoring, records: Sequence[Record]) -> tuple[float, float]:
    if scoring.unit is None:
        return metrics.bootstrap([record.score for record in records])
    units = [scoring.unit(record) for record in records]
    low, high = metrics.jackknife(lambda part: _measure(scoring, part), records, units)
    return max(low, 0.0), min(high, 1.0)


def _compare(
    scoring: Scoring, records: Sequence[Record], dense: Sequence[Record]
) -> dict[str, float]:
    """Compare with dense on the examples that both have."""
    before = {record.example_id: record for record in dense}  # example -> record of dense
    pairs = [(each, before[each.example_id]) for each in records if each.example_id in before]
    if scoring.unit is None:
        changes = [mine.score - other.score for mine, other in pairs]
        change, ends = metrics.mean(changes), metrics.bootstrap(changes)
    else:

        def subtract(part: Sequence[tuple[Record, Record]]) -> float:
            mine, other = ([pair[side] for pair in part] for side in (0, 1))
            return _measure(scoring, mine) - _measure(scoring, other)

        change = subtract(pairs)
        ends = metrics.jackknife(subtract, pairs, [scoring.unit(mine) for mine, _ in pairs])
    return {"change": change, "change_low": ends[0], "change_high": ends[1]}


def average_tasks(records: Iterable[Record], name: str) -> float:
    """Average a cost of records as rows do: over the records of each task, then over tasks."""
    by_task: dict[str, list[float]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(getattr(record, name))
    return metrics.mean([metrics.mean(values) for values in by_task.values()])


def share_kept(records: Sequence[Record]) -> float:
    """Return the `kept_share` that the row of the average over these records' tasks has."""
    visual = average_tasks(records, "visual_tokens")  # 0 of text alone
    return average_tasks(records, "kept_tokens") / visual if visual else 1.0


def _average_groups(rows: list[Row], tasks: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """Average over all tasks and over each group of at least two; every task weighs the same."""
    groups: dict[str, list[str]] = {AVERAGE: list(tasks)}  # name of the row -> tasks
    for task in tasks:
        groups.setdefault(f"{AVERAGE}/{TASKS[task].group}", []).append(task)
    result = []
    for name, members in groups.items():
        for method in methods:
            parts = [row for row in rows if row.task in members and row.method == method]
            # a mean over some of the tasks would not compare with those of other methods
            if len(parts) == len(members) >= 2:
                result.append(_average_row(name, parts))
    return result


def _average_row(name: str, parts: Sequence[Row]) -> Row:
    retentions = [part.retention for part in parts]
    costs = {cost: metrics.mean([part.metrics[cost] for part in parts]) for cost in COSTS}
    return Row(
        task=name,
        method=parts[0].method,
        keep_ratio=parts[0].keep_ratio,
        n=sum(part.n for part in parts),
        score=_average(parts, "score"),
        metrics=costs,
        retention=None if None in retentions else metrics.mean(retentions),
        visual_tokens=_average(parts, "visual_tokens"),
        kept_tokens=_average(parts, "kept_tokens"),
        kv_bytes=_average(parts, "kv_bytes"),
        prefill_ms=_average(parts, "prefill_ms"),
        decode_ms_per_token=_average(parts, "decode_ms_per_token"),
    )


def _average(items: Sequence[Record] | Sequence[Row], name: str) -> float:
    return metrics.mean([getattr(item, name) for item in items])
