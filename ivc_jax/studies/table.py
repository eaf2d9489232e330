"""Studies -> rows with scores, paired differences and tests.

Each row is compared with its control or with the study's reference, paired by example. p values
come from flipping signs by picture (`ivc_jax.reports.resampling`); `p_holm` is adjusted for all
rows of a study and group that are compared.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running import summary
from ivc_jax.evals.schema import Record
from ivc_jax.reports.resampling import NOTHING, Resampler, adjust, average_by_task, subtract
from ivc_jax.studies.study import Study, Variant

ALL = "average"  # the group of all tasks

Key = tuple[str, str, float | None, float | None]  # series, label, x, y


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row on one group of tasks, or on one task; scores from 0 to 1, NaN where not compared."""

    score: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p: float
    p_holm: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a study.

    Attributes:
        specs: the runs that were averaged.
        versus: what the differences are to, in words.
        kept_share: mean share of the visual tokens left after the last cut.
        cached_share: mean over layers of their share in the cache.
        flops: mean operations of the decoder in a prefill.
        examples: examples of all tasks.
        cells: by group or task.
    """

    series: str
    label: str
    x: float | None
    y: float | None
    specs: tuple[str, ...]
    versus: str
    kept_share: float
    cached_share: float
    flops: float
    examples: int
    cells: dict[str, Cell]


def read_row(content: Mapping[str, Any]) -> Row:
    """Read a row back from `dataclasses.asdict`."""
    cells = {group: Cell(**cell) for group, cell in content["cells"].items()}
    return Row(**{**content, "cells": cells})


def tabulate(study: Study, records: Iterable[Record]) -> list[Row]:
    """Make the rows of a study from records without failed ones.

    Specifications are written as in the records; variants that did not run drop out.
    """
    records = list(records)
    by_spec: dict[str, list[Record]] = {}
    for record in records:
        by_spec.setdefault(record.method, []).append(record)
    pools: dict[Key, list[Variant]] = {}  # seeds of one row together
    for variant in study.variants:
        if variant.spec in by_spec:
            key = variant.series, variant.label, variant.x, variant.y
            pools.setdefault(key, []).append(variant)
    present = {record.task for record in records}
    tasks = [task for task in TASKS if task in present]
    groups = _group_tasks(tasks)
    resampler = Resampler(records)  # all rows see the same draws
    gather = lambda variants: [r for v in variants for r in by_spec[v.spec]]  # noqa: E731
    scores = {key: average_by_task(gather(variants), tasks) for key, variants in pools.items()}
    # without examples if the reference did not run: then every difference is NaN
    full = average_by_task(by_spec.get(study.reference, []), tasks)
    rows = []
    for key, variants in pools.items():
        # a series beside it with the same label, x and y, or else the reference of the study
        versus = variants[0].versus
        other, name = full, study.reference
        if versus is not None:
            other, name = scores.get((versus, *key[1:])), versus
        if study.reference in {variant.spec for variant in variants} and versus is None:
            other = None  # the reference itself
        cells = {
            group: _make_cell(scores[key], other, members, resampler)
            for group, members in groups.items()
        }
        rows.append(_make_row(key, variants, name if other else "", gather(variants), cells))
    return _adjust(rows, list(groups))  # only now: Holm needs the p values of all rows at once


def list_shown_groups(tables: Sequence[tuple[Study, Sequence[Row]]]) -> list[str]:
    """List the groups that tables have columns of: without single tasks."""
    cells = {name for _, rows in tables for row in rows for name in row.cells}
    groups = dict.fromkeys(task.group for task in TASKS.values())
    return [name for name in (*groups, ALL) if name in cells]


def _group_tasks(tasks: Sequence[str]) -> dict[str, list[str]]:
    """Name groups of tasks, the average over all, and the tasks themselves."""
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(TASKS[task].group, []).append(task)
    # the tasks themselves come last and are not shown
    return {**groups, ALL: list(tasks), **{task: [task] for task in tasks}}


def _make_cell(
    scores: Mapping[str, Any],
    other: Mapping[str, Any] | None,
    tasks: Sequence[str],
    resampler: Resampler,
) -> Cell:
    mine = {task: scores[task] for task in tasks}
    difference, p = NOTHING, math.nan  # NaN thrice: no bar, no p
    if other:
        change = subtract(mine, {task: other[task] for task in tasks})
        difference, p = resampler.interval(change), resampler.p_value(change)
    return Cell(*resampler.interval(mine), *difference, p)


def _make_row(
    key: Key,
    variants: Sequence[Variant],
    versus: str,
    records: Sequence[Record],
    cells: dict[str, Cell],
) -> Row:
    return Row(
        *key,
        specs=tuple(variant.spec for variant in variants),
        versus=versus,
        kept_share=summary.share_kept(records),
        cached_share=summary.average_tasks(records, "cached_share"),
        flops=summary.average_tasks(records, "flops"),
        # seeds of a control are one example
        examples=len({(record.task, record.example_id) for record in records}),
        cells=cells,
    )


def _adjust(rows: list[Row], groups: Sequence[str]) -> list[Row]:
    """Fill in the adjusted p values, group by group."""
    # each group is a family of tests of its own
    adjusted = {group: adjust([row.cells[group].p for row in rows]) for group in groups}
    return [
        dataclasses.replace(
            row,
            cells={
                group: dataclasses.replace(cell, p_holm=adjusted[group][number])
                for group, cell in row.cells.items()
            },
        )
        for number, row in enumerate(rows)
    ]
