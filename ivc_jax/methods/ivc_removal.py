"""The IVC ablation (IVC-Prune, arXiv 2602.03060, "without IVC tokens"): drop these tokens alone."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.cells import draw_cells
from ivc_jax.methods.coordinates import Coordinates
from ivc_jax.methods.defaults import choose_layer, fill_in
from ivc_jax.methods.fields import check_choice, check_not_negative, check_seed, flat, require
from ivc_jax.methods.requests import Request, RopeSettings, Signals
from ivc_jax.methods.select import Segments, bound_total, from_mask
from ivc_jax.types import Layout, Selection


@flat(
    *("layer", "cos_fraction", "sin_fraction", "frequencies", "positions", "axes"),
    *("position_offset", "theta", "compact_earlier_kv", "control", "seed"),
)
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
        coordinates: the IVC tokens. Both fractions 0 remove nothing.
        compact_earlier_kv: also drop the tokens from earlier caches.
        control: what goes: the "ivc" tokens; "random" tokens, IVC or not; or random "other" tokens
            outside the IVC set, all of them where rounding leaves a small image fewer.
        seed: of the draw, which is that of `Random`.
    """

    name: ClassVar[str] = "ivc_removal"

    layer: int | None = None
    coordinates: Coordinates = Coordinates()
    compact_earlier_kv: bool = True
    control: str = "ivc"
    seed: int = 0

    def __post_init__(self) -> None:
        check_not_negative(layer=self.layer)
        cosine, sine = self.coordinates.fractions
        for name, fraction in (("cos_fraction", cosine), ("sin_fraction", sine)):
            if fraction == 1:
                raise MethodError(f"{name}=1 removes whole images: choose a fraction below 1")
        check_choice("control", self.control, ("ivc", "random", "other"))
        if self.control == "other" and cosine + sine > 0.5:
            raise MethodError(
                "control=other needs as many tokens outside the IVC set: choose cos_fraction + "
                f"sin_fraction <= 0.5, got {cosine} + {sine}"
            )
        check_seed(self.seed)

    def resolve(self, config: ModelConfig) -> "IVCRemoval":
        """Fill in IVC-Prune's layer; check the planes against the model."""
        self.coordinates.check_planes(config.decoder.rope)
        layer = choose_layer(config) if self.layer is None else self.layer
        coordinates = fill_in(self.coordinates, config.released)
        return dataclasses.replace(self, layer=layer, coordinates=coordinates)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut."""
        ratio = 1 - max(self.coordinates.fractions)
        return (Stage(require(self.layer, self.name), ratio, self.compact_earlier_kv),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the rotary settings."""
        return (RopeSettings(),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens: cos and sin sets may coincide in every image."""
        sizes = np.arange(visual_slots + 1)
        cosine, sine = self.coordinates.count(visual_slots)
        least, most = np.maximum(cosine, sine), np.minimum(cosine + sine, sizes)
        if self.control == "other":
            # min(set, size - set) is concave in the set, so that one of its ends is the smallest.
            removed = np.minimum(np.minimum(least, sizes - least), np.minimum(most, sizes - most))
        else:
            removed = np.minimum(least, np.maximum(sizes - 1, 0))
        return bound_total(sizes - removed, num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Order the tokens of every image by what goes first, and drop as many as are IVC."""
        within = Segments.by_image(layout)
        marked = self.coordinates.mark(layout, signals[RopeSettings()])  # [B, V]
        if self.control == "ivc":
            order = marked.astype(jnp.float32)  # the largest go first
        else:
            draws = draw_cells(layout, self.seed)
            order = draws if self.control == "random" else jnp.where(marked, -1.0, draws)
        size = within.sum(marked.astype(jnp.int32))  # of the IVC set, [B, V]
        others = layout.image_count - size  # tokens outside the set
        removed = jnp.minimum(size, others if self.control == "other" else layout.image_count - 1)
        return from_mask(within.valid & (within.rank(order, tolerance=0.0) >= removed), num_keep)
