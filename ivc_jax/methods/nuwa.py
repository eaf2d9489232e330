"""Nuwa (arXiv 2602.02951): even selection by region with aggregation, then one cut by the text.

The rules are those of the released code for Qwen2.5-VL (Man-PaperRejected/Nuwa,
lmms-eval/lmms_eval/models/qwen2_5vl_nuwa.py), with tower features in raster order: the release
averages them in window order, which is taken for a defect.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import ModelConfig
from ivc_jax.ivc import rank_in_segment
from ivc_jax.methods.aggregation import aggregate
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.defaults import choose_merge
from ivc_jax.methods.fields import check_choice, check_merge, require
from ivc_jax.methods.progressive import Family, Progressive
from ivc_jax.methods.quantile import find_quantile
from ivc_jax.methods.question import compare_with_question
from ivc_jax.methods.requests import (
    AttentionRows,
    Hidden,
    Request,
    Signals,
    TowerAttention,
    TowerFeatures,
    ask_merged,
)
from ivc_jax.methods.select import (
    NEAR,
    Segments,
    bound_total,
    from_mask,
    keep_one,
    round_counts,
    split_over_frames,
)
from ivc_jax.types import Layout, Selection, typed

# Shares kept by the first cut, and by the second of what the first has left, for 25, 50 and 75 %.
_SHARES = ((0.35, 0.42), (0.60, 0.66), (0.85, 0.70))
_LAYERS = {32: 16, 28: 15}  # depth -> second cut, as released
_TOWER = (7, 23, 32)  # first and last block of the similarity features, and the tower's depth
_ROWS = 3  # last rows of attention that the second cut reads


@dataclasses.dataclass(frozen=True)
class Nuwa(Progressive):
    """Keep strong tokens of every region and let them absorb their surroundings; then ask the text.

    The first cut, before the decoder, works in every image and every video frame alone. It keeps
    the strongest of each region's best tokens, ceil(share * tokens) of an image. Of these the
    pillars stay as they are and the others, the collectors, become weighted means of tokens near
    them, dropped ones included. The second cut, in the middle of the decoder, drops tokens of the
    whole sample, max(1, floor(share * tokens left by the first)) stay. With keep_ratio=1 no
    token is dropped, but collectors still absorb: that is not the dense model.

    With a budget the share of the second cut is interpolated between the published budgets, held
    below them and led to 1 above, and the first share is solved.

    Attributes:
        layers: 0 and the block behind the second cut; None is 16 of 32, 15 of 28, else the middle.
        ratios: shares of the unpruned tokens after the two cuts; None is (0.6, 0.6 * 0.66), the
            published 50 %.
        per_region: candidates in a region of 2 x 2 tokens; None is 3, or 4 where 3 would be too
            few for the share, the published numbers at 25, 50 and 75 %.
        distance: grid distance from which on nothing is absorbed; None is 0.8 of the distance
            between opposite corners of the grid, its odd sides rounded up to even.
        tau: quantile of the kept saliencies from which on a token is a pillar.
        diagonal: "normalized" weights add up to 1 (code for Qwen); "self_one" then counts the
            token itself with weight 1 (code for LLaVA).
        similarity: the outputs of the tower blocks from first_block to last_block are averaged;
            "merger" passes that mean through the merger, once (published); "features" averages the
            patches of a token instead.
        merge_in: what collectors absorb: features of the "tower", whose projector follows (code
            for LLaVA), or what enters the "decoder" (code for Qwen2.5-VL); None asks `resolve`:
            "tower" where a token is one patch.
        first_block: None is block 7 of 32, or what is nearest to it in a tower of another depth.
        last_block: included; None is block 23 of 32.
        text_score: of the second cut: "attention" of the last three tokens, its largest head;
            "attention_llava" of the last token, mean over heads (code for LLaVA); "embedding" is
            the cosine with the mean of the text after the first image (paper).
    """

    name: ClassVar[str] = "nuwa"

    per_region: int | None = None
    distance: float | None = None
    tau: float = 0.1
    diagonal: str = "normalized"
    similarity: str = "merger"
    first_block: int | None = None
    last_block: int | None = None
    merge_in: str | None = None
    text_score: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and (len(self.layers) != 2 or self.layers[0] != 0):
            raise MethodError(f"nuwa has two cuts, the first at layer 0; got layers {self.layers}")
        if self.ratios is not None and len(self.ratios) != 2:
            raise MethodError(f"nuwa has two cuts; give two ratios, got {self.ratios}")
        if self.per_region is not None and not 1 <= self.per_region <= 4:
            raise MethodError(f"per_region must be 1 to 4, got {self.per_region}")
        if self.distance is not None and self.distance <= 0:
            raise MethodError(f"distance must be above 0, got {self.distance}")
        if not 0 <= self.tau <= 1:
            raise MethodError(f"tau must be in [0, 1], got {self.tau}")
        check_choice("diagonal", self.diagonal, ("normalized", "self_one"))
        check_choice("similarity", self.similarity, ("merger", "features"))
        check_choice("text_score", self.text_score, ("attention", "attention_llava", "embedding"))
        check_merge(self.merge_in)
        first, last = self.first_block, self.last_block
        if min(first or 0, last or 0) < 0:
            raise MethodError(f"tower blocks count from 0, got {first} and {last}")

    def resolve(self, config: ModelConfig) -> "Nuwa":
        """Fill in layers, ratios and the tower blocks."""
        depth, (first, last, published) = config.vision.depth, _TOWER
        # Block 7 of 32 is block 2 of 8.
        first, last = (min(round(block * depth / published), depth - 1) for block in (first, last))
        first = first if self.first_block is None else self.first_block
        last = last if self.last_block is None else self.last_block
        if not first <= last < depth:
            raise MethodError(
                f"nuwa: first_block={first}, last_block={last} must ascend in {depth} tower blocks"
            )
        merge_in = choose_merge(self.merge_in, config)
        return dataclasses.replace(
            super().resolve(config), first_block=first, last_block=last, merge_in=merge_in
        )

    def _make_stage(self, layer: int, ratio: float) -> Stage:
        return Stage(layer, ratio, merge_in="decoder" if layer else self.merge_in or "decoder")

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        middle = _LAYERS.get(num_layers, max(1, round(num_layers / 2)))
        layers = self.layers or (0, middle)
        if layers[1] >= num_layers:
            raise MethodError(
                f"nuwa cuts at layer {layers[1]}, which {num_layers} blocks do not have"
            )
        # The member x of the family is the one with budget x: x = r1 * (early + late * r2).
        early = layers[1] / num_layers
        late = 1 - early

        def shares(x: float) -> tuple[float, ...]:
            first = min(1.0, x / (early + late * _second_share(x)))
            return first, min(first, (x - early * first) / late)

        return layers, shares

    @property
    def _published_ratios(self) -> tuple[float, ...]:
        first, second = _SHARES[1]
        return first, first * second

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for tower signals at the first cut, for the text's opinion at the second."""
        if self.stage_number(stage) == 0:
            return TowerAttention(), self._features, *ask_merged(stage.merge_in)
        return (self._text_request(stage),)

    @property
    def _features(self) -> TowerFeatures:
        first = require(self.first_block, self.name, "first_block")
        last = require(self.last_block, self.name, "last_block")
        return TowerFeatures(first, last, merged=self.similarity == "merger")

    def _text_request(self, stage: Stage) -> AttentionRows | Hidden:
        if self.text_score == "embedding":
            return Hidden()
        count = _ROWS if self.text_score == "attention" else 1
        return AttentionRows(stage.layer - 1, "last", count)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the first cut by the sum over the images, the second by its share of that."""
        first, _ = self.stages
        most = bound_total(self._count_first(first, visual_slots), num_images)
        if self.stage_number(stage) == 0:
            return most
        return int(self._count_second(visual_slots)[most])

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Run one of the two cuts."""
        if self.stage_number(stage) == 0:
            return self._select_first(signals, layout, stage, num_keep)
        signal = signals[self._text_request(stage)]
        if self.text_score == "embedding":
            scores = compare_with_question(signal, layout)  # [B, V]
        elif self.text_score == "attention":
            scores = signal.mean(axis=2).max(axis=1)  # of [B, H, 3, V]
        else:
            scores = signal[:, :, -1].mean(axis=1)  # of [B, H, 1, V]
        target = jnp.asarray(self._count_second(layout.visual_slots))[self._count_present(layout)]
        rank = Segments.by_sample(layout).rank(scores)
        return from_mask(rank < target[:, None], num_keep)

    def _select_first(
        self, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        saliency, within = signals[TowerAttention()](), Segments.by_frame(layout)
        # 4 * share candidates are wanted of a full region; 3 are published for the small shares.
        per_region = self.per_region or max(3, math.ceil(4 * stage.keep_ratio))
        target = split_over_frames(layout, self._count_first(stage, layout.visual_slots))
        keep = pick_from_regions(saliency, layout, per_region, target)  # [B, V]
        pillar = mark_pillars(saliency, keep, within, self.tau)  # [B, V]
        chosen = from_mask(keep, num_keep)
        weights = aggregate(  # [B, K, V]
            signals[self._features],
            chosen,
            pillar,
            layout,
            distance=self.distance,
            self_one=self.diagonal == "self_one",
        )
        return chosen.replace(weights=weights)

    def _count_present(self, layout: Layout) -> jax.Array:
        """Count the tokens that the first cut has left, without those of a modifier: int32 [B]."""
        first, within = self.stages[0], Segments.by_image(layout)
        left = within.look_up(self._count_first(first, layout.visual_slots))  # [B, V]
        # Every image has a token left, and the first one speaks for it.
        left = jnp.where(within.begins & within.valid, left, 0).sum(axis=1)
        # Regions with too few candidates leave less than that.
        return jnp.minimum(left, layout.visual_valid.sum(axis=1))

    def _count_first(self, stage: Stage, max_count: int) -> np.ndarray:
        return round_counts(stage.keep_ratio, max_count, "ceil")

    def _count_second(self, max_count: int) -> np.ndarray:
        """Tabulate what stays of every number of tokens that the first cut may leave."""
        first, second = (stage.keep_ratio for stage in self.stages)
        # Rounded so that the quotient of two published shares is a published share again.
        share = min(1.0, round(second / first, 12))
        return keep_one(round_counts(share, max_count, "floor"))


def _second_share(budget: float) -> float:
    """Interpolate the share that the second cut keeps of its tokens, published for 28 layers."""
    early = _LAYERS[28] / 28
    budgets = [first * (early + (1 - early) * second) for first, second in _SHARES]
    return float(np.interp(budget, [*budgets, 1.0], [*(second for _, second in _SHARES), 1.0]))


@typed
def number_regions(layout: Layout) -> Int[Array, "B V"]:
    """Number the regions of each sample, -1 for padding; every token must be present.

    A region is a block of 2 x 2 tokens of one image or video frame, smaller at odd borders. It is
    named after the visual index of its first token:

        0  0  2  2  4
        0  0  2  2  4        a grid of 3 x 5
       10 10 12 12 14
    """
    row, column = layout.grid[..., 1], layout.grid[..., 2]  # [B, V] both
    slots = jnp.arange(row.shape[1], dtype=jnp.int32)
    width = Segments.by_frame(layout).max(column) + 1
    return jnp.where(layout.visual_valid, slots - row % 2 * width - column % 2, -1)


@typed
def pick_from_regions(
    saliency: Float[Array, "B V"], layout: Layout, per_region: int, target: Int[Array, "B V"]
) -> Bool[Array, "B V"]:
    """Keep the `target` most salient tokens of a frame among the best few of each region.

    Equal tokens of a frame go by region first, then by index. A frame with fewer candidates than
    its target keeps them all.
    """
    valid, region = layout.visual_valid, number_regions(layout)
    V = valid.shape[1]
    inside = rank_in_segment(saliency, region, valid, NEAR)  # [B, V]
    candidate = valid & (inside < per_region)
    # In the order of regions the stable ranking breaks ties as wanted.
    order = jnp.argsort(jnp.where(valid, region, V), axis=1, stable=True)
    parts = (saliency, Segments.by_frame(layout).number, candidate)
    parts = (jnp.take_along_axis(part, order, axis=1) for part in parts)
    rank = rank_in_segment(*parts, NEAR)
    _, rank = jax.lax.sort((order, rank), num_keys=1)
    return candidate & (rank < target)


@typed
def mark_pillars(
    saliency: Float[Array, "B V"], keep: Bool[Array, "B V"], within: Segments, tau: float
) -> Bool[Array, "B V"]:
    """Mark the kept tokens that reach the tau quantile of their segment's kept saliencies."""
    return keep & (saliency >= (1 - NEAR) * find_quantile(saliency, within, tau, keep))
