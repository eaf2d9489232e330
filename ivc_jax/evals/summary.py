"""Records -> the rows of `results.json`. Tables are made from records, never typed."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ivc_jax.evals import metrics
from ivc_jax.evals.tasks import TASKS

Record = Mapping[str, Any]
AVERAGE = "average"
_DENSE = "dense"
COSTS = ("cached_share", "flops")  # metrics that say what a method costs


def rows(
    records: Iterable[Record], tasks: Sequence[str], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Build one row a task and method, in the given order, then the averages over tasks.

    Failed examples do not count. `score` is the headline metric of the task, from 0 to 1;
    `retention` is score / dense score of these records. Times are medians.
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


def _task_row(task: str, method: str, records: list[Record], dense: list[Record]) -> dict[str, Any]:
    scoring = TASKS[task].scoring
    values = scoring.aggregate(records)
    score = values[scoring.headline]
    values["low"], values["high"] = metrics.bootstrap_interval(
        [record["score"] for record in records]
    )
    values |= {name: metrics.mean([record[name] for record in records]) for name in COSTS}
    dense_score = scoring.aggregate(dense)[scoring.headline] if dense else None
    if dense and method != _DENSE:
        before = {record["example_id"]: record["score"] for record in dense}
        changes = [
            record["score"] - before[record["example_id"]]
            for record in records
            if record["example_id"] in before
        ]
        values["change"] = metrics.mean(changes)
        values["change_low"], values["change_high"] = metrics.bootstrap_interval(changes)
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
