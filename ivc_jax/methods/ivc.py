"""IVC-Prune (arXiv 2602.03060): implicit visual coordinates plus prompt-aware foreground."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax import ivc
from ivc_jax.config import ModelConfig, Released
from ivc_jax.methods import budget, views
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.coordinates import Coordinates
from ivc_jax.methods.defaults import choose_layer, fill_in
from ivc_jax.methods.fields import (
    check_choice,
    check_fractions,
    check_not_negative,
    flat,
    require,
)
from ivc_jax.methods.foreground import Foreground, fill
from ivc_jax.methods.requests import RawValues, Request, RopeSettings, Signals
from ivc_jax.methods.select import Segments, bound_total, from_mask, keep_one, round_counts
from ivc_jax.methods.tiles import check_tiles, find_thumbnails
from ivc_jax.methods.tiles import combine as combine_tiles
from ivc_jax.types import Layout, Selection

_PAPER_FOREGROUND = 0.4  # share of the tokens, under "union"
_HALF = 0.5  # the keep ratio that is not asked for
_BY_FRACTIONS = ("union", "views")  # they keep what that comes to
_CHOICES = {
    "combine": ("fill", "union", "tiles", "views"),
    "scope": ("image", "sample"),
    "score_dtype": ivc.SCORE_DTYPES,
    "quirks": ("none", "official"),
}


@flat(
    *("layer", "keep_ratio", "coordinates", "random_seed", "cos_fraction", "sin_fraction"),
    *("seed_fraction", "query_offset"),
    *("frequencies", "combine", "foreground_fraction", "seed_rounding", "keep_seeds", "queries"),
    *("key_scope", "positions", "axes", "scope", "per_frame", "compact_earlier_kv"),
    *("whole_kv_layers", "score_dtype", "quirks", "budget", "foreground", "theta"),
    "position_offset",
)
@dataclasses.dataclass(frozen=True)
class IVCPrune(Method):
    """Keep IVC tokens, seeds, and the tokens that text and seeds look at most.

    Constants and set logic are those of the released Qwen2.5-VL code (FireRedTeam/IVC-Prune,
    `IVCP_forward_flashattention` in modeling_qwen2_5_vl.py), in float32. Every image is pruned on
    its own, which is our generalisation: the paper has one image.

    Attributes:
        layer: first block that sees the shorter sequence; None asks `resolve`.
        keep_ratio: share of an image's tokens to keep under "fill", 0.5 without a budget. If IVC
            tokens and seeds alone are more, they all stay under "fill". Not used by "union".
        coordinates: the IVC tokens, or as many others; the name of a rule stands for
            `Coordinates(rule=...)`.
        foreground_rule: what text and seeds look at.
        combine: "fill" tops up to keep_ratio with foreground (released code for Qwen2.5-VL);
            "union" is the paper's algorithm box: IVC tokens and a fixed share of foreground;
            "tiles" looks up the foreground of a thumbnail in the tiles of its picture, up to
            keep_ratio (released code for InternVL2.5, see `methods.tiles`); "views" looks up the
            foreground of a view of the whole in the mosaic beside it (for DeepSeek-VL2, see
            `methods.views`). None is the released code's for the model, or "fill" in the place of
            "union" and "views" where a budget or another keep_ratio than 0.5 is asked for.
        foreground_fraction: that share, for "union"; for "views" that of a view which its IVC
            tokens and foreground are together. None is the released code's where the model's rule
            is this one, or the paper's 0.4.
        keep_seeds: keep the seeds whatever their rank; None is the released code's for the model,
            where it says so, or keeps them under "fill" and drops them under "union" (paper).
        scope: "image" prunes every image on its own; "sample" pools all images of a sample in one
            softmax and one budget, asked by the text after the last of them.
        per_frame: give every frame of a video its own budget and IVC tokens; softmax and seeds
            stay those of the whole video. Images are not concerned.
        compact_earlier_kv: also drop the tokens from the caches of the blocks before the cut.
        whole_kv_layers: first blocks whose caches stay whole all the same (1 in the released code
            for LLaVA and DeepSeek-VL2).
        score_dtype: "float32", or "bfloat16" to round scores as the released code does.
        quirks: "official" prunes the first image of a sample alone; later ones stay whole and act
            as queries, as the released code has it. Under "tiles" it takes values of hidden states
            that were not normed.
        budget: mean over layers of the share in the cache, instead of keep_ratio. Below 0.5 the
            cos and sin fractions shrink with it, so that IVC tokens keep their part of what stays.
    """

    name: ClassVar[str] = "ivc"

    layer: int | None = None
    keep_ratio: float | None = None
    coordinates: Coordinates = Coordinates()
    foreground_rule: Foreground = Foreground()
    combine: str | None = None
    foreground_fraction: float | None = None
    keep_seeds: bool | None = None
    scope: str = "image"
    per_frame: bool = False
    compact_earlier_kv: bool = True
    whole_kv_layers: int = 0
    score_dtype: str = "float32"
    quirks: str = "none"
    budget: float | None = None
    view_side: int | None = None  # cells along a view of the whole: `resolve` fills it in

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 1:
            raise MethodError(
                f"ivc needs the values of an earlier block: choose layer >= 1, got {self.layer}"
            )
        budget.settle_keep_ratio(self, _HALF)
        check_fractions(foreground_fraction=self._foreground_share)
        check_not_negative(whole_kv_layers=self.whole_kv_layers)
        for name, known in _CHOICES.items():
            check_choice(name, getattr(self, name), known)
        if self.foreground_fraction is not None and self.combine not in _BY_FRACTIONS:
            raise MethodError("foreground_fraction has an effect with combine=union only, or views")
        if self.budget is not None and self.combine in _BY_FRACTIONS:
            raise MethodError(
                f"combine={self.combine} keeps what its fractions say; it takes no budget"
            )
        rule = self.foreground_rule
        usual = (self.scope, self.per_frame, rule.queries) == ("image", False, "after")
        if self._official and not usual:
            raise MethodError("quirks=official fixes scope=image, per_frame=false, queries=after")
        alone = self.combine in ("tiles", "views")
        if alone and (self.scope, self.per_frame) != ("image", False):
            raise MethodError(
                f"combine={self.combine} prunes every image alone: leave scope and per_frame"
            )
        exact = (self.quirks, self.score_dtype) == ("none", "float32")
        if rule.foreground == "attention" and not (exact and rule.key_scope in (None, "image")):
            raise MethodError(
                "foreground=attention takes the model's rows as they are: leave quirks, key_scope "
                "and score_dtype at none, image and float32"
            )

    def resolve(self, config: ModelConfig) -> "IVCPrune":
        """Fill in what the released code does on the model, solve the budget, check the planes."""
        self.coordinates.check_planes(config.decoder.rope)
        released, combine = config.released, self._choose_combine(config.released)
        vision = config.vision
        if combine == "views" and vision.view_size is None:
            raise MethodError(
                f"combine=views needs a view of the whole beside a mosaic, which {config.family}"
                " does not have; choose another, or leave it out"
            )
        if combine != released.combine:  # a share of that rule alone
            released = dataclasses.replace(released, foreground_fraction=None)
        method = dataclasses.replace(
            self,
            layer=choose_layer(config) if self.layer is None else self.layer,
            combine=combine,
            # now: solving the budget forgets it
            coordinates=fill_in(self.coordinates, released).shrink(self.budget),
            foreground_rule=self.foreground_rule.resolve(released),
            view_side=vision.view_size and -(-vision.table_side // vision.spatial_merge_size),
        )
        return budget.resolve(fill_in(method, released), config.decoder.num_layers)

    def _choose_combine(self, released: Released) -> str:
        if self.combine is not None:
            return self.combine
        asked = self.budget is not None or self.keep_ratio != _HALF
        return "fill" if asked and released.combine in _BY_FRACTIONS else released.combine

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut."""
        if self.combine == "views":
            ratio = self._foreground_share  # of the view; learned tokens and coordinates add to it
        elif self.combine != "union":
            ratio = require(self.keep_ratio, self.name, "keep_ratio")
        else:
            # In this order: the sum of floats is a share that records hold.
            ratio = min(1.0, sum(self.coordinates.fractions, self._foreground_share))
        layer = require(self.layer, self.name)
        return (Stage(layer, ratio, self.compact_earlier_kv, self.whole_kv_layers),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for values, or attention, of the block before the cut, and the rotary settings."""
        return self._request(stage), RopeSettings()

    def _request(self, stage: Stage) -> Request:
        # The released code for tiles applies the projection to what enters the block.
        if self._official and self._tiled:
            return RawValues(stage.layer - 1)
        return self.foreground_rule.request(stage)

    def check(self, layout: Layout) -> None:
        """Refuse pictures whose tiles nobody knows, where they matter."""
        if self._tiled:
            check_tiles(layout)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens: the target or all of the priority set, by segment."""
        if self._tiled:
            return bound_total(keep_one(round_counts(self.keep_ratio, visual_slots)), num_images)
        if self._official and num_images > 1:
            return visual_slots  # the first image may be the smallest, and the others stay whole
        if self.combine == "views":
            return self._bound_views(visual_slots, num_images)
        if self.scope == "sample":
            num_images = 1  # a sample is one segment, whatever it shows
        seeds = self.foreground_rule.count_seeds(visual_slots)  # [V + 1], by size of a segment
        if not self.per_frame:
            return bound_total(self._bound_segment(visual_slots, seeds), num_images)
        # Nothing static says how many frames there are, nor on which of them the seeds lie.
        kept = self._bound_segment(visual_slots, np.zeros_like(seeds))
        most = bound_total(kept, visual_slots)  # at most V frames of one token each
        if self._seeds_stay:
            most += bound_total(seeds, num_images)
        return min(visual_slots, most)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Rank by IVC scores and by what text and seeds look at, then combine."""
        if self._tiled or self.combine == "views":
            return from_mask(self._mark_parts(signals, layout, stage), num_keep)
        marked = self._mark_coordinates(signals, layout)
        return self.add_foreground(marked, signals, layout, stage, num_keep)

    def take_apart(self, signals: Signals, layout: Layout, stage: Stage) -> dict[str, jax.Array]:
        """Return V, U, the IVC tokens, the seeds and the foreground scores."""
        cosine, sine = self.coordinates.rate(layout, signals[RopeSettings()], self.score_dtype)
        score, seeds = self._score(signals, layout, stage)
        marked = self._mark_coordinates(signals, layout)
        parts = {"cosine": cosine, "sine": sine, "coordinates": marked}
        return parts | {"seeds": seeds, "score": score}

    def add_foreground(
        self, marked: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Keep the tokens marked, [B, V], and what text and seeds look at, under "fill" or "union".

        Args:
            marked: the IVC tokens; other arguments as in `select`.
        """
        _, shared = self._group(layout)
        scores, seeds = self._score(signals, layout, stage)
        priority = marked
        if self._seeds_stay:
            priority |= seeds  # what stays whatever its foreground
        share = self.keep_ratio if self._filled else self._foreground_share
        counts = shared.look_up(round_counts(share, layout.visual_slots))  # [B, V]
        if self._filled:
            keep = fill(scores, priority, counts, shared)  # [B, V]
        else:
            keep = priority | shared.top(scores, counts)
        if self._official:
            # images behind the first stay whole
            keep |= layout.visual_valid & (layout.image_id > 0)
        return from_mask(keep, num_keep)

    def _group(self, layout: Layout) -> tuple[Segments, Segments]:
        """Say what shares a softmax and its seeds, and what shares a budget and IVC tokens."""
        pooled = self.scope == "sample"
        asked = Segments.by_sample(layout) if pooled else Segments.by_image(layout)
        return asked, Segments.by_frame(layout) if self.per_frame else asked

    def _mark_coordinates(self, signals: Signals, layout: Layout) -> jax.Array:
        """Mark the IVC tokens: [B, V]."""
        rope = signals[RopeSettings()]
        if self.combine == "views":
            return views.mark_coordinates(self.coordinates, layout, rope, self.score_dtype)
        shared = Segments.by_frame(layout) if self._tiled else self._group(layout)[1]
        return self.coordinates.mark(layout, rope, shared, self.score_dtype)

    def _score(self, signals: Signals, layout: Layout, stage: Stage) -> tuple[jax.Array, jax.Array]:
        """Return the foreground scores and the mask of the seeds, [B, V] both."""
        signal, rule = signals[self._request(stage)], self.foreground_rule
        if self._tiled:
            return rule.score(signal, layout, find_thumbnails(layout), self.score_dtype)
        if self.combine == "views":
            shown = views.find_views(layout)
            among = shown.valid & layout.content
            return rule.score(
                *(signal, layout, shown, self.score_dtype, self._official), among=among, least=0
            )
        asked, _ = self._group(layout)
        return rule.score(signal, layout, asked, self.score_dtype, self._official)

    def _mark_parts(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        """Mark what is kept under "tiles" and "views": [B, V]."""
        coordinates = self._mark_coordinates(signals, layout)
        scores, seeds = self._score(signals, layout, stage)
        seeds = seeds if self._seeds_stay else jnp.zeros_like(seeds)
        if self._tiled:
            return combine_tiles(coordinates, scores, seeds, layout, self.keep_ratio)
        keep = views.combine(coordinates, scores, seeds, layout, self._foreground_share)
        if self._official:
            keep |= layout.visual_valid & (layout.image_id > 0)
        return keep

    def _bound_views(self, visual_slots: int, num_images: int) -> int:
        """Bound what "views" keeps."""
        if self.view_side is None:
            return visual_slots
        seeds = self.foreground_rule.count_seeds(self.view_side**2, least=0)
        counts = views.bound_picture(
            *(visual_slots, self.view_side, self.coordinates),
            *(int(seeds.max()), self._foreground_share),
        )
        return bound_total(counts, num_images)

    @property
    def _foreground_share(self) -> float:
        return _PAPER_FOREGROUND if self.foreground_fraction is None else self.foreground_fraction

    @property
    def _official(self) -> bool:
        return self.quirks == "official"

    @property
    def _seeds_stay(self) -> bool:
        return self.combine != "union" if self.keep_seeds is None else self.keep_seeds

    @property
    def _tiled(self) -> bool:
        return self.combine == "tiles"

    @property
    def _filled(self) -> bool:
        return (self.combine or Released.combine) == "fill"

    def _bound_segment(self, max_count: int, seeds: np.ndarray) -> np.ndarray:
        """Bound the kept tokens of a segment of each size 0 .. max_count."""
        most = sum(self.coordinates.count(max_count))  # where no token is in both sets
        if self._seeds_stay:
            most = most + seeds
        if self._filled:
            most = np.maximum(most, round_counts(self.keep_ratio, max_count))
        else:
            most = most + round_counts(self._foreground_share, max_count)
        # a segment has no more tokens than its size
        return np.minimum(most, np.arange(max_count + 1))
