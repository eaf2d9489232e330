"""The IVC ablation (IVC-Prune, arXiv 2602.03060, "without IVC tokens"): drop these tokens alone."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods import scoring
from ivc_jax.methods.base import Method, MethodError, Request, RopeSettings, Signals, Stage
from ivc_jax.methods.baselines import cell_draws, check_seed
from ivc_jax.methods.coordinates import (
    AXES,
    POSITIONS,
    CoordinateRules,
    Frequencies,
    canonical_frequencies,
    check_choice,
    check_fractions,
    check_frequencies,
    check_rotation,
    ivc_mask,
)
from ivc_jax.methods.presets import default_layer, resolved
from ivc_jax.types import Layout, Selection

_CHOICES = {"positions": POSITIONS, "axes": AXES, "control": ("ivc", "random", "other")}


@dataclasses.dataclass(frozen=True)
class IVCRemoval(Method):
    """Keep everything but the IVC tokens, or but as many others.

    Every image loses as many tokens as its IVC set has, whichever they are, so that "ivc" and its
    controls are compared at equal counts. One token of each image always stays: the last one if
    the IVC set is the whole image. The paper does not say at which block, nor whether 10 % or
    20 %; the defaults are those of `IVCPrune`. The share of a stage is the most that can stay,
    which is all but the larger of the two fractions: cos and sin tokens may coincide.

    Attributes:
        layer: first block that sees the shorter sequence, 0 is before the decoder; None asks
            `resolve`.
        cos_fraction: share of an image's tokens nearest to the identity rotation, rounded half to
            even. Both fractions 0 remove nothing.
        sin_fraction: the same, nearest to a quarter turn.
        frequencies: planes in the IVC score: "all", "section", "low", "middle", "high" or indices
            (see `ivc.select`).
        positions: "absolute", "relative" or "index" (see `CoordinateRules`).
        axes: M-RoPE axes in the IVC score, "thw" (released code) or "hw".
        position_offset: added to every position in the IVC score alone (see `CoordinateRules`).
        theta: base of the rotary embedding in the IVC score alone; None is the model's.
        compact_earlier_kv: also drop the tokens from earlier caches.
        control: what goes: the "ivc" tokens; "random" tokens, IVC or not; or random "other" tokens
            outside the IVC set, all of them where rounding leaves a small image fewer.
        seed: of the draw, which is that of `Random`.
    """

    name: ClassVar[str] = "ivc_removal"

    layer: int | None = None
    cos_fraction: float = 0.1
    sin_fraction: float = 0.1
    frequencies: Frequencies = "all"
    positions: str = "absolute"
    axes: str = "thw"
    position_offset: int = 0
    theta: float | None = None
    compact_earlier_kv: bool = True
    control: str = "ivc"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 0:
            raise MethodError(f"layer must not be negative, got {self.layer}")
        fractions = {"cos_fraction": self.cos_fraction, "sin_fraction": self.sin_fraction}
        check_fractions(**fractions)
        for name, fraction in fractions.items():
            if fraction == 1:
                raise MethodError(f"{name}=1 removes whole images: choose a fraction below 1")
        for name, known in _CHOICES.items():
            check_choice(name, getattr(self, name), known)
        if self.control == "other" and self.cos_fraction + self.sin_fraction > 0.5:
            raise MethodError(
                "control=other needs as many tokens outside the IVC set: choose cos_fraction + "
                f"sin_fraction <= 0.5, got {self.cos_fraction} + {self.sin_fraction}"
            )
        check_rotation(self.theta, self.position_offset)
        check_seed(self.seed)
        object.__setattr__(self, "frequencies", canonical_frequencies(self.frequencies))

    def resolve(self, config: ModelConfig) -> "IVCRemoval":
        """Fill in IVC-Prune's layer; check the planes against the model."""
        check_frequencies(self.frequencies, config.decoder.rope)
        layer = default_layer(config) if self.layer is None else self.layer
        return dataclasses.replace(self, layer=layer)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut."""
        ratio = 1 - max(self.cos_fraction, self.sin_fraction)
        return (Stage(resolved(self.layer, self.name), ratio, self.compact_earlier_kv),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the rotary settings."""
        return (RopeSettings(),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens: cos and sin sets may coincide in every image."""
        sizes = np.arange(visual_slots + 1)
        cosine, sine = self._counts(visual_slots)
        least, most = np.maximum(cosine, sine), np.minimum(cosine + sine, sizes)
        if self.control == "other":
            # min(set, size - set) is concave in the set, so that one of its ends is the smallest.
            removed = np.minimum(np.minimum(least, sizes - least), np.minimum(most, sizes - most))
        else:
            removed = np.minimum(least, np.maximum(sizes - 1, 0))
        return scoring.largest_total(sizes - removed, num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Order the tokens of every image by what goes first, and drop as many as are IVC."""
        rules = CoordinateRules(
            self.frequencies,
            self.positions,
            self.axes,
            theta=self.theta,
            position_offset=self.position_offset,
        )
        counts = self._counts(layout.visual_slots)
        marked = ivc_mask(layout, signals[RopeSettings()], rules, *counts)
        sizes = scoring.segment_sum(marked.astype(jnp.int32), layout.image_id, layout.num_images)
        size = scoring.spread(sizes, layout.image_id)
        others = layout.image_count - size
        removed = jnp.minimum(size, others if self.control == "other" else layout.image_count - 1)
        rank = scoring.rank_in_segment(
            self._order(marked, layout), layout.image_id, layout.visual_valid
        )
        return scoring.from_mask(layout.visual_valid & (rank >= removed), num_keep)

    def _order(self, marked: jax.Array, layout: Layout) -> jax.Array:
        """Score tokens [B, V]; the largest go first."""
        if self.control == "ivc":
            return marked.astype(jnp.float32)
        draws = cell_draws(layout, self.seed)
        return draws if self.control == "random" else jnp.where(marked, -1.0, draws)

    def _counts(self, max_count: int) -> tuple[np.ndarray, np.ndarray]:
        cosine = scoring.rounded_counts(self.cos_fraction, max_count)
        return cosine, scoring.rounded_counts(self.sin_fraction, max_count)
