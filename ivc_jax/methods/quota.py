"""QuoTA (arXiv 2503.08689): a budget of tokens is split over frames by their relevance."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ivc_jax.config import ModelConfig
from ivc_jax.methods import frame_grids
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.budget import BudgetError
from ivc_jax.methods.defaults import choose_layer
from ivc_jax.methods.fields import check_choice, check_keep_ratio, require
from ivc_jax.methods.frame_grids import Grids, Maps
from ivc_jax.methods.ivc import IVCPrune
from ivc_jax.methods.placed import place_tokens
from ivc_jax.methods.question import mark_question
from ivc_jax.methods.requests import (
    Embeddings,
    Learned,
    Relevance,
    Request,
    Signals,
    TokenVectors,
)
from ivc_jax.methods.select import Segments, from_mask, keep_one, normalize, round_counts
from ivc_jax.methods.shares import MOST
from ivc_jax.methods.upfront import Upfront
from ivc_jax.types import Blend, Layout, Selection, typed

_STEEPNESS = 10  # of the stand-in's sigmoid
_STEPS = 2**12  # it is rounded to these parts, so that frames that are alike count alike
_POOLING = ("none", "frame", "sample")


@dataclasses.dataclass(frozen=True)
class QuoTA(Upfront):
    """Resize the map of every frame to its share of a budget, which squares of relevance give.

    The relevance p of each frame is data of the batch (`Batch.relevance`); who knows none counts
    all frames alike, which is a plain resize. `ivc_jax.rate_frames` has a model rate them as the
    released code does (MAC-AutoML/QuoTA, tools/qwen2vl_batch.py). Every image is a frame, and so is
    every temporal slice of a video and every tile of an image that is cut into tiles; all of a
    sample share one budget. Of N = floor(keep_ratio * tokens) a frame gets c = floor(N w), w being
    p² of the sum of all p², and a grid of s x s or (s + 1) x s tokens, s = floor(sqrt(c))
    (core/llava_arch.py). Frames may get more tokens than they had, and most lose all. A sample
    whose shares are all below one token keeps one of its best frame. What keeps every token changes
    none.

    Learned tokens at the ends of rows are dropped. With M-RoPE a token has the position of the cell
    that its center lies in, and text goes on behind the unpruned video.

    Attributes:
        total: tokens of a sample's budget, in place of keep_ratio; 12544 as published.
        assigner: "v1" resizes bilinearly, up too; "v2" averages over boxes, "v3" picks evenly
            spaced tokens, and neither gives a frame more than it has.
        scores: "given" with the batch, or "cosine": the cosine of a frame's mean token and the mean
            of the question, through a steep sigmoid; a cheap stand-in.
        ivc: IVC-Prune prunes what is left: every "frame" by itself, or all of a "sample" together;
            "none" does not. Its constants are those for Qwen2.5-VL.
        ivc_keep_ratio: share of what is left that it keeps.
        layer: block before which it does; None asks `resolve`.
    """

    name: ClassVar[str] = "quota"

    total: int | None = None
    assigner: str = "v1"
    scores: str = "given"
    ivc: str = "none"
    ivc_keep_ratio: float = 0.5
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.total is not None:
            if not 1 <= self.total < MOST:
                raise MethodError(f"total must be in [1, {MOST}), got {self.total}")
            if self.keep_ratio is not None or self.budget is not None:
                raise MethodError("quota: total stands for keep_ratio and budget; give one of them")
        super().__post_init__()
        if self.total is not None:
            object.__setattr__(self, "keep_ratio", None)
        check_choice("assigner", self.assigner, frame_grids.ASSIGNERS)
        check_choice("scores", self.scores, ("given", "cosine"))
        check_choice("ivc", self.ivc, _POOLING)
        check_keep_ratio(self.ivc_keep_ratio, "ivc_keep_ratio")
        if self.ivc == "none" and self.layer is not None:
            raise MethodError("quota cuts before the decoder; layer is that of ivc=frame or sample")

    def resolve(self, config: ModelConfig) -> "QuoTA":
        """Fill in keep_ratio, positions and the layer of IVC-Prune."""
        method = self
        if self.ivc != "none":
            if self.budget is not None:
                # IVC-Prune shortens the earlier caches too
                if self.budget > self.ivc_keep_ratio:
                    raise BudgetError(
                        f"quota: budget={self.budget:g} is more than"
                        f" ivc_keep_ratio={self.ivc_keep_ratio:g} leaves"
                    )
                share = round(self.budget / self.ivc_keep_ratio, 12)
                method = dataclasses.replace(self, keep_ratio=share, budget=None)
            layer = choose_layer(config) if self.layer is None else self.layer
            method = dataclasses.replace(method, layer=layer)
        return super(QuoTA, method).resolve(config)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """A cut before the decoder, and that of IVC-Prune."""
        ratio = 1.0 if self.total is not None else require(self.keep_ratio, self.name, "keep_ratio")
        first = Stage(0, ratio, renumber=self.positions == "reindex")
        if self.ivc == "none":
            return (first,)
        (inner,) = self._ivc_prune.stages
        return first, dataclasses.replace(inner, keep_ratio=ratio * inner.keep_ratio)

    @property
    def _ivc_prune(self) -> IVCPrune:
        return IVCPrune(
            layer=require(self.layer, self.name),
            keep_ratio=self.ivc_keep_ratio,
            per_frame=self.ivc == "frame",
            scope="sample" if self.ivc == "sample" else "image",
            combine="fill",
        )

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the relevance of frames, or what stands in for it, and for learned tokens."""
        if stage.layer:
            return self._ivc_prune.requests(stage)
        return (Relevance() if self.scores == "given" else Embeddings(), Learned())

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens by the budget of a whole sample."""
        slots = int(self._tabulate_totals(visual_slots)[-1])
        if not stage.layer:
            return slots
        inner = self._ivc_prune
        return min(slots, inner.capacity(inner.stages[0], slots, num_images))

    def _tabulate_totals(self, max_count: int) -> np.ndarray:
        """Tabulate the budget of a sample of every count 0 .. max_count."""
        if self.total is not None:
            return np.minimum(np.arange(max_count + 1), self.total).astype(np.int32)
        return keep_one(round_counts(self.keep_ratio, max_count, "floor"))

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Resize all frames, or let IVC-Prune choose."""
        if stage.layer:
            return self._select_ivc(signals, layout, num_keep)
        if not layout.visual_slots:
            return from_mask(layout.visual_valid, num_keep)
        frames, total = Segments.by_frame(layout), self._tabulate_totals(layout.visual_slots)
        total = jnp.asarray(total)[layout.visual_count]  # [B]
        made = layout.visual_valid & ~signals[Learned()]
        relevance = self._rate(signals, layout, frames, made)  # [B, V]
        maps = _find_maps(layout, frames, made)
        relevance, maps, mask = _tabulate((relevance, maps), frames)  # by frame
        available = maps.height * maps.width
        grids = frame_grids.assign(relevance, mask, total, available, self.assigner)
        grids = _keep_best(grids, relevance, mask, self.assigner)
        slots = frame_grids.lay_slots(grids, num_keep)
        place = frame_grids.find_places(slots, maps, self.assigner)  # [B, K]
        # a budget of every token: as it is
        whole = (total >= layout.visual_count)[:, None]
        slot = jnp.broadcast_to(jnp.arange(num_keep, dtype=jnp.int32), place.shape)
        valid = jnp.where(whole, slot < layout.visual_count[:, None], slots.valid)
        place = jnp.where(valid, jnp.where(whole, slot, place), 0)
        if self.assigner == "v3":
            return Selection(place, valid)
        if self.assigner == "v2":
            number = jnp.where(made, frames.number, -1)
            weights = frame_grids.pool(slots, maps, number, *_list_cells(layout))  # [B, K, V]
            own = slot[..., None] == jnp.arange(layout.visual_slots)
            weights = jnp.where(whole[..., None], own & valid[..., None], weights)
        else:
            blend = frame_grids.interpolate(slots, maps)
            index = jnp.where(whole[..., None], place[..., None], blend.index)
            first = jnp.arange(blend.index.shape[2]) == 0
            own = (first & valid[..., None]).astype(jnp.float32)
            weights = Blend(index, jnp.where(whole[..., None], own, blend.weights))
        return place_tokens(place, valid, weights, layout.visual_count)

    def _rate(
        self, signals: Signals, layout: Layout, frames: Segments, made: jax.Array
    ) -> jax.Array:
        """Return the relevance of each token's frame: [B, V]."""
        if self.scores == "given":
            return signals[Relevance()]
        return compare_frames(signals[Embeddings()], layout, frames, made)

    def _select_ivc(self, signals: Signals, layout: Layout, num_keep: int) -> Selection:
        """Prune what is left as if it were all there ever was."""
        inner, images = self._ivc_prune, Segments.by_runs(layout.visual_valid, layout.image_id)
        left = layout.replace(
            image_count=images.count,
            visual_count=layout.visual_valid.sum(axis=1, dtype=jnp.int32),
            visual_slots=layout.visual_index.shape[1],
        )
        return inner.select(signals, left, inner.stages[0], num_keep)


@typed
def compare_frames(
    vectors: TokenVectors, layout: Layout, frames: Segments, made: Bool[Array, "B V"]
) -> Float[Array, "B V"]:
    """Rate frames without a scorer: sigmoid(10 cosine(mean token of the frame, mean of question)).

    Args:
        made: tokens that patches make.
    """
    B, V = made.shape
    if not V:
        return jnp.zeros((B, V), jnp.float32)
    visual = jnp.where(made[..., None], vectors.visual.astype(jnp.float32), 0.0)  # [B, V, D]
    number = jnp.where(frames.valid, frames.number, V)
    add = jax.vmap(lambda row, segment: jax.ops.segment_sum(row, segment, V + 1))
    # a direction alone: a sum does for a mean
    frame = normalize(add(visual, number))  # [B, V + 1, D]
    asked = mark_question(layout)[..., None]  # [B, T, 1]
    text = jnp.where(asked, vectors.text.astype(jnp.float32), 0.0).sum(axis=1)  # [B, D]
    exact = jax.lax.Precision.HIGHEST
    cosine = jnp.einsum("bfd,bd->bf", frame, normalize(text[:, None])[:, 0], precision=exact)
    relevance = jnp.round(jax.nn.sigmoid(_STEEPNESS * cosine) * _STEPS) / _STEPS
    return jnp.take_along_axis(relevance, number, axis=1)


def _find_maps(layout: Layout, frames: Segments, made: jax.Array) -> Maps:
    """Find the map of each token's frame: [B, V] each."""
    row, column = _list_cells(layout)
    height, width, stride = (
        frames.max(jnp.where(among, cell, -1)) + 1
        for among, cell in ((made, row), (made, column), (layout.visual_valid, column))
    )
    return Maps(frames.first, height, width, stride)


def _list_cells(layout: Layout) -> tuple[jax.Array, jax.Array]:
    return layout.grid[..., 1], layout.grid[..., 2]


def _tabulate(
    values: tuple[jax.Array, Maps], frames: Segments
) -> tuple[jax.Array, Maps, jax.Array]:
    """Turn what tokens say of their frames, [B, V] each, into tables by frame; mark their rows."""
    B, V = frames.number.shape
    begins = frames.valid & frames.begins
    number = jnp.where(begins, frames.number, V)  # `drop` discards V
    slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), (B, V))
    rows, first = jnp.arange(B)[:, None], jnp.zeros((B, V), jnp.int32)
    first = first.at[rows, number].set(slots, mode="drop")  # [B, F], the first token of each
    mask = slots < begins.sum(axis=1, keepdims=True)
    take = lambda each: jnp.where(mask, jnp.take_along_axis(each, first, axis=1), 0)  # noqa: E731
    return *jax.tree.map(take, values), mask


def _keep_best(grids: Grids, relevance: jax.Array, mask: jax.Array, assigner: str) -> Grids:
    """Give the first of the best frames one token where no frame gets any."""
    none = ~(grids.tokens > 0).any(axis=1, keepdims=True)
    rated = jnp.where(mask, jnp.nan_to_num(relevance), -1.0)
    best = jnp.arange(mask.shape[1]) == jnp.argmax(rated, axis=1, keepdims=True)
    count = jnp.where(none & best & mask, 1, grids.count)
    return frame_grids.make_grids(count, assigner)
