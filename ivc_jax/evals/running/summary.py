"""Records -> the rows of `results.json`. Tables are made from records, never typed."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ivc_jax.evals.benchmarks import metrics
from ivc_jax.evals.benchmarks.scoring import Scoring
from ivc_jax.evals.benchmarks.tasks import TASKS

Record = Mapping[str, Any]
AVERAGE = "average"
_DENSE = "dense"
COSTS = ("cached_share", "flops")  # metrics that say what a method costs
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


def rows(
    records: Iterable[Record], tasks: Sequence[str], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Build one row a task and method, in the given order, then the averages over tasks.

    Failed examples do not count. `score` is the headline metric of the task, from 0 to 1;
    `retention` is score / dense score of these records. Times are medians. `low` and `high` among
    the metrics bound the score with 95 % confidence, `change` is the difference to dense on the
    examples that both have.
    """
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault((record["task"], record["method"]), []).append(record)
    result = []
    for task in tasks:
        dense = _scored(grouped.get((task, _DENSE), []))
        for method in methods:
            if present := _scored(grouped.get((task, method), [])):
                result.append(_task_row(task, method, present, dense))
    return result + _average_rows(result, tasks, methods)


def count_failed(records: Iterable[Record]) -> int:
    """Count examples that failed, once each, however many methods met them."""
    return len({(record["task"], record["example_id"]) for record in records if record["failed"]})


def _scored(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if not record["failed"]]


def categories(rows: Iterable[Mapping[str, Any]]) -> list[CategoryTable]:
    """Collect the metrics of parts of tasks from rows of `results.json`.

    Returns:
        One table a task, measure and level, in order of appearance; categories in order of name.
    """
    found: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for row in rows:
        for name, value in row["metrics"].items():
            measure, _, part = name.partition("/")
            if not part:
                continue
            level, _, category = part.partition("/")
            if level not in _LEVELS or not category:
                level, category = "", part
            key = row["task"], measure, _LEVELS[level]
            found.setdefault(key, {}).setdefault(row["method"], {})[category] = value
    return [_category_table(key, by_method) for key, by_method in found.items()]


def _category_table(
    key: tuple[str, str, str], by_method: Mapping[str, Mapping[str, float]]
) -> CategoryTable:
    names = tuple(sorted({name for values in by_method.values() for name in values}))
    lines = {
        method: tuple(values.get(name) for name in names) for method, values in by_method.items()
    }
    return CategoryTable(*key, names, lines)


def _headline(scoring: Scoring, records: Sequence[Record]) -> float:
    return scoring.aggregate(records)[scoring.headline]


def _interval(scoring: Scoring, records: Sequence[Record]) -> tuple[float, float]:
    if scoring.unit is None:
        return metrics.bootstrap_interval([record["score"] for record in records])
    units = [scoring.unit(record) for record in records]
    low, high = metrics.jackknife_interval(lambda part: _headline(scoring, part), records, units)
    return max(low, 0.0), min(high, 1.0)


def _change(
    scoring: Scoring, records: Sequence[Record], dense: Sequence[Record]
) -> dict[str, float]:
    """Compare with dense on the examples that both have."""
    before = {record["example_id"]: record for record in dense}
    pairs = [(r, before[r["example_id"]]) for r in records if r["example_id"] in before]
    if scoring.unit is None:
        changes = [mine["score"] - dense["score"] for mine, dense in pairs]
        change, ends = metrics.mean(changes), metrics.bootstrap_interval(changes)
    else:

        def difference(part: Sequence[tuple[Record, Record]]) -> float:
            mine, other = ([pair[side] for pair in part] for side in (0, 1))
            return _headline(scoring, mine) - _headline(scoring, other)

        change = difference(pairs)
        units = [scoring.unit(mine) for mine, _ in pairs]
        ends = metrics.jackknife_interval(difference, pairs, units)
    return {"change": change, "change_low": ends[0], "change_high": ends[1]}


def _task_row(task: str, method: str, records: list[Record], dense: list[Record]) -> dict[str, Any]:
    scoring = TASKS[task].scoring
    values = scoring.aggregate(records)
    score = values[scoring.headline]
    values["low"], values["high"] = _interval(scoring, records)
    values |= {name: metrics.mean([record[name] for record in records]) for name in COSTS}
    dense_score = _headline(scoring, dense) if dense else None
    if dense and method != _DENSE:
        values |= _change(scoring, records, dense)
    return {
        "task": task,
        "method": method,
        "keep_ratio": records[0]["keep_ratio"],
        "n": len(records),
        "score": score,
        "metrics": values,
        "retention": _ratio(score, dense_score),
        "visual_tokens": _mean(records, "visual_tokens"),
        "kept_tokens": _mean(records, "kept_tokens"),
        "kv_bytes": _mean(records, "kv_bytes"),
        "prefill_ms": statistics.median(record["prefill_ms"] for record in records),
        "decode_ms_per_token": statistics.median(
            record["decode_ms"] / max(record["decode_steps"], 1) for record in records
        ),
    }


def _average_rows(
    rows: list[dict[str, Any]], tasks: Sequence[str], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Average over all tasks and over each group of at least two; every task weighs the same."""
    groups: dict[str, list[str]] = {AVERAGE: list(tasks)}
    for task in tasks:
        groups.setdefault(f"{AVERAGE}/{TASKS[task].group}", []).append(task)
    result = []
    for name, members in groups.items():
        if len(members) < 2:
            continue
        for method in methods:
            parts = [row for row in rows if row["task"] in members and row["method"] == method]
            if len(parts) == len(members):
                result.append(_average(name, parts))
    return result


def _average(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    retentions = [part["retention"] for part in parts]
    averaged = {
        key: metrics.mean([part[key] for part in parts])
        for key in ("visual_tokens", "kept_tokens", "kv_bytes", "prefill_ms", "decode_ms_per_token")
    }
    return {
        "task": name,
        "method": parts[0]["method"],
        "keep_ratio": parts[0]["keep_ratio"],
        "n": sum(part["n"] for part in parts),
        "score": metrics.mean([part["score"] for part in parts]),
        "metrics": {
            name: metrics.mean([part["metrics"][name] for part in parts]) for name in COSTS
        },
        "retention": None if None in retentions else metrics.mean(retentions),
        **averaged,
    }


def _ratio(score: float, dense_score: float | None) -> float | None:
    return score / dense_score if dense_score else None


def _mean(records: list[Record], key: str) -> float:
    return metrics.mean([record[key] for record in records])
