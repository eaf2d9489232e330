"""IVC tokens as a part of methods: how their scores are formed, and which tokens they mark."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax import ivc
from ivc_jax.config import RopeConfig
from ivc_jax.methods.base import MethodError
from ivc_jax.methods.defaults import fill_in
from ivc_jax.methods.fields import check_choice, check_fractions, check_not_negative, sort_planes
from ivc_jax.methods.select import Segments, gather_positions, round_counts
from ivc_jax.types import Layout

Frequencies = str | tuple[int, ...]

_WHOLE_FRACTIONS = 0.5  # the budget for which the released fractions were chosen


def choose_scale(budget: float | None) -> float:
    """Return the factor by which IVC fractions, meant for half of the tokens, shrink."""
    return 1.0 if budget is None else min(1.0, budget / _WHOLE_FRACTIONS)


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Which tokens of an image carry its coordinates, and how V and U are formed.

    Attributes:
        cos_fraction: share of an image's tokens nearest to the identity rotation, by V; rounded
            half to even. None is the released code's for the model: 0.1 for Qwen2.5-VL.
        sin_fraction: share of an image's tokens nearest to a quarter turn, by U; likewise.
        frequencies: planes in the sums: "all", "section", "low", "middle", "high" or indices (see
            `ivc.select`).
        positions: "absolute" ids of the prompt (released code); "relative" counts the ids of each
            image from 1; "index" is the raster number 1 .. L of a token within its image, which is
            the m of the paper's algorithm box. With 1-D rotary the last two are the same.
        axes: M-RoPE axes in the mean, "thw" (released code) or "hw".
        theta: base of the rotary embedding in this score alone; None is the model's.
        position_offset: added to every position in this score alone, as if the prompt before the
            image were that much longer. Attention cannot tell: rotated queries and keys meet in
            the difference of their positions. V and U can.
    """

    cos_fraction: float | None = None
    sin_fraction: float | None = None
    frequencies: Frequencies = "all"
    positions: str = "absolute"
    axes: str = "thw"
    theta: float | None = None
    position_offset: int = 0

    def __post_init__(self) -> None:
        check_fractions(cos_fraction=self.cos_fraction, sin_fraction=self.sin_fraction)
        if self.theta is not None and not 1 <= self.theta < math.inf:
            raise MethodError(f"theta must be a finite base of at least 1, got {self.theta}")
        check_not_negative(position_offset=self.position_offset)
        check_choice("positions", self.positions, ("absolute", "relative", "index"))
        check_choice("axes", self.axes, ("thw", "hw"))
        if not isinstance(self.frequencies, str):
            planes = sort_planes("frequencies", self.frequencies, least=1)
            object.__setattr__(self, "frequencies", planes)
        elif self.frequencies not in ivc.WORDS:
            raise MethodError(
                f"frequencies must be one of {ivc.WORDS} or plane indices, got {self.frequencies!r}"
            )

    def check_planes(self, rope: RopeConfig) -> None:
        """Raise MethodError if the rotary embedding of the model lacks the planes asked for."""
        try:
            ivc.make_tables(rope, self.frequencies, num_positions=1)
        except ValueError as error:
            raise MethodError(str(error)) from None

    @property
    def fractions(self) -> tuple[float, float]:
        """Shares of the tokens taken by V and by U."""
        settings = fill_in(self)
        return settings.cos_fraction, settings.sin_fraction

    def shrink(self, budget: float | None) -> "Coordinates":
        """Return the settings for a budget: below a half, IVC tokens keep their part of it."""
        scale = choose_scale(budget)
        cosine, sine = (scale * fraction for fraction in self.fractions)
        return dataclasses.replace(self, cos_fraction=cosine, sin_fraction=sine)

    def count(self, max_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Tabulate the tokens taken by V, and by U, of every count 0 .. max_count."""
        cosine, sine = self.fractions
        return round_counts(cosine, max_count), round_counts(sine, max_count)

    def mark(
        self,
        layout: Layout,
        rope: RopeConfig,
        within: Segments | None = None,
        score_dtype: str = "float32",
    ) -> jax.Array:
        """Mark the IVC tokens of every segment: bool [B, V].

        Args:
            within: the segments; by default the images.
            score_dtype: "float32", or "bfloat16" for the rounding of the released code.
        """
        within = within or Segments.by_image(layout)
        # A raster number can exceed every position id, but not the number of visual tokens.
        bound = max(layout.num_positions, layout.visual_slots) + 1
        tables = ivc.make_tables(  # of V and of U, [A, bound] each
            rope if self.theta is None else dataclasses.replace(rope, theta=float(self.theta)),
            self.frequencies,
            bound,
            skip_time=self.axes == "hw",
            score_dtype=score_dtype,
            first_position=self.position_offset,  # instead of moving positions and bound
        )
        cosine, sine = map(within.look_up, self.count(layout.visual_slots))  # [B, V] both
        return ivc.tokens(
            tables,
            self._place(layout),
            within.number,
            layout.visual_valid,
            cosine,
            sine,
            score_dtype,
        )

    def _place(self, layout: Layout) -> jax.Array:
        """Return the positions that enter the score: int32 [3, B, V]."""
        absolute = gather_positions(layout)
        if self.positions == "absolute":
            return absolute
        first = Segments.by_image(layout).first  # [B, V]
        if self.positions == "relative":
            start = jnp.take_along_axis(absolute, first[None], axis=2)  # [3, B, V]
            return jnp.where(layout.visual_valid, absolute - start + 1, 0)
        number = jnp.where(layout.visual_valid, jnp.arange(first.shape[1]) - first + 1, 0)
        return jnp.broadcast_to(number, absolute.shape)
