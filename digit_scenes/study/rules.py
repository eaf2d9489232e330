"""A rule for references, chosen on some models and reported on others that it never saw.

A rule is worth what digits and its references alone locate, over all blocks from which on the rest
is hidden. Which rule is worth most is asked of models of one seed, or of other kinds; the
differences to the released rule, to a lattice and to random references are those of the others.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from digit_scenes.study.claims import Comparison, Difference, compare, draw_all
from digit_scenes.study.conditions import RULES
from digit_scenes.study.record import Record
from digit_scenes.study.sets import Condition

SECTION = "section-true"  # the released rule by the planes of each axis
RIVALS = ("ivc", "lattice", "random")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A rule and how it fares where it was not chosen.

    Attributes:
        kind: of the models that it is reported on.
        chosen_on: names of the models that chose it.
        reported_on: names of those that did not.
        rule: its name.
        scores: share of right answers by rule, of the models that chose.
        differences: to each rival by its name, of the others.
    """

    kind: str
    chosen_on: tuple[str, ...]
    reported_on: tuple[str, ...]
    rule: str
    scores: dict[str, float]
    differences: dict[str, Difference]


def try_rules(records: Mapping[str, Sequence[Record]]) -> Iterator[Trial]:
    """Choose on the first seed of each kind, then on all other kinds; report on the others."""
    for kind, own in records.items():
        if len(own) > 1:
            yield _try(kind, own[:1], own[1:])
        others = [record for name, group in records.items() if name != kind for record in group]
        if others:
            yield _try(kind, others, own)


def list_rules(record: Record) -> list[str]:
    """List the rules that a model was asked about; one line has neither axes nor their phase."""
    axes = record.meta["rope"]["sections"] is not None
    return [rule for rule in (*RULES, SECTION) if axes or rule not in ("phase", SECTION)]


def measure_worth(record: Record, rule: str) -> float:
    """Return the share of right answers of digits and references alone, over all blocks."""
    return float(np.mean([record.mean(each.key, "grounding") for each in _keep(record, rule)]))


def _try(kind: str, chosen_on: Sequence[Record], reported_on: Sequence[Record]) -> Trial:
    known = [
        rule
        for rule in list_rules(reported_on[0])
        if all(rule in list_rules(record) for record in chosen_on)
    ]
    scores = {
        rule: float(np.mean([measure_worth(record, rule) for record in chosen_on]))
        for rule in known
    }
    best = max(scores, key=scores.__getitem__)  # of equals the first, and so the released one
    first = _keep(reported_on[0], best)
    from_block = 0  # and from all behind it
    rivals = [rival for rival in RIVALS if rival != best]
    asked = [
        Comparison(
            *("rule", f"{best} - {rival}", "grounding", from_block),
            *(first, _keep(reported_on[0], rival)),
        )
        for rival in rivals
    ]
    names = [tuple(record.meta["model"] for record in group) for group in (chosen_on, reported_on)]
    differences = dict(zip(rivals, compare(reported_on, asked), strict=True))
    return Trial(kind, *names, best, scores, differences)


def _keep(record: Record, rule: str) -> tuple[Condition, ...]:
    name, fields = ("ivc", {"frequencies": "section"}) if rule == SECTION else (rule, {})
    blocks = range(record.meta["blocks"] - 1)
    return tuple(each for block in blocks for each in draw_all("keep", name, block, **fields))
