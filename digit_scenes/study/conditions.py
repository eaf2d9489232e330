"""What is asked of every model, fixed before any of them was asked."""

from collections.abc import Iterator

from digit_scenes.study.sets import DRAWN, Condition
from ivc_jax.config import RopeConfig

DRAWS = 3
SHIFTS = (15, 35, 100)
MATCHED = {  # controls by what they are matched for
    "order": ("first", "nearest", "last", "first_columns", "last_columns", "rank"),
    "shape": ("mirror_lr", "mirror_ud", "mirror_both", "block", "lattice"),
}
RULES = ("ivc", "random", "lattice", "farthest", "phase")
AXES = ("height", "width")


def list_conditions(blocks: int, rope: RopeConfig) -> list[Condition]:
    """List the conditions of a model of so many blocks."""
    early = range(blocks // 2)
    found = [Condition("all")]
    for block in range(blocks - 1):
        names = ["ivc", "random"]
        if block in early:
            names += [name for group in MATCHED.values() for name in group]
            found += [Condition("hide", "ivc", block, offset) for offset in SHIFTS]
        found += [each for name in names for each in _draw("hide", name, block)]
        found += list(_list_kept(block, rope))
    return found + _list_stopped(rope)


def _list_kept(block: int, rope: RopeConfig) -> Iterator[Condition]:
    """Digits and references alone: claims (j), (k), (l)."""
    yield Condition("keep", "nothing", block)
    for rule in RULES:
        if rule == "phase" and rope.sections is None:
            continue  # one line has no axes; there it is `farthest`
        yield from _draw("keep", rule, block)
    yield from (Condition("keep", "ivc", block, offset) for offset in SHIFTS)
    if rope.sections is not None:
        yield Condition("keep", "ivc", block, frequencies="section")


def _list_stopped(rope: RopeConfig) -> list[Condition]:
    """References of one axis, with and without that axis in attention: claim (m)."""
    if rope.sections is None:
        return []
    found = []
    for stop in ("", *AXES):
        found += [Condition("axis", axis, stop=stop) for axis in AXES]
        found += [Condition("all", stop=stop)] * bool(stop)
        found += _draw("hide", "random", 0, stop) if stop else []
    return found


def _draw(kind: str, name: str, block: int, stop: str = "") -> list[Condition]:
    draws = DRAWS if name in DRAWN else 1
    return [Condition(kind, name, block, draw=draw, stop=stop) for draw in range(draws)]
