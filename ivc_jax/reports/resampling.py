"""Intervals and tests that respect how examples hang together.

Questions about one picture are not independent, and a picture has questions in several tasks.
Pictures are therefore what is drawn: a resample takes pictures with replacement, with all their
questions, and both sides of a difference see the same ones. Every task weighs the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ivc_jax.evals.schema import Record

_RESAMPLES = 4000  # another seed moves an end by about 1 % of the width
_FLIPS = 10_000  # the least p is 1 / 10,001

Scores = Mapping[str, Mapping[str, float]]  # task -> example -> score
Interval = tuple[float, float, float]  # mean, and the ends of the 95 % interval

NOTHING: Interval = (float("nan"),) * 3


def average_by_task(records: Iterable[Record], tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Average the score of each example over runs, one dictionary a task."""
    found: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    for record in records:
        if record.task in found:
            found[record.task].setdefault(record.example_id, []).append(record.score)
    return {
        task: {name: float(np.mean(values)) for name, values in examples.items()}
        for task, examples in found.items()
    }


def subtract(scores: Scores, others: Scores) -> dict[str, dict[str, float]]:
    """Subtract, example by example; examples that one side lacks drop out."""
    return {
        task: {
            name: score - others[task][name] for name, score in one.items() if name in others[task]
        }
        for task, one in scores.items()
    }


def adjust(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm, 1979); NaN stays NaN and does not count."""
    p = np.asarray(p_values, np.float64)
    asked = np.flatnonzero(~np.isnan(p))
    order = asked[np.argsort(p[asked], kind="stable")]  # from the smallest p
    adjusted = np.full(len(p), np.nan)
    # the smallest p counts as many times as there are tests, the largest once
    steps = p[order] * np.arange(len(order), 0, -1)  # [asked]
    # never smaller than that of a smaller p
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


class Resampler:
    """Draws pictures once and serves every interval and test of a run with the same draws.

    Args:
        records: all that will be asked about; examples without a picture stand alone.
    """

    def __init__(self, records: Iterable[Record], seed: int = 0) -> None:
        self._cluster: dict[tuple[str, str], int] = {}  # (task, example) -> row of the tables below
        numbers: dict[Any, int] = {}
        for record in records:
            key = record.task, record.example_id
            if key not in self._cluster:
                picture = record.picture or key
                self._cluster[key] = numbers.setdefault(picture, len(numbers))
        self.num_pictures = len(numbers)
        self._seed = seed
        self._weights: np.ndarray | None = None  # drawn when first asked for
        self._signs: np.ndarray | None = None  # [flips, pictures]

    def interval(self, scores: Scores) -> Interval:
        """Return the mean over tasks of the mean over examples, and its 95 % interval."""
        sums, counts = self._table(scores)  # [pictures, tasks] each
        if not counts.size:
            return NOTHING
        mean = float((sums.sum(axis=0) / counts.sum(axis=0)).mean())  # both are summed to [tasks]
        if self._weights is None:
            random = np.random.default_rng(self._seed)
            even = np.full(self.num_pictures, 1 / self.num_pictures)
            # how often each picture is drawn, [resamples, pictures]
            drawn = random.multinomial(self.num_pictures, even, size=_RESAMPLES)
            self._weights = drawn.astype(np.float64)
        drawn_counts = self._weights @ counts  # [resamples, tasks]
        # A resample without any question of a task says nothing about it.
        kept = (drawn_counts > 0).all(axis=1)
        means = ((self._weights @ sums)[kept] / drawn_counts[kept]).mean(axis=1)  # [kept]
        low, high = np.percentile(means, [2.5, 97.5])
        return mean, float(low), float(high)

    def p_value(self, differences: Scores) -> float:
        """Return the two-sided p of no difference: signs of whole pictures are flipped.

        The least possible value is 1 / 10,001; NaN without examples.
        """
        sums, counts = self._table(differences)
        if not counts.size:
            return float("nan")
        parts = (sums / counts.sum(axis=0)).mean(axis=1)  # [pictures], they add up to the mean
        if self._signs is None:
            random = np.random.default_rng(self._seed + 1)
            # +1 or -1 for a picture, [flips, pictures]
            self._signs = random.integers(0, 2, (_FLIPS, self.num_pictures), np.int8) * 2 - 1
        flipped = self._signs @ parts  # [flips]
        # Sums of equal numbers in another order differ in the last bits.
        extreme = np.abs(flipped) >= abs(parts.sum()) - 1e-12
        return float((1 + extreme.sum()) / (1 + _FLIPS))

    def _table(self, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
        """Add up scores and examples by picture and task: two arrays [pictures, tasks]."""
        tasks = [task for task, examples in scores.items() if examples]
        sums, counts = np.zeros((2, self.num_pictures, len(tasks)))
        for column, task in enumerate(tasks):
            for name, score in scores[task].items():
                row = self._cluster[task, name]
                sums[row, column] += score
                counts[row, column] += 1
        return sums, counts
