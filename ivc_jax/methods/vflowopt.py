"""VFlowOpt (arXiv 2508.05211): one ranking by the tower's attention sinks, three cuts by it."""

import dataclasses
import math
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.ivc import rank_in_segment
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.fields import check_choice, check_not_negative, require
from ivc_jax.methods.pooling import bound_cells, number_cells, recycle
from ivc_jax.methods.preset_file import read_preset
from ivc_jax.methods.progressive import Family, Progressive, scale_layers
from ivc_jax.methods.requests import Carry, PixelEntropy, Received, Request, Signals, TowerAttention
from ivc_jax.methods.select import (
    NEAR,
    Segments,
    bound_total,
    from_mask,
    keep_one,
    round_counts,
    to_mask,
)
from ivc_jax.types import Layout, Selection, typed

# Released for the 28 blocks of LLaVA-OneVision-7B at budgets of 10, 25 and 50 % (README.md and the
# scripts of sihany077/VFlowOpt); at a budget of 1 nothing is pruned.
_DEPTH, _LAYERS = 28, (9, 18)
_BUDGETS = (0.1, 0.25, 0.5, 1.0)
_FIRST_BY_BUDGET = (0.11662 / 0.1, 0.26510 / 0.25, 0.72332 / 0.5, 1.0)
_SECOND = (1.0, 0.98334, 0.74875, 1.0)
_PUBLISHED_RATES = (0.72332, 0.74875, 0.487)
_CUTS = 3
_SMALLEST = 1e-3  # of a rate that is solved for


@flax.struct.dataclass
class Ranking:
    """What later cuts read, in the visual space of the unpruned prompt."""

    importance: jax.Array  # [B, V] float32
    count: jax.Array  # [B, V] int32, tokens left in this token's image, without a modifier's


@flax.struct.dataclass
class Tables:
    """What the settings come to in a bucket of V slots. As data they change without a compile."""

    threshold: jax.Array | float
    alpha: jax.Array | float
    across: jax.Array  # [V] int32, cell of each row and column of a grid
    top: jax.Array  # [V + 1] int32, what an image of 0 .. V tokens keeps beside recycled ones
    left: jax.Array  # [3, V + 1] int32, what each cut leaves of 0 .. V tokens, without recycling


@dataclasses.dataclass(frozen=True)
class VFlowOpt(Progressive):
    """Rank once by the attention of widely attended tokens, drop at three cuts by that ranking.

    The first cut recycles what it drops into one token a cell; how many cells are not empty
    depends on the image, so its count is about the share asked for. Every image has counts of its
    own at every cut; the frames of a video share them and are ranked together. As released,
    samples of several images or frames recycle nothing. Equal tokens are dropped from the front.

    The authors search threshold, cell, alpha and the rates for each model and budget. Threshold
    and cell below are theirs for LLaVA-OneVision-7B at 50 % (34.760 and 15.581 at 25 %, 39.265 and
    17.387 at 10 %) and stay as they are whatever the budget; search again for another tower. The
    tower attention of a single block costs the square of the visual tokens, twice.

    Attributes:
        layers: first block behind each of the three cuts.
        ratios: share of the unpruned tokens left after each cut, products of the paper's R1, R2,
            R3. The released rates of 50 % by default.
        keep_ratio: share left after the last cut.
        budget: mean over layers of the share in the cache. R1 / budget and R2 lie on lines between
            the released rows, R3 follows (`solve_third_rate`).
        threshold: calibration queries receive more than this many times the mean attention (t).
        cell: side of a recycling cell in tokens, any real number from 1 on (a).
        alpha: weight of the pixel entropy beside the attention.
        recycle: give dropped tokens back at the first cut.
        importance: attention of the calibration queries as their "mean" (released code) or their
            "sum" (paper); they differ beside an entropy.
        preset: what `ivc-jax vflowopt-search` has written; read at once, into layers, ratios,
            threshold, cell and alpha.
    """

    name: ClassVar[str] = "vflowopt"

    threshold: float = 28.683
    cell: float = 11.757
    alpha: float = 0.0
    recycle: bool = True
    importance: str = "mean"
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None:
            read_preset(self)
        super().__post_init__()
        for name in ("threshold", "cell", "alpha"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("layers", "ratios"):
            given = getattr(self, name)
            if given is not None and len(given) != _CUTS:
                raise MethodError(f"vflowopt cuts three times: give three {name}, got {given}")
        check_not_negative(threshold=self.threshold)
        if not 1 <= self.cell < math.inf:
            raise MethodError(f"cell is a side in tokens: choose cell >= 1, got {self.cell}")
        if not math.isfinite(self.alpha):
            raise MethodError(f"alpha must be a finite number, got {self.alpha}")
        check_choice("importance", self.importance, ("mean", "sum"))

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the tower's attention, and the entropy if it counts; later for the ranking."""
        if self.stage_number(stage) > 0:
            return (Carry(),)
        return (TowerAttention(), PixelEntropy()) if self.alpha else (TowerAttention(),)

    def tabulate(self, visual_slots: int) -> Tables:
        """Work out what the settings come to in a bucket of V slots, in NumPy."""
        top = self._count_first(visual_slots)[1 if self._recycles else 0]
        across = np.floor(np.arange(visual_slots) / self.cell).astype(np.int32)
        left = np.stack([_count_left(rate, visual_slots) for rate in self._rates])
        return Tables(self.threshold, self.alpha, across, top, left)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the tokens left: all images without recycling, or one with all its cells in use."""
        left, top = self._count_first(visual_slots)
        pool = np.arange(visual_slots + 1) - top
        recycled = top + np.minimum(bound_cells(self.cell, visual_slots), pool)
        # Tables by the unpruned count: each cut looks up what the one before has left.
        for rate in self._rates[1 : self.stage_number(stage) + 1]:
            table = _count_left(rate, visual_slots)
            left, recycled = table[left], table[recycled]
        plain = bound_total(left, num_images)
        return max(plain, int(recycled.max())) if self._recycles else plain

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Rank and recycle at the first cut, drop by the same ranking at the others."""
        tables = self.tabulate(layout.visual_slots)
        number, combine = self.stage_number(stage), self.importance
        return cut(signals, layout, num_keep, number, tables, combine, self._recycles)

    @property
    def _recycles(self) -> bool:
        return self.recycle and self._rates[0] < 1

    @property
    def _rates(self) -> tuple[float, float, float]:
        """R1, R2, R3. Rounded, because a product divided by its factor may be a last digit off."""
        first, second, third = require(self.ratios, self.name, "ratios")
        return first, round(second / first, 12), round(third / second, 12)

    def _count_first(self, max_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Tabulate what an image keeps without recycling, and with it beside the cells."""
        left = _count_left(self._rates[0], max_count)
        extra = np.floor(np.arange(max_count + 1) / self.cell**2).astype(np.int32)
        return left, np.maximum(left - extra, 0)

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        layers = self.layers or (0, *scale_layers(_LAYERS, _DEPTH, num_layers))
        if layers[-1] >= num_layers:
            raise MethodError(f"vflowopt: {layers} do not fit into {num_layers}; give layers=...")
        spans = tuple(np.diff((*layers, num_layers)).tolist())  # blocks behind each cut

        def family(share: float) -> tuple[float, ...]:
            first = share * float(np.interp(share, _BUDGETS, _FIRST_BY_BUDGET))
            second = float(np.interp(share, _BUDGETS, _SECOND))
            third = max(solve_third_rate(share, first, second, spans), _SMALLEST)
            return first, first * second, first * second * third

        return layers, family

    @property
    def _published_ratios(self) -> tuple[float, ...]:
        return tuple(np.cumprod(_PUBLISHED_RATES).tolist())


def cut(
    signals: Signals,
    layout: Layout,
    num_keep: int,
    number: int,
    tables: Tables,
    combine: str,
    recycles: bool = True,
) -> Selection:
    """Rank and recycle at cut 0, drop by the same ranking at the others.

    Args:
        number: of the cut.
        combine: as of `weigh`.
        recycles: as of `cut_first`.
    """
    if number > 0:
        return cut_again(signals[Carry()], layout, num_keep, tables.left[number])
    received, entropy = signals[TowerAttention()], signals.get(PixelEntropy())
    worth = weigh(received, layout, tables.threshold, entropy, tables.alpha, combine)  # [B, V]
    return cut_first(worth, layout, num_keep, tables, recycles)


def cut_first(
    worth: jax.Array, layout: Layout, num_keep: int, tables: Tables, recycles: bool = True
) -> Selection:
    """Keep the best of every image and recycle the others, if there is but one picture.

    Args:
        worth: importance, float32 [B, V].
        recycles: False gives nothing back.
    """
    within, valid = Segments.by_image(layout), layout.visual_valid
    left, top = map(within.look_up, (tables.left[0], tables.top))  # [B, V] both
    rank = rank_late_first(worth, within.number, valid)
    if recycles:
        # A second image or a second frame.
        several = valid & ((within.number > 0) | (layout.grid[..., 0] > 0))
        single = ~several.any(axis=1, keepdims=True)  # [B, 1]
        keep = rank < jnp.where(single, top, left)
        pool = valid & ~keep & single
        chosen = recycle(worth, keep, pool, number_cells(layout, tables.across), num_keep)
    else:
        chosen = from_mask(rank < left, num_keep)
    kept = to_mask(chosen, worth.shape[1]).astype(jnp.int32)  # [B, V]
    return chosen.replace(carry=Ranking(worth, within.sum(kept)))


def cut_again(ranking: Ranking, layout: Layout, num_keep: int, left: jax.Array) -> Selection:
    """Drop the least of what is present, by the ranking of the first cut.

    Args:
        left: int32 [V + 1], what this cut leaves of 0 .. V tokens.
    """
    ranking = ranking.replace(count=jnp.asarray(left)[ranking.count])
    # From the unpruned visual space to what is present: [B, V] both.
    present = jax.tree.map(
        lambda field: jnp.take_along_axis(field, layout.visual_origin, axis=1), ranking
    )
    rank = rank_late_first(present.importance, layout.image_id, layout.visual_valid)
    return from_mask(rank < present.count, num_keep).replace(carry=ranking)


def solve_third_rate(
    budget: float, first: float, second: float, layers: tuple[int, int, int]
) -> float:
    """Solve the mean over layers for the third rate (R3 of the paper), at most 1.

    Args:
        budget: the mean to reach, T of the paper.
        first: R1, share kept at the first cut.
        second: R2, share of those kept at the second.
        layers: blocks behind each cut, up to the next.

    Returns:
        R3; not above 0 if the first two need more than the budget.
    """
    before = layers[0] * first + layers[1] * first * second
    return min(1.0, (sum(layers) * budget - before) / (layers[2] * first * second))


@typed
def weigh(
    received: Received,
    layout: Layout,
    threshold: Float[Array, ""] | float,
    entropy: Float[Array, "B V"] | None = None,
    alpha: Float[Array, ""] | float = 0.0,
    combine: str = "mean",
) -> Float[Array, "B V"]:
    """Score tokens by the attention of the widely attended tokens of their image or video frame.

    Those are the calibration set: they receive more than threshold times the mean, each frame being
    an image to the tower. Where there are none, all tokens are asked (our choice; the released code
    gives NaN).

    Args:
        received: the tower's attention.
        entropy: in bits; its softmax over the image or frame is added with weight alpha.
        combine: "mean" or "sum" over the calibration set.
    """
    within, valid = Segments.by_frame(layout), layout.visual_valid
    count = jnp.maximum(within.count, 1)  # [B, V], as all that follows
    # what all patches look at, whatever a class token looks at
    attention = received(jnp.ones(layout.visual_valid.shape, jnp.float32))
    mean = within.sum(attention) / count
    asked = valid & (attention > (1 + NEAR) * threshold * mean)
    number = within.sum(asked.astype(jnp.int32))
    # Nobody is asked where nobody is that widely attended: ask all.
    asked, number = asked | (valid & (number == 0)), jnp.where(number == 0, count, number)
    worth = received(asked.astype(jnp.float32))
    if combine == "sum":
        worth *= number
    if entropy is None:
        return worth
    raised = jnp.exp(entropy)  # at most 8 bits, nothing overflows
    return worth + alpha * raised / within.sum(raised)


@typed
def rank_late_first(
    worth: Float[Array, "B V"], segment: Int[Array, "B V"], valid: Bool[Array, "B V"]
) -> Int[Array, "B V"]:
    """Rank inside segments like `ivc.rank_in_segment`, but ties go to the highest index."""
    # Turned around, the first of equals is the last; padding may come first.
    fields = (field[:, ::-1] for field in (worth, segment, valid))
    return rank_in_segment(*fields, NEAR)[:, ::-1]


def _count_left(rate: float, max_count: int) -> np.ndarray:
    """Tabulate what is left of 0 .. max_count tokens: those dropped are rounded half to even."""
    dropped = round_counts(1 - rate, max_count)
    return keep_one(np.arange(max_count + 1, dtype=np.int32) - dropped)
