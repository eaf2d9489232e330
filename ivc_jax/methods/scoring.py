"""Exact batched selection in visual space: counts, ranks, sums inside images.

Everything has static shapes; how many tokens a sample keeps is data.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from ivc_jax.ivc import rank_in_segment
from ivc_jax.types import Layout, Selection, typed

__all__ = [
    "ROUNDING",
    "at_least_one",
    "from_mask",
    "keep_weights",
    "largest_total",
    "one_segment",
    "rank_in_segment",
    "rounded_counts",
    "segment_mean",
    "segment_sum",
    "spread",
    "to_mask",
    "unit",
    "visual_positions",
]

ROUNDING = {"round": np.rint, "floor": np.floor, "ceil": np.ceil}


def rounded_counts(
    fraction: float, max_count: int, mode: Literal["round", "floor", "ceil"] = "round"
) -> np.ndarray:
    """Tabulate `fraction` of every count from 0 to max_count, int32 [max_count + 1].

    The product is formed in float64 and rounded there, half to even like Python's `round`, so
    that 10% of 345 is 34 and not the 35 that a float32 product gives.
    """
    products = float(fraction) * np.arange(max_count + 1, dtype=np.float64)
    return ROUNDING[mode](products).astype(np.int32)


def at_least_one(counts: np.ndarray) -> np.ndarray:
    """Raise the counts of non-empty sets, [max_count + 1], to 1."""
    return np.maximum(counts, np.minimum(np.arange(len(counts)), 1)).astype(np.int32)


def largest_total(counts: np.ndarray, num_images: int) -> int:
    """Bound the sum of `counts` over at most num_images images that share a bucket.

    Args:
        counts: tokens kept of an image of each size 0 .. V.
        num_images: M; for M = 1 the bound is attained.

    Returns:
        At least the largest sum of counts[L_1] + ... + counts[L_m], m <= M, sum of L <= V.
    """
    if num_images <= 1:
        return int(counts.max())
    # Lagrange's bound: at any slope s >= 0 the sum is at most s V + M max_L (counts[L] - s L).
    # It is convex in s, so thirds close in on the tightest slope.
    slots, sizes = len(counts) - 1, np.arange(len(counts))

    def bound(slope: float) -> float:
        return slope * slots + num_images * (counts - slope * sizes).max()

    low, high = 0.0, 1.0
    for _ in range(60):
        left, right = (2 * low + high) / 3, (low + 2 * high) / 3
        low, high = (low, right) if bound(left) <= bound(right) else (left, high)
    return min(slots, int(np.floor(bound(low) + 1e-6)))


def one_segment(layout: Layout) -> jax.Array:
    """Give every visual token of a sample the same segment: int32 [B, V], -1 for padding."""
    return jnp.where(layout.visual_valid, 0, -1)


@typed
def from_mask(keep: Bool[Array, "B V"], num_keep: int) -> Selection:
    """List the marked tokens in ascending order, valid ones first, in num_keep slots."""
    order = jnp.argsort(~keep, axis=1, stable=True)[:, :num_keep].astype(jnp.int32)
    valid = jnp.take_along_axis(keep, order, axis=1)
    return Selection(index=jnp.where(valid, order, 0), valid=valid)


@typed
def to_mask(selection: Selection, visual_slots: int) -> Bool[Array, "B V"]:
    """Mark the tokens that a selection lists; the inverse of `from_mask`."""
    rows = jnp.arange(selection.index.shape[0])[:, None]
    empty = jnp.zeros((selection.index.shape[0], visual_slots), bool)
    return empty.at[rows, selection.index].max(selection.valid)


@typed
def keep_weights(selection: Selection, visual_slots: int) -> Float[Array, "B K V"]:
    """Return the weights (`Selection.weights`) that leave every kept token as it is."""
    place = selection.index[..., None] == jnp.arange(visual_slots)
    return (place & selection.valid[..., None]).astype(jnp.float32)


@typed
def unit(vectors: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """Scale vectors to length one in float32; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(length, 1e-12)


@typed
def segment_sum(
    values: Shaped[Array, "B V"], segment: Int[Array, "B V"], num_segments: int
) -> Shaped[Array, "B M"]:
    """Add up the values of each segment; tokens of segment -1 count nowhere."""
    member = segment[:, :, None] == jnp.arange(num_segments)
    return jnp.where(member, values[:, :, None], 0).sum(axis=1)


@typed
def segment_mean(
    values: Float[Array, "B V"], segment: Int[Array, "B V"], num_segments: int
) -> Float[Array, "B M"]:
    """Average the values of each segment; a segment without tokens has mean 0."""
    count = segment_sum(jnp.ones_like(values), segment, num_segments)
    return segment_sum(values, segment, num_segments) / jnp.maximum(count, 1)


@typed
def spread(per_segment: Shaped[Array, "B M"], segment: Int[Array, "B V"]) -> Shaped[Array, "B V"]:
    """Hand every token the value of its segment, 0 where the segment is -1."""
    member = segment[:, :, None] == jnp.arange(per_segment.shape[1])
    return jnp.where(member, per_segment[:, None], 0).sum(axis=2, dtype=per_segment.dtype)


@typed
def visual_positions(layout: Layout) -> Int[Array, "3 B V"]:
    """Gather the position ids of the visual tokens."""
    return jnp.take_along_axis(layout.positions, layout.visual_index[None], axis=2)
