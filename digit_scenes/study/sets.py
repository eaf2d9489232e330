"""The cells that a condition hides, chosen by the methods themselves.

A condition is written as a method is: what `ivc_removal` drops is hidden, and what `ivc` would keep
as references stays beside the cells with digits.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from digit_scenes.study.exam import ROWS, Pupil, Sheet
from ivc_jax import ivc
from ivc_jax.config import RopeConfig
from ivc_jax.methods.coordinates import Coordinates
from ivc_jax.methods.drawn import make_layout
from ivc_jax.methods.ivc_removal import IVCRemoval
from ivc_jax.methods.requests import Objects, RopeSettings
from ivc_jax.methods.select import Segments, gather_positions, round_counts
from ivc_jax.types import Layout

DRAWN = ("random", "rank", "block")  # controls of `ivc_removal` that are drawn
# By V, and by U: the published ablation's, for every family.
_FRACTIONS = {"cos_fraction": 0.1, "sin_fraction": 0.1}
_DRAWS = 1000  # seeds between two draws; every sheet has one of its own


@dataclasses.dataclass(frozen=True)
class Condition:
    """Cells hidden from a block on.

    Attributes:
        kind: "hide": background cells by a control of `ivc_removal`; "keep": all background but
            the references of a rule; "axis": background cells by the score of one axis alone;
            "all" hides nothing.
        name: of the control or the rule; "ivc", "random", ... or of the axis.
        block: the first that does not see them.
        offset: added to positions in the IVC score.
        frequencies: planes in the IVC score.
        draw: number of a drawn set.
        stop: axis whose planes do not turn in attention, "" for none.
    """

    kind: str
    name: str = ""
    block: int = 0
    offset: int = 0
    frequencies: str = "all"
    draw: int = 0
    stop: str = ""

    @property
    def key(self) -> str:
        """The condition in words, as records have it."""
        extra = [f"shifted {self.offset}"] if self.offset else []
        extra += [self.frequencies] if self.frequencies != "all" else []
        extra += [f"draw {self.draw}"] if self.draw else []
        extra += [f"{self.stop} stopped"] if self.stop else []
        return " ".join([self.kind, self.name, f"from {self.block}", *extra])


def lay_out(pupil: Pupil) -> Layout:
    """Lay out ROWS prompts of a mark, the picture and a mark, with the model's own positions."""
    plan, (_, _, cells) = pupil.plan, pupil.shape
    positions = plan.positions[:, : plan.picture]  # [3, N]
    layout = make_layout([(1, (plan.grid, plan.grid), 1)] * ROWS, num_positions=2 * cells)
    shape = (3, ROWS, plan.picture)
    return layout.replace(positions=jnp.broadcast_to(positions[:, None], shape))


def find_hidden(
    condition: Condition, layout: Layout, rope: RopeConfig, sheet: Sheet, number: int
) -> np.ndarray:
    """Return the hidden cells of a sheet, bool [ROWS, W]; `number` is that of the sheet."""
    if condition.kind == "all":
        return np.zeros_like(sheet.objects)
    if condition.kind == "hide":
        return _choose_removed(condition, layout, rope, sheet, number)
    if condition.kind == "axis":
        return _mark_axis(condition.name, layout, rope) & ~sheet.objects
    return ~(_find_references(condition, layout, rope, number) | sheet.objects)


def _choose_removed(
    condition: Condition, layout: Layout, rope: RopeConfig, sheet: Sheet, number: int
) -> np.ndarray:
    drawn = condition.name in DRAWN
    method = IVCRemoval(
        layer=condition.block,
        coordinates=Coordinates(
            **_FRACTIONS, position_offset=condition.offset, frequencies=condition.frequencies
        ),
        control=condition.name,
        among="background",
        seed=_DRAWS * condition.draw + number if drawn else 0,
    )
    signals = {RopeSettings(): rope, Objects(): jnp.asarray(sheet.objects)}
    (stage,) = method.stages
    found = method.select(signals, layout, stage, layout.visual_slots)
    kept = np.zeros_like(sheet.objects)
    rows, slots = np.nonzero(np.asarray(found.valid))
    kept[rows, np.asarray(found.index)[rows, slots]] = True
    return ~kept


def _find_references(
    condition: Condition, layout: Layout, rope: RopeConfig, number: int
) -> np.ndarray:
    """Return the reference cells of a rule, "nothing" for none: bool [ROWS, W]."""
    if condition.name == "nothing":
        return np.zeros(layout.visual_valid.shape, bool)
    rule = "released" if condition.name == "ivc" else condition.name
    seed = _DRAWS * condition.draw + number if rule == "random" else 0
    coordinates = Coordinates(
        **_FRACTIONS,
        rule=rule,
        random_seed=seed,
        position_offset=condition.offset,
        frequencies=condition.frequencies,
    )
    return np.asarray(coordinates.mark(layout, rope))


def _mark_axis(axis: str, layout: Layout, rope: RopeConfig) -> np.ndarray:
    """Mark the top tenths by V and by U of one axis, formed of the planes that it turns."""
    kept = np.arange(3) == ("time", "height", "width").index(axis)
    tables = ivc.make_tables(rope, "section", layout.num_positions, by_axis=True)
    tables = tuple(np.where(kept[:, None], table, 0).astype(np.float32) for table in tables)
    within = Segments.by_image(layout)
    tenth = within.look_up(round_counts(_FRACTIONS["cos_fraction"], layout.visual_slots))
    places = gather_positions(layout)
    return np.asarray(
        ivc.tokens(tables, places, within.number, layout.visual_valid, tenth, tenth, "float32")
    )
