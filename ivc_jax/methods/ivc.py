"""IVC-Prune (arXiv 2602.03060): implicit visual coordinates plus prompt-aware foreground."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax import ivc
from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.methods import scoring
from ivc_jax.methods.base import (
    Method,
    MethodError,
    Request,
    RopeSettings,
    Signals,
    Stage,
    Values,
    check_keep_ratio,
)
from ivc_jax.methods.foreground import fill, foreground_scores
from ivc_jax.types import Layout, Selection

Frequencies = str | tuple[int, ...]

# (family, blocks) -> first pruned block, as released (VLMEvalKit/vlmeval/config.py, "ivcp_k").
_RELEASED_LAYERS = {("qwen2_5_vl", 28): 16, ("qwen2_5_vl", 36): 22}
_PAPER_FOREGROUND = 0.4
_COMBINE = ("fill", "union")


def default_layer(config: ModelConfig) -> int:
    """Return the released layer of a known model, else two thirds of the depth."""
    depth = config.decoder.num_layers
    released = _RELEASED_LAYERS.get((config.family, depth))
    return released or min(max(1, round(2 * depth / 3)), depth - 1)


def resolved(layer: int | None, name: str) -> int:
    """Return `layer`, or raise MethodError if it still depends on the model."""
    if layer is None:
        raise MethodError(f"{name}: layer is not set; give layer=... or call resolve(config)")
    return layer


def canonical_frequencies(frequencies: Frequencies) -> Frequencies:
    """Sort plane indices, so that equal sets are equal fields; check the words.

    Raises:
        MethodError: an unknown word or an impossible plane.
    """
    if isinstance(frequencies, str):
        if frequencies not in ("all", "section"):
            raise MethodError(
                f'frequencies must be "all", "section" or plane indices, got {frequencies!r}'
            )
        return frequencies
    planes = tuple(sorted({int(plane) for plane in frequencies}))
    # A mask of bools would be read as planes 0 and 1.
    if not planes or planes[0] < 0 or any(isinstance(plane, bool) for plane in frequencies):
        raise MethodError(f"frequencies must be plane indices from 0 on, got {tuple(frequencies)}")
    return planes


def check_fractions(**fractions: float) -> None:
    """Raise MethodError unless every named fraction is in [0, 1]."""
    try:
        ivc.check_fractions(**fractions)
    except ValueError as error:
        raise MethodError(str(error)) from None


def check_frequencies(frequencies: Frequencies, rope: RopeConfig) -> None:
    """Raise MethodError if the rotary embedding of the model lacks the planes asked for."""
    try:
        ivc.make_tables(rope, frequencies, num_positions=1)
    except ValueError as error:
        raise MethodError(str(error)) from None


def ivc_mask(
    layout: Layout,
    rope: RopeConfig,
    frequencies: Frequencies,
    cos_counts: np.ndarray,
    sin_counts: np.ndarray,
) -> jax.Array:
    """Mark the IVC tokens of every image: bool [B, V].

    Args:
        cos_counts: tokens to take by V(m) from an image of each unpruned size.
        sin_counts: the same for U(m).
    """
    return ivc.tokens(
        ivc.make_tables(rope, frequencies, layout.num_positions),
        scoring.visual_positions(layout),
        layout.image_id,
        layout.visual_valid,
        jnp.asarray(cos_counts)[layout.image_count],
        jnp.asarray(sin_counts)[layout.image_count],
    )


@dataclasses.dataclass(frozen=True)
class IVCPrune(Method):
    """Keep IVC tokens, seeds, and the tokens that text and seeds look at most.

    Constants and set logic are those of the released Qwen2.5-VL code (FireRedTeam/IVC-Prune,
    `IVCP_forward_flashattention` in modeling_qwen2_5_vl.py), in float32. Every image is pruned on
    its own, which is our generalisation: the paper has one image.

    Attributes:
        layer: first block that sees the shorter sequence; None asks `resolve`.
        keep_ratio: share of an image's tokens to keep under "fill". If IVC tokens and seeds alone
            are more, they all stay. Not used by "union".
        cos_fraction: share of the tokens nearest to the identity rotation.
        sin_fraction: share of the tokens nearest to a quarter turn.
        seed_fraction: share of the tokens that act as queries beside the text, at least one.
        query_offset: text slots skipped after an image before queries begin (released code: the
            end mark and one more).
        frequencies: planes in the IVC score: "all", "section" or indices (see `ivc.select`).
        combine: "fill" tops up to keep_ratio with foreground (released code); "union" is the
            paper's algorithm box: IVC tokens and a fixed share of foreground, seeds only if they
            are among it.
        foreground_fraction: that share, for "union" alone; None is the paper's 0.4.
    """

    name: ClassVar[str] = "ivc"

    layer: int | None = None
    keep_ratio: float = 0.5
    cos_fraction: float = 0.1
    sin_fraction: float = 0.1
    seed_fraction: float = 0.01
    query_offset: int = 2
    frequencies: Frequencies = "all"
    combine: str = "fill"
    foreground_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 1:
            raise MethodError(
                f"ivc needs the values of an earlier block: choose layer >= 1, got {self.layer}"
            )
        check_keep_ratio(self.keep_ratio)
        check_fractions(
            cos_fraction=self.cos_fraction,
            sin_fraction=self.sin_fraction,
            seed_fraction=self.seed_fraction,
            foreground_fraction=self._foreground,
        )
        if self.query_offset < 0:
            raise MethodError(f"query_offset must not be negative, got {self.query_offset}")
        if self.combine not in _COMBINE:
            raise MethodError(f"combine must be one of {_COMBINE}, got {self.combine!r}")
        if self.foreground_fraction is not None and self.combine != "union":
            raise MethodError("foreground_fraction has an effect with combine=union only")
        object.__setattr__(self, "frequencies", canonical_frequencies(self.frequencies))

    def resolve(self, config: ModelConfig) -> "IVCPrune":
        """Fill in the layer and check the planes against the model."""
        check_frequencies(self.frequencies, config.decoder.rope)
        layer = default_layer(config) if self.layer is None else self.layer
        return dataclasses.replace(self, layer=layer)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut that also compacts the caches of the blocks before it."""
        ratio = self.keep_ratio
        if self.combine == "union":
            ratio = min(1.0, self._foreground + self.cos_fraction + self.sin_fraction)
        return (Stage(resolved(self.layer, self.name), ratio, compact_earlier_kv=True),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the values of the block before the cut, and the rotary settings."""
        return Values(stage.layer - 1), RopeSettings()

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens: per image the target or all of the priority set."""
        return scoring.largest_total(self._most_kept(visual_slots), num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Rank by IVC scores and by two passes of value attention, then combine."""
        slots = layout.visual_slots
        values, rope = signals[Values(stage.layer - 1)], signals[RopeSettings()]
        coordinates = ivc_mask(
            layout,
            rope,
            self.frequencies,
            scoring.rounded_counts(self.cos_fraction, slots),
            scoring.rounded_counts(self.sin_fraction, slots),
        )
        seed_counts = self._seed_counts(slots)
        foreground, seeds = foreground_scores(
            values,
            layout,
            jnp.asarray(seed_counts)[layout.image_count],
            num_seeds=scoring.largest_total(seed_counts, layout.num_images),
            query_offset=self.query_offset,
        )
        if self.combine == "fill":
            priority, target = coordinates | seeds, self._fill_counts(slots)
            keep = fill(foreground, priority, jnp.asarray(target)[layout.image_count], layout)
        else:
            counts = jnp.asarray(scoring.rounded_counts(self._foreground, slots))
            rank = scoring.rank_in_segment(foreground, layout.image_id, layout.visual_valid)
            keep = coordinates | (rank < counts[layout.image_count])
        return scoring.from_mask(keep, num_keep)

    @property
    def _foreground(self) -> float:
        return _PAPER_FOREGROUND if self.foreground_fraction is None else self.foreground_fraction

    def _seed_counts(self, max_count: int) -> np.ndarray:
        counts = scoring.rounded_counts(self.seed_fraction, max_count)
        return np.minimum(np.maximum(counts, 1), np.arange(max_count + 1, dtype=np.int32))

    def _fill_counts(self, max_count: int) -> np.ndarray:
        return scoring.rounded_counts(self.keep_ratio, max_count)

    def _most_kept(self, max_count: int) -> np.ndarray:
        """Bound the kept tokens of an image of each size 0 .. max_count."""
        most = scoring.rounded_counts(self.cos_fraction, max_count)
        most = most + scoring.rounded_counts(self.sin_fraction, max_count)
        if self.combine == "fill":
            most = np.maximum(most + self._seed_counts(max_count), self._fill_counts(max_count))
        else:
            most = most + scoring.rounded_counts(self._foreground, max_count)
        return np.minimum(most, np.arange(max_count + 1))
