"""IVC-Prune (arXiv 2602.03060): implicit visual coordinates plus prompt-aware foreground."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax import ivc
from ivc_jax.config import ModelConfig
from ivc_jax.methods import budget, scoring, segments
from ivc_jax.methods.base import (
    AttentionRows,
    Method,
    MethodError,
    Request,
    RopeSettings,
    Signals,
    Stage,
    TokenVectors,
    Values,
)
from ivc_jax.methods.coordinates import (
    AXES,
    POSITIONS,
    CoordinateRules,
    Frequencies,
    budget_scale,
    canonical_frequencies,
    check_choice,
    check_fractions,
    check_frequencies,
    check_rotation,
    ivc_mask,
)
from ivc_jax.methods.foreground import (
    KEY_SCOPES,
    QUERIES,
    ForegroundRules,
    attention_scores,
    fill,
    foreground_scores,
)
from ivc_jax.methods.presets import default_layer, resolved
from ivc_jax.methods.segments import Segments
from ivc_jax.types import Layout, Selection

_PAPER_FOREGROUND = 0.4
_CHOICES = {
    "seed_rounding": ("round", "ceil"),
    "queries": QUERIES,
    "key_scope": KEY_SCOPES,
    "positions": POSITIONS,
    "axes": AXES,
    "combine": ("fill", "union"),
    "scope": ("image", "sample"),
    "score_dtype": ivc.SCORE_DTYPES,
    "quirks": ("none", "official"),
    "foreground": ("values", "attention"),
}


@dataclasses.dataclass(frozen=True)
class IVCPrune(Method):
    """Keep IVC tokens, seeds, and the tokens that text and seeds look at most.

    Constants and set logic are those of the released Qwen2.5-VL code (FireRedTeam/IVC-Prune,
    `IVCP_forward_flashattention` in modeling_qwen2_5_vl.py), in float32. Every image is pruned on
    its own, which is our generalisation: the paper has one image.

    Attributes:
        layer: first block that sees the shorter sequence; None asks `resolve`.
        keep_ratio: share of an image's tokens to keep under "fill", 0.5 without a budget. If IVC
            tokens and seeds alone are more, they all stay. Not used by "union".
        cos_fraction: share of the tokens nearest to the identity rotation.
        sin_fraction: share of the tokens nearest to a quarter turn.
        seed_fraction: share of the tokens that act as queries beside the text, at least one.
        query_offset: text slots skipped after an image before queries begin (released code: the
            end mark and one more).
        frequencies: planes in the IVC score: "all", "section", "low", "middle", "high" or indices
            (see `ivc.select`).
        combine: "fill" tops up to keep_ratio with foreground (released code); "union" is the
            paper's algorithm box: IVC tokens and a fixed share of foreground.
        foreground_fraction: that share, for "union" alone; None is the paper's 0.4.
        seed_rounding: "round" half to even (released code) or "ceil" (paper) of the seed count.
        keep_seeds: keep the seeds whatever their rank; None keeps them under "fill" (released
            code) and drops them under "union" (paper).
        queries: "after" the image only (released code), or "all" text of the prompt.
        key_scope: tokens in the softmax: those of the "image", or "all" of the prompt.
        positions: "absolute", "relative" or "index" (see `CoordinateRules`).
        axes: M-RoPE axes in the IVC score, "thw" (released code) or "hw".
        scope: "image" prunes every image on its own; "sample" pools all images of a sample in one
            softmax and one budget, asked by the text after the last of them.
        per_frame: give every frame of a video its own budget and IVC tokens; softmax and seeds
            stay those of the whole video. Images are not concerned.
        compact_earlier_kv: also drop the tokens from the caches of the blocks before the cut.
        whole_kv_layers: first blocks whose caches stay whole all the same (1 in the released code
            for LLaVA and DeepSeek-VL2).
        score_dtype: "float32", or "bfloat16" to round scores as the released code does.
        budget: mean over layers of the share in the cache, instead of keep_ratio. Below 0.5 the
            cos and sin fractions shrink with it, so that IVC tokens keep their part of what stays.
        quirks: "official" prunes the first image of a sample alone; later ones stay whole and act
            as queries, as the released code has it.
        foreground: what foreground and seeds are ranked by: similarity of "values" (as published),
            or the model's own "attention" of the same queries in the same block, whose seeds are
            kept but not asked in turn (see `attention_scores`).
        theta: base of the rotary embedding in the IVC score alone; None is the model's.
        position_offset: added to every position in the IVC score alone (see `CoordinateRules`).
    """

    name: ClassVar[str] = "ivc"

    layer: int | None = None
    keep_ratio: float | None = None
    cos_fraction: float = 0.1
    sin_fraction: float = 0.1
    seed_fraction: float = 0.01
    query_offset: int = 2
    frequencies: Frequencies = "all"
    combine: str = "fill"
    foreground_fraction: float | None = None
    seed_rounding: str = "round"
    keep_seeds: bool | None = None
    queries: str = "after"
    key_scope: str = "image"
    positions: str = "absolute"
    axes: str = "thw"
    scope: str = "image"
    per_frame: bool = False
    compact_earlier_kv: bool = True
    whole_kv_layers: int = 0
    score_dtype: str = "float32"
    quirks: str = "none"
    budget: float | None = None
    foreground: str = "values"
    theta: float | None = None
    position_offset: int = 0

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 1:
            raise MethodError(
                f"ivc needs the values of an earlier block: choose layer >= 1, got {self.layer}"
            )
        budget.settle_keep_ratio(self)
        check_fractions(
            cos_fraction=self.cos_fraction,
            sin_fraction=self.sin_fraction,
            seed_fraction=self.seed_fraction,
            foreground_fraction=self._foreground_share,
        )
        check_rotation(self.theta, self.position_offset)
        for name in ("query_offset", "whole_kv_layers"):
            if getattr(self, name) < 0:
                raise MethodError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, known in _CHOICES.items():
            check_choice(name, getattr(self, name), known)
        if self.foreground_fraction is not None and self.combine != "union":
            raise MethodError("foreground_fraction has an effect with combine=union only")
        if self.budget is not None and self.combine == "union":
            raise MethodError("combine=union keeps what its fractions say; it takes no budget")
        if self._official and (self.scope, self.per_frame, self.queries) != (
            "image",
            False,
            "after",
        ):
            raise MethodError("quirks=official fixes scope=image, per_frame=false, queries=after")
        exact = (self.quirks, self.key_scope, self.score_dtype) == ("none", "image", "float32")
        if self.foreground == "attention" and not exact:
            raise MethodError(
                "foreground=attention takes the model's rows as they are: leave quirks, key_scope "
                "and score_dtype at none, image and float32"
            )
        object.__setattr__(self, "frequencies", canonical_frequencies(self.frequencies))

    def resolve(self, config: ModelConfig) -> "IVCPrune":
        """Fill in the layer, solve the budget and check the planes against the model."""
        check_frequencies(self.frequencies, config.decoder.rope)
        layer = default_layer(config) if self.layer is None else self.layer
        scale = budget_scale(self.budget)
        method = dataclasses.replace(
            self,
            layer=layer,
            cos_fraction=scale * self.cos_fraction,
            sin_fraction=scale * self.sin_fraction,
        )
        return budget.solved(method, config.decoder.num_layers)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut."""
        if self.combine == "union":
            ratio = min(1.0, self._foreground_share + self.cos_fraction + self.sin_fraction)
        else:
            ratio = budget.resolved_ratio(self)
        layer = resolved(self.layer, self.name)
        return (Stage(layer, ratio, self.compact_earlier_kv, self.whole_kv_layers),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for values, or attention, of the block before the cut, and the rotary settings."""
        return self._content(stage), RopeSettings()

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens: the target or all of the priority set, by segment."""
        if self._official and num_images > 1:
            return visual_slots  # the first image may be the smallest, and the others stay whole
        if self.scope == "sample":
            num_images = 1
        seeds = self._seed_counts(visual_slots)
        if not self.per_frame:
            return scoring.largest_total(self._most_kept(visual_slots, seeds), num_images)
        # Nothing static says how many frames there are, nor on which of them the seeds lie.
        kept = self._most_kept(visual_slots, np.zeros_like(seeds))
        most = scoring.largest_total(kept, visual_slots)
        if self._seeds_stay:
            most += scoring.largest_total(seeds, num_images)
        return min(visual_slots, most)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Rank by IVC scores and by what text and seeds look at, then combine."""
        slots = layout.visual_slots
        asked = segments.samples(layout) if self.scope == "sample" else segments.images(layout)
        shared = segments.frames(layout) if self.per_frame else asked
        priority = ivc_mask(
            layout,
            signals[RopeSettings()],
            self._coordinate_rules,
            scoring.rounded_counts(self.cos_fraction, slots),
            scoring.rounded_counts(self.sin_fraction, slots),
            within=shared,
        )
        foreground, seeds = self._score_foreground(signals[self._content(stage)], layout, asked)
        if self._seeds_stay:
            priority |= seeds
        counts = scoring.rounded_counts(
            self.keep_ratio if self.combine == "fill" else self._foreground_share, slots
        )
        counts = jnp.asarray(counts)[shared.count]
        if self.combine == "fill":
            keep = fill(foreground, priority, counts, shared.number)
        else:
            rank = scoring.rank_in_segment(foreground, shared.number, layout.visual_valid)
            keep = priority | (rank < counts)
        if self._official:
            keep |= layout.visual_valid & (layout.image_id > 0)
        return scoring.from_mask(keep, num_keep)

    def _content(self, stage: Stage) -> Request:
        """Return the request that the foreground is made of."""
        if self.foreground == "attention":
            return AttentionRows(stage.layer - 1, "text")
        return Values(stage.layer - 1)

    def _score_foreground(
        self, signal: TokenVectors | jax.Array, layout: Layout, asked: Segments
    ) -> tuple[jax.Array, jax.Array]:
        """Return the foreground scores and the mask of the seeds, both [B, V]."""
        counts = self._seed_counts(layout.visual_slots)
        of_token = jnp.asarray(counts)[asked.count]
        rules = self._foreground_rules
        if self.foreground == "attention":
            return attention_scores(signal, layout, asked, of_token, rules)
        bound = scoring.largest_total(counts, asked.bound)
        return foreground_scores(signal, layout, asked, of_token, bound, rules)

    @property
    def _foreground_share(self) -> float:
        return _PAPER_FOREGROUND if self.foreground_fraction is None else self.foreground_fraction

    @property
    def _official(self) -> bool:
        return self.quirks == "official"

    @property
    def _seeds_stay(self) -> bool:
        return self.combine == "fill" if self.keep_seeds is None else self.keep_seeds

    @property
    def _coordinate_rules(self) -> CoordinateRules:
        return CoordinateRules(
            self.frequencies,
            self.positions,
            self.axes,
            self.score_dtype,
            self.theta,
            self.position_offset,
        )

    @property
    def _foreground_rules(self) -> ForegroundRules:
        return ForegroundRules(
            self.query_offset, self.queries, self.key_scope, self.score_dtype, self._official
        )

    def _seed_counts(self, max_count: int) -> np.ndarray:
        counts = scoring.rounded_counts(self.seed_fraction, max_count, self.seed_rounding)
        return np.minimum(np.maximum(counts, 1), np.arange(max_count + 1, dtype=np.int32))

    def _most_kept(self, max_count: int, seeds: np.ndarray) -> np.ndarray:
        """Bound the kept tokens of a segment of each size 0 .. max_count."""
        most = scoring.rounded_counts(self.cos_fraction, max_count)
        most = most + scoring.rounded_counts(self.sin_fraction, max_count)
        if self._seeds_stay:
            most = most + seeds
        if self.combine == "fill":
            most = np.maximum(most, scoring.rounded_counts(self.keep_ratio, max_count))
        else:
            most = most + scoring.rounded_counts(self._foreground_share, max_count)
        return np.minimum(most, np.arange(max_count + 1))
