"""Methods at equal budgets: scores by task group, and paired differences to IVC-Prune.

Runs of one method that differ in their seed alone are pooled: an example's score is the mean over
seeds. Every task of a group weighs the same. Intervals are those of `ivc_jax.reports.resampling`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running import summary
from ivc_jax.evals.schema import Record
from ivc_jax.reports.labels import SEEDS, label_methods, read_budget
from ivc_jax.reports.resampling import NOTHING, Resampler, average_by_task, subtract

REFERENCE = "ivc"  # what all others are compared with
ALL = "average"
_DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method at one budget on one group of tasks; scores from 0 to 1, NaN if it did not run."""

    label: str
    budget: float
    group: str
    runs: int
    score: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    cached_share: float
    kept_share: float
    kv_bytes: float
    flops: float


def compare(records: Iterable[Record], specs: Sequence[str]) -> list[Cell]:
    """Compare all methods that have a budget; dense stands at budget 1.

    Returns:
        Cells in order of group, budget (largest first) and method; empty without budgets.
    """
    # None: the method has no budget and is not compared
    budgets = {spec: 1.0 if spec == _DENSE else read_budget(spec) for spec in specs}
    labels: dict[str, str] = {}
    for budget in set(budgets.values()):
        # A field that a method has a value of its own for at each budget is no other method.
        labels |= label_methods([s for s in specs if budgets[s] == budget], without=SEEDS)
    if not any(budget is not None for spec, budget in budgets.items() if spec != _DENSE):
        return []
    pools: dict[tuple[str, float], list[Record]] = {}  # by label and budget
    for record in records:
        budget = budgets.get(record.method)
        if budget is not None and not record.failed:
            pools.setdefault((labels[record.method], budget), []).append(record)
    tasks = [task for task in TASKS if any(r.task == task for p in pools.values() for r in p)]
    groups = {ALL: tasks}  # the average is one group more
    for task in tasks:
        groups.setdefault(TASKS[task].group, []).append(task)
    order = sorted(pools, key=lambda pool: -pool[1])  # largest budget first, methods as given
    resampler = Resampler(record for pool in pools.values() for record in pool)
    return [
        _make_cell(group, members, label, budget, pools, resampler)
        for group, members in groups.items()
        for label, budget in order
    ]


def _make_cell(
    group: str,
    tasks: Sequence[str],
    label: str,
    budget: float,
    pools: Mapping[tuple[str, float], list[Record]],
    resampler: Resampler,
) -> Cell:
    pool = [record for record in pools[label, budget] if record.task in tasks]
    scores = average_by_task(pool, tasks)
    # IVC-Prune at the same budget
    other = [r for r in pools.get((REFERENCE, budget), []) if r.task in tasks]
    score, low, high = resampler.interval(scores)
    difference = NOTHING
    if other and label != REFERENCE:
        difference = resampler.interval(subtract(scores, average_by_task(other, tasks)))
    return Cell(
        label=label,
        budget=budget,
        group=group,
        runs=len({record.method for record in pool}),
        score=score,
        low=low,
        high=high,
        difference=difference[0],
        difference_low=difference[1],
        difference_high=difference[2],
        cached_share=_average(pool, "cached_share"),
        kept_share=summary.share_kept(pool) if pool else math.nan,
        kv_bytes=_average(pool, "kv_bytes"),
        flops=_average(pool, "flops"),
    )


def _average(records: Sequence[Record], name: str) -> float:
    return summary.average_tasks(records, name) if records else math.nan
