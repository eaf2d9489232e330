"""Claims (g) to (m), fixed before any model was asked, and what decides each.

A difference is between the shares of right answers of the same questions, of all models of a kind.
Scenes are drawn anew within each model, and models among themselves, for the interval; signs are
flipped by scene for p, which is adjusted (Holm) for all differences of a kind of model.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from digit_scenes.study.conditions import AXES, DRAWS, MATCHED, RULES, SHIFTS
from digit_scenes.study.record import Record
from digit_scenes.study.sets import DRAWN, Condition
from ivc_jax.reports.resampling import adjust

SEMANTIC = ("colour", "existence", "counting")
_RESAMPLES, _FLIPS = 4000, 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
    """What one condition costs beside another.

    Attributes:
        claim: letter.
        label: what is compared, in words.
        task: of the questions; "semantic" is the mean of three.
        block: from which on cells are hidden.
        first: mean share of right answers under the one condition, `second` under the other.
        low: end of the 95 % interval of first - second, `high` the other.
        p: of no difference, adjusted.
        by_model: the difference in each model.
    """

    claim: str
    label: str
    task: str
    block: int
    first: float
    second: float
    low: float
    high: float
    p: float
    by_model: tuple[float, ...]

    @property
    def value(self) -> float:
        """The difference."""
        return self.first - self.second

    @property
    def sure(self) -> int:
        """1 or -1 where it is above or below 0 for sure and in every model, else 0."""
        sign = int(np.sign(self.value))
        agree = all(np.sign(each) == sign for each in self.by_model)
        return sign if self.p < 0.05 and agree and self.low * self.high > 0 else 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two groups of conditions, each averaged: `first` is expected to be above `second`."""

    claim: str
    label: str
    task: str
    block: int
    first: tuple[Condition, ...]
    second: tuple[Condition, ...]


def compare(
    records: Sequence[Record], asked: Sequence[Comparison] | None = None
) -> list[Difference]:
    """Measure differences in the records of models: by default all that the claims name.

    Args:
        records: of one kind of model.
        asked: what is compared; p is adjusted for all of it.
    """
    if asked is None:
        meta = records[0].meta
        asked = list(list_comparisons(meta["blocks"], meta["rope"]["sections"]))
    random = np.random.default_rng(0)
    found, p_values = [], []
    for each in asked:
        pairs = [[_average(record, group, each.task) for record in records]
                 for group in (each.first, each.second)]  # fmt: skip
        gaps = [first - second for first, second in zip(*pairs, strict=True)]  # by model [scenes]
        low, high = _draw_interval(gaps, random)
        p_values.append(_flip_signs(gaps, random))
        means = [float(np.mean([np.nanmean(scenes) for scenes in group])) for group in pairs]
        by_model = tuple(float(np.nanmean(gap)) for gap in gaps)
        found.append(
            Difference(
                *(each.claim, each.label, each.task, each.block, *means, low, high, np.nan),
                by_model,
            )
        )
    return [dataclasses.replace(each, p=p)
            for each, p in zip(found, adjust(p_values), strict=True)]  # fmt: skip


def list_comparisons(blocks: int, sections: Sequence[int] | None) -> Iterator[Comparison]:
    """List what the claims compare; the second of the pair is what should hurt more."""
    early = range(blocks // 2)
    whole = (Condition("all"),)
    hide = lambda name, block, **kw: draw_all("hide", name, block, **kw)  # noqa: E731
    keep = lambda name, block, **kw: draw_all("keep", name, block, **kw)  # noqa: E731
    for block in early:
        ivc = hide("ivc", block)
        yield Comparison("g", "random - IVC", "grounding", block, hide("random", block), ivc)
        yield Comparison("h", "IVC - all tokens", "semantic", block, ivc, whole)
        for name in (name for group in MATCHED.values() for name in group):
            label = f"{name.replace('_', ' ')} - IVC"
            yield Comparison("i", label, "grounding", block, hide(name, block), ivc)
        for offset in SHIFTS:
            shifted = hide("ivc", block, offset=offset)
            yield Comparison("i", f"shifted by {offset} - IVC", "grounding", block, shifted, ivc)
    for block in range(blocks - 1):
        ivc = keep("ivc", block)
        yield Comparison("j", "IVC - random", "grounding", block, ivc, keep("random", block))
        yield Comparison("k", "IVC - lattice", "grounding", block, ivc, keep("lattice", block))
        if sections is not None:
            true = keep("ivc", block, frequencies="section")
            yield Comparison("l", "section-true - all planes", "grounding", block, true, ivc)
        for name in RULES[3:]:
            if name != "phase" or sections is not None:
                label = f"{name} - IVC"
                yield Comparison("rule", label, "grounding", block, keep(name, block), ivc)
    if sections is not None:
        yield from _list_stopped()


def _list_stopped() -> Iterator[Comparison]:
    """The worth of an axis' references for the words of that axis, and once its planes stop."""
    for axis, task in zip(AXES, ("rows", "columns"), strict=True):
        for stop in ("", axis):
            label = f"random - references of {axis}" + (f", {axis} stopped" if stop else "")
            lost = (Condition("axis", axis, stop=stop),)
            yield Comparison("m", label, task, 0, draw_all("hide", "random", 0, stop=stop), lost)


def draw_all(kind: str, name: str, block: int, **fields: object) -> tuple[Condition, ...]:
    """Return a condition, or all draws of one that is drawn."""
    draws = DRAWS if name in DRAWN else 1
    return tuple(Condition(kind, name, block, draw=draw, **fields) for draw in range(draws))


def _average(record: Record, conditions: Sequence[Condition], task: str) -> np.ndarray:
    """Average shares of right answers over conditions and tasks: [scenes], NaN without any."""
    tasks = SEMANTIC if task == "semantic" else (task,)
    shares = [np.mean([record.read_shares(each.key, name) for each in conditions], axis=0)
              for name in tasks]  # fmt: skip
    return np.mean(shares, axis=0)


def _draw_interval(gaps: Sequence[np.ndarray], random: np.random.Generator) -> tuple[float, float]:
    """Draw models, and scenes within each; return the ends of the 95 % interval of the mean."""
    by_model = []  # resampled means of each model
    for gap in gaps:
        known = gap[~np.isnan(gap)]
        picks = random.integers(len(known), size=(_RESAMPLES, len(known)))
        by_model.append(known[picks].mean(axis=1))
    means = np.stack(by_model)  # [models, resamples]
    chosen = random.integers(len(gaps), size=(_RESAMPLES, len(gaps)))
    drawn = means[chosen, np.arange(_RESAMPLES)[:, None]].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _flip_signs(gaps: Sequence[np.ndarray], random: np.random.Generator) -> float:
    """Return the two-sided p of no difference: every model weighs the same."""
    parts = np.concatenate([np.nan_to_num(gap) / np.sum(~np.isnan(gap)) for gap in gaps])
    signs = random.integers(0, 2, (_FLIPS, len(parts)), np.int8) * 2 - 1
    extreme = np.abs(signs @ parts) >= abs(parts.sum()) - 1e-12
    return float((1 + extreme.sum()) / (1 + _FLIPS))
