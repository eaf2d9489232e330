"""Scores of one answer and aggregates over many, in plain numbers."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from ivc_jax.evals.benchmarks.parsers import Box

HIT_IOU = 0.5
_DRAWN_AT_ONCE = 1 << 16
_JACKKNIFE_GROUPS = 40  # statistics of large sets take a while: 40 runs of them, not one a unit
_T_95 = 2.02  # 97.5 % point of Student's t for that many; too small if there are few units


def measure_iou(first: Box, second: Box) -> float:
    """Return intersection over union of two boxes (x1, y1, x2, y2), float32.

    Coordinates are continuous: a box from 0 to 10 is 10 wide, not 11.
    """
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    # [width, height], negative where the boxes are apart
    overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = np.prod(np.maximum(overlap, np.float32(0)))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - intersection
    return float(intersection / np.maximum(union, np.float32(1e-6)))


def measure_yes_no(targets: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return accuracy, precision, recall, F1 and the shares of Yes and Unknown answers.

    Positives are "Yes". An Unknown answer is wrong in the accuracy and a No in the rest, as in
    POPE. A ratio without denominator is 0.
    """
    pairs = [
        (target.strip().lower(), answer.strip().lower())
        for target, answer in zip(targets, answers, strict=True)
    ]
    hits = sum(target == answer for target, answer in pairs)
    positives = sum(target == "yes" for target, _ in pairs)
    claimed = sum(answer == "yes" for _, answer in pairs)  # answered "yes"; Unknown counts as "no"
    true_positives = sum(pair == ("yes", "yes") for pair in pairs)
    precision = _divide(true_positives, claimed)
    recall = _divide(true_positives, positives)
    return {
        "accuracy": _divide(hits, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _divide(2 * precision * recall, precision + recall),
        "yes_share": _divide(claimed, len(pairs)),
        "unknown_share": _divide(sum(answer == "unknown" for _, answer in pairs), len(pairs)),
    }


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return _divide(sum(values), len(values))


def bootstrap(values: Sequence[float], resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean.

    Give paired differences to compare two methods on the same examples.
    """
    if not values:
        return 0.0, 0.0
    numbers = np.asarray(values, np.float64)  # [n]
    random = np.random.default_rng(seed)
    # some resamples at a time: all indices of a large benchmark would not fit in memory
    step = max(1, _DRAWN_AT_ONCE // len(numbers))
    means = [
        numbers[random.integers(0, len(numbers), (min(step, resamples - done), len(numbers)))].mean(
            axis=1
        )  # [step]
        for done in range(0, resamples, step)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])  # of [resamples]
    return float(low), float(high)


def jackknife(
    statistic: Callable[[Sequence[Any]], float],
    items: Sequence[Any],
    units: Sequence[Hashable],
    seed: int = 0,
) -> tuple[float, float]:
    """Return a 95 % interval of any smooth statistic by leaving out groups of units in turn.

    A bootstrap would draw units twice, which statistics that group by unit (pairs of questions,
    rotations) cannot take. See Shao and Tu, The Jackknife and Bootstrap (1995), section 2.3.

    Args:
        units: name of the unit of each item; a unit stays whole. They are dealt out at random to 40
            groups, or to one each if there are fewer.
    """
    names = list(dict.fromkeys(units))
    count = min(_JACKKNIFE_GROUPS, len(names))
    value = statistic(items)
    if count < 2:
        return value, value
    # at random, as rows of files take turns (yes, no, yes, ...)
    # [units] -> number of the group
    order = np.random.default_rng(seed).permutation(len(names)) % count
    dealt = dict(zip(names, order.tolist(), strict=True))
    groups = [dealt[unit] for unit in units]  # [items]
    # the statistic without each group; its variance over groups grows with what a group tells
    left = [
        statistic([item for item, group in zip(items, groups, strict=True) if group != out])
        for out in range(count)
    ]
    reach = _T_95 * float(np.sqrt((count - 1) * np.var(left)))
    return value - reach, value + reach


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
