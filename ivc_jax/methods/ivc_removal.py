"""The IVC ablation (IVC-Prune, arXiv 2602.03060, "without IVC tokens"): drop these tokens alone."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.controls import CONTROLS, OUTSIDE, order_tokens
from ivc_jax.methods.coordinates import Coordinates
from ivc_jax.methods.defaults import choose_layer, fill_in
from ivc_jax.methods.fields import check_choice, check_not_negative, check_seed, flat, require
from ivc_jax.methods.requests import Objects, Request, RopeSettings, Signals
from ivc_jax.methods.select import Segments, bound_total, from_mask
from ivc_jax.types import Layout, Selection


@flat(
    *("layer", "depth", "cos_fraction", "sin_fraction", "frequencies", "positions", "axes"),
    *("position_offset", "theta", "compact_earlier_kv", "control", "among", "seed"),
)
@dataclasses.dataclass(frozen=True)
class IVCRemoval(Method):
    """Keep everything but the IVC tokens, or but as many others.

    Every image loses as many tokens as its IVC set has, whichever they are, so that "ivc" and its
    controls are compared at equal counts. One token of each image always stays: the last to go, if
    the IVC set is the whole image. The paper does not say at which block, nor whether 10 % or
    20 %; the defaults are those of `IVCPrune`. The share of a stage is the most that can stay,
    which is all but the larger of the two fractions: cos and sin tokens may coincide.

    Controls, in each image or whole video; of equal tokens the first in raster order goes:

    - "ivc": the IVC tokens.
    - "random": drawn from all tokens.
    - "other": drawn from those outside the IVC set; all of these where they are fewer than it.
    - "rank", matched for causal order: for each IVC token, in raster order, one that is left
      outside the set, drawn from its row, or from the nearest row, above or below, that has one;
      all of these where they are fewer.
    - "first", "last": in raster order, which is that of the prompt.
    - "nearest": to the first cell, by the straight distance in the grid.
    - "first_columns", "last_columns": whole columns from the left or the right, top to bottom.
    - "mirror_lr", "mirror_ud", "mirror_both": the IVC tokens mirrored in the grid of their frame,
      left to right, upside down, or both.
    - "block": those nearest to a drawn cell.
    - "lattice": an even cover, that of `Uniform`.

    Frames (tiles are frames) follow each other in raster order, and are the third axis of
    distances. Sets of shifted positions are "ivc" with a `position_offset`: cos and sin tokens may
    coincide more or less often there, so that their number is that of a control with the same
    offset, and may differ by a few from that of the set that is not shifted.

    Attributes:
        layer: first block that sees the shorter sequence, 0 is before the decoder; None asks
            `resolve`.
        coordinates: the IVC tokens. Both fractions 0 remove nothing.
        compact_earlier_kv: also drop the tokens from earlier caches.
        control: what goes, see above.
        seed: of the draw, which is that of `Random`.
        among: "all" tokens may go, or "background" alone: no token that holds a part of an
            annotated object, neither by "ivc" nor by a control; as many go as the IVC set has of
            the background. A mirror image that may not go gives way to the nearest token that may.
            The batch must say where objects are (`Objects`).
        depth: instead of `layer`, the share of the blocks before the cut, rounded half to even.
    """

    name: ClassVar[str] = "ivc_removal"

    layer: int | None = None
    coordinates: Coordinates = Coordinates()
    compact_earlier_kv: bool = True
    control: str = "ivc"
    seed: int = 0
    among: str = "all"
    depth: float | None = None

    def __post_init__(self) -> None:
        check_not_negative(layer=self.layer)
        cosine, sine = self.coordinates.fractions
        for name, fraction in (("cos_fraction", cosine), ("sin_fraction", sine)):
            if fraction == 1:
                raise MethodError(f"{name}=1 removes whole images: choose a fraction below 1")
        check_choice("control", self.control, CONTROLS)
        check_choice("among", self.among, ("all", "background"))
        if self.control in OUTSIDE and cosine + sine > 0.5:
            raise MethodError(
                f"control={self.control} needs as many tokens outside the IVC set: choose"
                f" cos_fraction + sin_fraction <= 0.5, got {cosine} + {sine}"
            )
        if self.depth is not None and not 0 <= self.depth < 1:
            raise MethodError(f"depth must be in [0, 1), got {self.depth}")
        if self.depth is not None and self.layer is not None:
            raise MethodError(f"{self.name}: layer and depth exclude each other; give one")
        check_seed(self.seed)

    def resolve(self, config: ModelConfig) -> "IVCRemoval":
        """Fill in the layer, by default IVC-Prune's; check the planes against the model."""
        self.coordinates.check_planes(config.decoder.rope)
        layer, num_layers = self.layer, config.decoder.num_layers
        if self.depth is not None:
            layer = min(round(self.depth * num_layers), num_layers - 1)
        elif layer is None:
            layer = choose_layer(config)
        coordinates = fill_in(self.coordinates, config.released)
        return dataclasses.replace(self, layer=layer, depth=None, coordinates=coordinates)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut."""
        # every IVC token may hold an object
        ratio = 1 - max(self.coordinates.fractions) if self.among == "all" else 1.0
        return (Stage(require(self.layer, self.name), ratio, self.compact_earlier_kv),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the rotary settings, and where objects are."""
        return (RopeSettings(),) if self.among == "all" else (RopeSettings(), Objects())

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens: cos and sin sets may coincide in every image."""
        if self.among == "background":
            return visual_slots
        sizes = np.arange(visual_slots + 1)
        cosine, sine = self.coordinates.count(visual_slots)
        least, most = np.maximum(cosine, sine), np.minimum(cosine + sine, sizes)
        if self.control in OUTSIDE:
            # min(set, size - set) is concave in the set, so that one of its ends is the smallest.
            removed = np.minimum(np.minimum(least, sizes - least), np.minimum(most, sizes - most))
        else:
            removed = np.minimum(least, np.maximum(sizes - 1, 0))
        return bound_total(sizes - removed, num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Order the tokens of every image by what goes first, and drop as many as are IVC."""
        within = Segments.by_image(layout)
        free = within.valid  # what may go, [B, V]
        if self.among == "background":
            free &= ~signals[Objects()]
        chosen = free & self.coordinates.mark(layout, signals[RopeSettings()])  # [B, V]
        order = order_tokens(self.control, layout, chosen, free, self.seed)
        size = within.sum(chosen.astype(jnp.int32))  # of the IVC set, [B, V]
        others = within.sum(free.astype(jnp.int32)) - size  # what else may go
        most = others if self.control in OUTSIDE else layout.image_count - 1
        gone = within.rank(order, among=free, tolerance=0.0) < jnp.minimum(size, most)
        return from_mask(within.valid & ~gone, num_keep)
