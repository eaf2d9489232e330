"""The claims in words, and the rule by which differences decide each."""

import dataclasses
from collections.abc import Iterable, Sequence

from digit_scenes.study.claims import Difference

CLAIMS = {
    "g": "hiding background IVC cells lowers grounding more than hiding as many random background"
    " cells, from every early block on",
    "h": "hiding background IVC cells leaves colour, existence and counting within 1 point",
    "i": "hiding background IVC cells lowers grounding more than hiding as many of the same causal"
    " order or shape, or the IVC cells of shifted positions",
    "j": "with all digits kept, IVC references beat as many random ones",
    "k": "with all digits kept, IVC references beat an even cover of as many",
    "l": "with all digits kept, references by the planes of each axis beat those by all planes",
    "m": "the references of an axis lose their worth once its planes stop in attention",
}
HOLDS, PART, OPEN, FAILS, TURNED = (
    "holds",
    "holds in part",
    "not decided",
    "does not hold",
    "the other way round",
)
_POINT = 0.01


@dataclasses.dataclass(frozen=True)
class Count:
    """How many differences are surely above 0, surely below, and neither."""

    above: int
    below: int
    neither: int

    @classmethod
    def of(cls, differences: Iterable[Difference]) -> "Count":
        """Count them."""
        signs = [each.sure for each in differences]
        return cls(*(signs.count(sign) for sign in (1, -1, 0)))

    @property
    def total(self) -> int:
        """All of them."""
        return self.above + self.below + self.neither


def decide(claim: str, differences: Sequence[Difference]) -> str | None:
    """Return the verdict on a claim by its differences in models of one kind; None without any."""
    mine = [each for each in differences if each.claim == claim]
    if not mine:
        return None
    if claim == "h":
        return _decide_small(mine)
    if claim == "m":
        return _decide_lost(mine)
    count = Count.of(mine)
    if count.above == count.total:
        return HOLDS
    if count.below and not count.above:
        return TURNED if count.below == count.total else FAILS
    # a control that surely hurts as much or more refutes (i) for the rest as well
    if claim == "i" and count.below:
        return FAILS
    return PART if count.above else OPEN


def _decide_small(mine: Sequence[Difference]) -> str:
    if all(each.low >= -_POINT and each.high <= _POINT for each in mine):
        return HOLDS
    outside = [each for each in mine if each.high < -_POINT or each.low > _POINT]
    return FAILS if outside else OPEN


def _decide_lost(mine: Sequence[Difference]) -> str:
    """Compare the worth of references with what is left of it.

    A model that cannot tell the words of an axis without its planes has nothing left to lose: the
    scores stand beside the difference.
    """
    worth = [each for each in mine if "stopped" not in each.label]
    left = [each for each in mine if "stopped" in each.label]
    had = [each.sure > 0 for each in worth]
    lost = [each.sure <= 0 for each in left]
    if not any(had):
        return OPEN
    kept = [a and b for a, b in zip(had, lost, strict=True)]
    return HOLDS if all(kept) else PART if any(kept) else FAILS
