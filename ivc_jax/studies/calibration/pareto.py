"""Settings between cost and retention: rows from records, the Pareto front and the choice.

Retention is score / dense score, averaged over tasks; cost is decoder operations of a prefill.
Differences are paired by example and their intervals are those of `ivc_jax.reports.resampling`. The
dense score that they are divided by is taken as it is: intervals leave out how well it is known.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ivc_jax.evals.schema import Record
from ivc_jax.reports.resampling import Interval, Resampler, Scores, average_by_task, subtract

DENSE = "dense"
_DIGITS = 12  # sums in another order must not break a tie
_CLOSE = 1e-9  # points; the same for a tolerance


class CalibrationError(ValueError):
    """Records that retention cannot be taken from; the message names the task and the remedy."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting, or dense, over all tasks; every task weighs the same.

    Attributes:
        layer: first block that sees fewer tokens; None is dense.
        fraction: of the tokens, by cosine and by sine each, as the specification gives it.
        n: examples of all tasks together.
        scores: by task, from 0 to 1.
        score: their mean.
        retention: mean over tasks of score / dense score.
        change_low: lower end of the 95 % interval of retention - 1.
        change_high: upper end.
        gflop: 1e9 decoder operations of a prefill, mean over tasks of the mean over examples.
        cost: the same relative to dense.
        cached_share: mean over layers of the share of visual tokens in the cache, as measured.
    """

    spec: str
    layer: int | None
    fraction: float | None
    n: int
    scores: Mapping[str, float]
    score: float
    retention: float
    change_low: float
    change_high: float
    gflop: float
    cost: float
    cached_share: float


class Calibration:
    """Records of dense and of some settings, seen as rows and as paired differences.

    Args:
        records: of any methods and tasks; failed examples and what is not named here do not count.
        settings: specification -> (layer, fraction).

    Raises:
        CalibrationError: a task or setting without examples, or a task that dense fails throughout.
    """

    def __init__(
        self,
        records: Iterable[Record],
        settings: Mapping[str, tuple[int, float]],
        tasks: Sequence[str],
    ) -> None:
        self._records: dict[str, list[Record]] = {spec: [] for spec in (DENSE, *settings)}
        for record in records:
            # An example that failed on one side only drops out of the pairs in `subtract`.
            wanted = record.method in self._records and record.task in tasks
            if wanted and not record.failed:
                self._records[record.method].append(record)
        self._tasks = tuple(tasks)
        self._scores = {spec: average_by_task(rows, tasks) for spec, rows in self._records.items()}
        self._means = {spec: self._task_means(spec) for spec in self._scores}
        for task, score in self._means[DENSE].items():
            if score == 0:  # what is retained of nothing
                raise CalibrationError(
                    f"dense scores 0 on {task}, so that retention has no meaning; take another "
                    "task, or more rows with --limit"
                )
        # one resampler for all: every interval sees the same draws of pictures
        self._resampler = Resampler(record for rows in self._records.values() for record in rows)
        self.dense = self._row(DENSE, None, None)  # its retention is 1 and its interval [0, 0]
        self.rows = [self._row(spec, *setting) for spec, setting in settings.items()]

    def difference(self, spec: str, other: str) -> Interval:
        """Return the retention of one setting minus that of another, and its 95 % interval."""
        return self._resampler.interval(
            self._relative(subtract(self._scores[spec], self._scores[other]))
        )

    def _relative(self, differences: Scores) -> Scores:
        dense = self._means[DENSE]  # by task; a constant, however well it is known
        return {
            task: {name: value / dense[task] for name, value in examples.items()}
            for task, examples in differences.items()
        }

    def _task_means(self, spec: str) -> dict[str, float]:
        for task, examples in self._scores[spec].items():
            if not examples:
                raise CalibrationError(f"no example of {task} could be answered with {spec}")
        return {
            task: float(np.mean(list(examples.values())))
            for task, examples in self._scores[spec].items()
        }

    def _row(self, spec: str, layer: int | None, fraction: float | None) -> Row:
        means = self._means[spec]
        gflop = self._mean(spec, "flops") / 1e9
        change, low, high = self.difference(spec, DENSE)  # retention - 1
        return Row(
            spec=spec,
            layer=layer,
            fraction=fraction,
            n=sum(map(len, self._scores[spec].values())),
            scores=means,
            score=float(np.mean(list(means.values()))),
            # a tie broken by the last bit would not be the same elsewhere
            retention=round(1 + change, _DIGITS),
            change_low=low,
            change_high=high,
            gflop=gflop,
            cost=round(gflop / (self._mean(DENSE, "flops") / 1e9), _DIGITS),
            cached_share=self._mean(spec, "cached_share"),
        )

    def _mean(self, spec: str, name: str) -> float:
        """Average a field of the records over the examples of each task, then over tasks."""
        parts = [
            # tasks with many rows must not outweigh small ones
            np.mean([getattr(each, name) for each in self._records[spec] if each.task == task])
            for task in self._tasks
        ]
        return float(np.mean(parts))


def find_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, value) that no other beats, cheapest first.

    One point beats another that costs no less and is worth no more, unless they are equal: equal
    points are on the front together or not at all.
    """

    # value
    #   |        b       a and b are on the front; c costs more than b and is worth less
    #   |   a       c
    #   +------------ cost
    def beaten(cost: float, value: float) -> bool:
        return any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)

    front = [index for index, point in enumerate(points) if not beaten(*point)]
    return sorted(front, key=lambda index: points[index][0])


def choose(rows: Sequence[Row], tolerance: float = 0.0) -> Row:
    """Choose the cheapest setting among those that retain most.

    Args:
        tolerance: points of retention that may be given up; equally cheap settings are told apart
            by the earlier layer, then by the smaller fraction.
    """
    most = max(row.retention for row in rows)
    near = [row for row in rows if 100 * (most - row.retention) <= tolerance + _CLOSE]
    return min(near, key=lambda row: (row.cost, row.layer, row.fraction))


def find_best_layers(rows: Sequence[Row], count: int) -> list[int]:
    """Return the layers of the rows that retain most, of equals the cheaper first."""
    order = sorted(rows, key=lambda row: (-row.retention, row.cost, row.layer))
    # a layer counts once, at its best fraction
    return list(dict.fromkeys(row.layer for row in order))[:count]


def compare_layers(
    calibration: Calibration, fraction: float, chosen: int
) -> tuple[list[int], bool]:
    """Compare layers at one fraction.

    Returns:
        Layers whose paired difference to the chosen one has an interval that holds zero, and
        whether any two layers differ by more than that.
    """
    # one setting a layer: the fraction is fixed
    specs = {row.layer: row.spec for row in calibration.rows if row.fraction == fraction}

    def alike(one: int, other: int) -> bool:
        _, low, high = calibration.difference(specs[one], specs[other])
        return low <= 0 <= high  # not told apart; that is no proof that they are equal

    rivals = [layer for layer in specs if layer != chosen and alike(layer, chosen)]
    return rivals, not all(itertools.starmap(alike, itertools.combinations(specs, 2)))
