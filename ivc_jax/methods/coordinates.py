"""IVC tokens as a part of methods: the settings of the score, and the mask on a layout."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax import ivc
from ivc_jax.config import RopeConfig
from ivc_jax.methods import scoring, segments
from ivc_jax.methods.base import MethodError
from ivc_jax.methods.segments import Segments
from ivc_jax.types import Layout

Frequencies = str | tuple[int, ...]

POSITIONS = ("absolute", "relative", "index")
AXES = ("thw", "hw")
_WHOLE_FRACTIONS = 0.5  # the budget for which the released fractions were chosen


@dataclasses.dataclass(frozen=True)
class CoordinateRules:
    """How V and U are formed.

    Attributes:
        frequencies: planes in the sums: "all", "section", "low", "middle", "high" or indices (see
            `ivc.select`).
        positions: "absolute" ids of the prompt (released code); "relative" counts the ids of each
            image from 1; "index" is the raster number 1 .. L of a token within its image, which is
            the m of the paper's algorithm box. With 1-D rotary the last two are the same.
        axes: M-RoPE axes in the mean, "thw" (released code) or "hw".
        score_dtype: "float32", or "bfloat16" for the rounding of the released code.
        theta: base of the rotary embedding in this score alone; None is the model's.
        position_offset: added to every position in this score alone, as if the prompt before the
            image were that much longer. Attention cannot tell: rotated queries and keys meet in
            the difference of their positions. V and U can.
    """

    frequencies: Frequencies = "all"
    positions: str = "absolute"
    axes: str = "thw"
    score_dtype: str = "float32"
    theta: float | None = None
    position_offset: int = 0


def canonical_frequencies(frequencies: Frequencies) -> Frequencies:
    """Sort plane indices, so that equal sets are equal fields; check the words.

    Raises:
        MethodError: an unknown word or an impossible plane.
    """
    if isinstance(frequencies, str):
        if frequencies not in ivc.WORDS:
            raise MethodError(
                f"frequencies must be one of {ivc.WORDS} or plane indices, got {frequencies!r}"
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


def check_rotation(theta: float | None, position_offset: int) -> None:
    """Raise MethodError unless a score can have this base and this offset."""
    if theta is not None and not 1 <= theta < math.inf:
        raise MethodError(f"theta must be a finite base of at least 1, got {theta}")
    if position_offset < 0:
        raise MethodError(f"position_offset must not be negative, got {position_offset}")


def budget_scale(budget: float | None) -> float:
    """Return the factor by which IVC fractions, meant for half of the tokens, shrink."""
    return 1.0 if budget is None else min(1.0, budget / _WHOLE_FRACTIONS)


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise MethodError unless `value` is one of `known`."""
    if value not in known:
        raise MethodError(f"{name} must be one of {known}, got {value!r}")


def check_frequencies(frequencies: Frequencies, rope: RopeConfig) -> None:
    """Raise MethodError if the rotary embedding of the model lacks the planes asked for."""
    try:
        ivc.make_tables(rope, frequencies, num_positions=1)
    except ValueError as error:
        raise MethodError(str(error)) from None


def ivc_mask(
    layout: Layout,
    rope: RopeConfig,
    rules: CoordinateRules,
    cos_counts: np.ndarray,
    sin_counts: np.ndarray,
    within: Segments | None = None,
) -> jax.Array:
    """Mark the IVC tokens of every segment: bool [B, V].

    Args:
        cos_counts: tokens to take by V(m) from a segment of each unpruned size.
        sin_counts: the same for U(m).
        within: the segments; by default the images.
    """
    within = within or segments.images(layout)
    # A raster number can exceed every position id, but not the number of visual tokens.
    bound = max(layout.num_positions, layout.visual_slots) + 1
    tables = ivc.make_tables(
        rope if rules.theta is None else dataclasses.replace(rope, theta=float(rules.theta)),
        rules.frequencies,
        bound,
        skip_time=rules.axes == "hw",
        score_dtype=rules.score_dtype,
        first_position=rules.position_offset,  # instead of moving positions and bound
    )
    return ivc.tokens(
        tables,
        _positions(layout, rules.positions),
        within.number,
        layout.visual_valid,
        jnp.asarray(cos_counts)[within.count],
        jnp.asarray(sin_counts)[within.count],
        rules.score_dtype,
    )


def _positions(layout: Layout, kind: str) -> jax.Array:
    """Return the positions that enter the score: [3, B, V]."""
    absolute = scoring.visual_positions(layout)
    if kind == "absolute":
        return absolute
    first = segments.first_of_image(layout)
    if kind == "relative":
        start = jnp.take_along_axis(absolute, first[None], axis=2)
        return jnp.where(layout.visual_valid, absolute - start + 1, 0)
    number = jnp.where(layout.visual_valid, jnp.arange(first.shape[1]) - first + 1, 0)
    return jnp.broadcast_to(number, absolute.shape)
