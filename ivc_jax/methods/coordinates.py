"""IVC tokens as a part of methods: how their scores are formed, and which tokens they mark.

Other rules for as many reference tokens (`references`) take their place by name.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax import ivc
from ivc_jax.config import RopeConfig
from ivc_jax.methods import references
from ivc_jax.methods.base import MethodError
from ivc_jax.methods.defaults import fill_in
from ivc_jax.methods.fields import (
    check_choice,
    check_fractions,
    check_not_negative,
    check_seed,
    sort_planes,
)
from ivc_jax.methods.select import Segments, bound_total, gather_positions, round_counts
from ivc_jax.nearest import suggest
from ivc_jax.types import Layout

Frequencies = str | tuple[int, ...]

RULES = ("released", "lattice", "farthest", "phase", "random")
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
        rule: "released" marks the top of V and of U. Others mark as many tokens of each image,
            chosen otherwise: an even "lattice"; greedily the "farthest" from each other in rotary
            space; rows and columns that cover the "phase" of their axis; or "random" ones (see
            `methods.references`). A specification calls it coordinates.
        random_seed: of the draw of "random", another than that of the method `random`.
    """

    cos_fraction: float | None = None
    sin_fraction: float | None = None
    frequencies: Frequencies = "all"
    positions: str = "absolute"
    axes: str = "thw"
    theta: float | None = None
    position_offset: int = 0
    rule: str = "released"
    random_seed: int = 0

    def __post_init__(self) -> None:
        check_fractions(cos_fraction=self.cos_fraction, sin_fraction=self.sin_fraction)
        if self.theta is not None and not 1 <= self.theta < math.inf:
            raise MethodError(f"theta must be a finite base of at least 1, got {self.theta}")
        check_not_negative(position_offset=self.position_offset)
        check_seed(self.random_seed, "random_seed")
        if self.rule not in RULES:
            hint = suggest(str(self.rule), RULES) or ";"
            known = ", ".join(RULES)
            raise MethodError(f"unknown coordinates {self.rule!r}{hint} known coordinates: {known}")
        if self.random_seed and self.rule != "random":
            raise MethodError("random_seed has an effect with coordinates=random only")
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
            cosine, _ = self._tabulate(rope, 1, by_axis=self.rule in ("farthest", "phase"))
        except ValueError as error:
            raise MethodError(str(error)) from None
        # At position 0 every plane counts 1: an axis of 0 has none.
        if self.rule == "phase" and not cosine[-2:].all():
            raise MethodError(
                f"coordinates=phase needs planes of height and of width, and"
                f" frequencies={self.frequencies} has none of one; name others, or take farthest"
            )

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
        """Mark the IVC tokens of every segment, or as many others: bool [B, V].

        Args:
            layout: unpruned; later cuts `recall` the marks.
            within: the segments; by default the images.
            score_dtype: "float32", or "bfloat16" for the rounding of the released code.
        """
        within = within or Segments.by_image(layout)
        bound = _bound_places(layout)
        places, tallies = self._place(layout), self.count(layout.visual_slots)
        cosine, sine = map(within.look_up, tallies)  # [B, V] both
        marked = ivc.tokens(
            self._tabulate_scores(layout, rope, score_dtype),
            *(places, within.number, layout.visual_valid, cosine, sine, score_dtype),
        )
        if self.rule == "released" or not layout.visual_slots:
            return marked
        counts = within.sum(marked.astype(jnp.int32))  # [B, V]
        if self.rule == "random":
            return references.mark_random(layout, within, counts, self.random_seed)
        if self.rule == "lattice":
            return references.mark_lattice(layout, within, counts)
        sizes = np.arange(layout.visual_slots + 1)
        most = bound_total(np.minimum(sum(tallies), sizes), within.bound)
        closeness = self._tabulate(rope, bound, by_axis=True)[0]  # [A, bound]
        if self.rule == "phase" and not rope.line:
            return references.mark_phase(layout, closeness, within, counts, most)
        return references.mark_farthest(places, closeness, within, counts, most)

    def rate(
        self, layout: Layout, rope: RopeConfig, score_dtype: str = "float32"
    ) -> tuple[jax.Array, jax.Array]:
        """Return V and U of every token, [B, V] both, up to the factor that no ranking sees.

        Args:
            layout: unpruned.
            rope: of the model.
            score_dtype: as in `mark`.
        """
        places = self._place(layout)
        cosine, sine = self._tabulate_scores(layout, rope, score_dtype)
        return (
            ivc.gather_scores(cosine, places, score_dtype),
            ivc.gather_scores(sine, places, score_dtype),
        )

    def take_apart(self, layout: Layout, rope: RopeConfig) -> dict[str, jax.Array]:
        """Return V, U and the IVC tokens of every image, under the names of `base.PARTS`."""
        cosine, sine = self.rate(layout, rope)
        return {"cosine": cosine, "sine": sine, "coordinates": self.mark(layout, rope)}

    def _tabulate_scores(
        self, layout: Layout, rope: RopeConfig, score_dtype: str
    ) -> tuple[np.ndarray, np.ndarray]:
        # the offset moves the table instead of positions and bound
        return self._tabulate(
            *(rope, _bound_places(layout)),
            first_position=self.position_offset,
            score_dtype=score_dtype,
        )

    def _tabulate(
        self, rope: RopeConfig, bound: int, **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make the tables of V and of U, [A, bound] each."""
        if self.theta is not None:
            rope = dataclasses.replace(rope, theta=float(self.theta))
        skip_time = self.axes == "hw"
        return ivc.make_tables(rope, self.frequencies, bound, skip_time=skip_time, **options)

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


def _bound_places(layout: Layout) -> int:
    # A raster number can exceed every position id, but not the number of visual tokens.
    return max(layout.num_positions, layout.visual_slots) + 1


def recall(marked: jax.Array, layout: Layout) -> jax.Array:
    """Find the marks of the unpruned prompt, [B, V unpruned], at the tokens left: bool [B, V]."""
    return jnp.take_along_axis(marked, layout.visual_origin, axis=1) & layout.visual_valid
