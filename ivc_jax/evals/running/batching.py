"""Buckets chosen from the data, and batches of examples of like size.

Examples are sorted by visual tokens and cut into few ranges; a range becomes one padded shape, so
that all its batches share their compiled programs:

    visual tokens   64 64 70 | 240 256 256 256 | 1020 1024
    bucket          V = 70   | V = 256         | V = 1024
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from ivc_jax.inputs.bucket import Shape, Size

_TEXT_STEP = 16  # questions of a new length rarely need a new program
_LEVELS = 192  # sizes that cuts are looked for between
_GOOD_ENOUGH = 1.05  # a bucket must be worth compiling: fewer ones may pad this much more


@dataclasses.dataclass(frozen=True)
class Example:
    """A row of a task and what it takes up; rows of a task with one `holder` have one picture."""

    task: int
    position: int
    size: Size
    holder: int | None = None


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Rows of one task that run together.

    Attributes:
        task: index of the task.
        shape: that each shard of the batch is padded to.
        positions: rows in the file; a partial batch repeats its last one up to the batch size.
        count: rows that are no repetition.
    """

    task: int
    shape: Shape
    positions: tuple[int, ...]
    count: int


def plan_batches(
    examples: Sequence[Example],
    batch_size: int,
    shards: int,
    most_buckets: int,
    share: bool = False,
) -> list[BatchPlan]:
    """Fill batches, task by task, large buckets first, rows in file order within a bucket.

    What does not fit into memory shows at once then, and not after hours.

    Args:
        examples: of all tasks; the order does not matter.
        batch_size: a multiple of `shards`.
        shards: equal parts of a batch that are padded on their own.
        most_buckets: bound on the shapes, over all tasks.
        share: rows of a shard with one picture have its patch rows once, so that fewer are enough.
    """
    rows = batch_size // shards  # samples of a shard
    groups = choose_ranges([example.size for example in examples], batch_size, most_buckets)
    plans = []
    for number, group in enumerate(groups):
        members = [examples[index] for index in group]
        shape = cover_sizes([example.size for example in members], rows)
        batches = []  # (task, where it starts, its examples)
        for task in {example.task for example in members}:
            found = sorted((e for e in members if e.task == task), key=lambda e: e.position)
            starts = range(0, len(found), batch_size)
            batches += [(task, start, found[start : start + batch_size]) for start in starts]
        if share:
            parts = [part[i : i + rows] for *_, part in batches for i in range(0, len(part), rows)]
            shape = dataclasses.replace(shape, rows=max(map(_count_rows, parts)))
        for task, start, part in batches:
            # every batch is full: one shape, one program
            positions = [e.position for e in part]
            padded = positions + positions[-1:] * (batch_size - len(part))
            plan = BatchPlan(task, shape, tuple(padded), len(part))
            # sorted below: by task, largest bucket first, file order
            plans.append((task, -number, start, plan))
    return [plan for *_, plan in sorted(plans, key=lambda entry: entry[:3])]


def _count_rows(shard: Sequence[Example]) -> int:
    """Count the patch rows of a shard whose samples share their pictures."""
    return sum({example.holder: example.size.rows for example in shard}.values())


def cover_sizes(sizes: Iterable[Size], rows: int) -> Shape:
    """Return the smallest shape that `rows` of these samples always fit into."""
    sizes = list(sizes)
    text = -(-max(size.text for size in sizes) // _TEXT_STEP) * _TEXT_STEP
    visual = max(size.visual for size in sizes)
    return Shape(
        text=text,
        visual=visual,
        patches=max(size.patches for size in sizes),
        # whichever samples meet in a shard, their patch rows fit
        rows=max(size.rows for size in sizes) * rows,
        images=max(1, *(size.images for size in sizes)),
        positions=max(text + visual, *(size.positions for size in sizes)),
    )


def choose_ranges(sizes: Sequence[Size], batch_size: int, most: int) -> list[list[int]]:
    """Group samples by visual tokens so that padded slots are few: lists of indices.

    The fewest ranges are taken whose slots are within five percent of what `most` ranges need.
    """
    levels = _group_levels(sizes)
    if not levels:
        return []
    # all [levels]
    counts = np.array([len(level) for level in levels])
    text = np.array([max(sizes[index].text for index in level) for level in levels])
    visual = np.array([max(sizes[index].visual for index in level) for level in levels])
    cuts = _choose_cuts(_count_slots(counts, text, visual, batch_size), most)
    return [[i for level in levels[a:b] for i in level] for a, b in cuts]


def _group_levels(sizes: Sequence[Size]) -> list[list[int]]:
    """Sort and put neighbours together: equal sizes always, others if there are too many."""
    order = sorted(range(len(sizes)), key=lambda index: (sizes[index].visual, index))
    levels: list[list[int]] = []
    smallest = len(order) / _LEVELS  # samples of a level, where sizes are many
    distinct = len({sizes[index].visual for index in order})
    for index in order:
        same = levels and sizes[levels[-1][-1]].visual == sizes[index].visual
        if same or (levels and distinct > _LEVELS and len(levels[-1]) < smallest):
            levels[-1].append(index)
        else:
            levels.append([index])
    return levels


def _count_slots(
    counts: np.ndarray, text: np.ndarray, visual: np.ndarray, batch_size: int
) -> np.ndarray:
    """Return slots of whole batches if levels a..b-1 are one range: [levels, levels + 1].

    Args:
        counts: samples of each level.
        text: of the longest text of each level.
        visual: of the most visual tokens of each level, ascending.
    """
    levels = len(counts)
    cost = np.full((levels, levels + 1), np.inf)  # a range has an end behind its start
    for a in range(levels):
        rows = -(-np.cumsum(counts[a:]) // batch_size) * batch_size  # of a..a, a..a+1, ...
        # samples x slots of the widest
        cost[a, a + 1 :] = rows * (np.maximum.accumulate(text[a:]) + visual[a:])
    return cost


def _choose_cuts(cost: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Cut levels into ranges by dynamic programming over the number of ranges.

    best[n][e] is the least cost of the levels before e in n ranges, the last of which starts at
    origin[n - 1][e].
    """
    levels = len(cost)
    best = [np.full(levels + 1, np.inf)]
    best[0][0] = 0.0  # no levels need no range
    origin = []
    for _ in range(min(most, levels)):
        total = best[-1][:levels, None] + cost  # [start of the last range, its end]
        origin.append(total.argmin(axis=0))  # [levels + 1]
        best.append(total.min(axis=0))
    ends = [column[levels] for column in best]  # least cost of all levels, by number of ranges
    # the fewest that are good enough
    number = next(n for n, value in enumerate(ends) if value <= _GOOD_ENOUGH * min(ends))
    # walk back from the last range to the first
    cuts, end = [], levels
    for step in range(number, 0, -1):
        start = int(origin[step - 1][end])
        cuts.append((start, end))
        end = start
    return cuts[::-1]
