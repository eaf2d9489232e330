"""The first cut of Nuwa: the best tokens of small grid regions, and what they absorb.

A region is a block of 2 x 2 tokens of one image or video frame, smaller at odd borders. It is named
after the visual index of its first token:

    0  0  2  2  4
    0  0  2  2  4        a grid of 3 x 5
   10 10 12 12 14
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods import scoring, segments
from ivc_jax.methods.frames import over_segment
from ivc_jax.methods.segments import Segments
from ivc_jax.types import Layout, Selection, typed

_REACH = 0.8  # of the distance between opposite corners (released code for Qwen2.5-VL)


@typed
def regions(layout: Layout) -> Int[Array, "B V"]:
    """Number the regions of each sample, -1 for padding; every token must be present."""
    row, column = layout.grid[..., 1], layout.grid[..., 2]
    slots = jnp.arange(row.shape[1], dtype=jnp.int32)
    width = over_segment(jax.ops.segment_max, column, segments.frames(layout)) + 1
    return jnp.where(layout.visual_valid, slots - row % 2 * width - column % 2, -1)


@typed
def best_of_regions(
    saliency: Float[Array, "B V"], layout: Layout, per_region: int, target: Int[Array, "B V"]
) -> Bool[Array, "B V"]:
    """Keep the `target` most salient tokens of a frame among the best few of each region.

    Equal tokens of a frame go by region first, then by index. A frame with fewer candidates than
    its target keeps them all.
    """
    valid, region = layout.visual_valid, regions(layout)
    V = valid.shape[1]
    inside = scoring.rank_in_segment(saliency, region, valid)
    candidate = valid & (inside < per_region)
    # In the order of regions the stable ranking breaks ties as wanted.
    order = jnp.argsort(jnp.where(valid, region, V), axis=1, stable=True)
    parts = (saliency, segments.frames(layout).number, candidate)
    rank = scoring.rank_in_segment(*(jnp.take_along_axis(part, order, axis=1) for part in parts))
    _, rank = jax.lax.sort((order, rank), num_keys=1)
    return candidate & (rank < target)


@typed
def mark_pillars(
    saliency: Float[Array, "B V"], keep: Bool[Array, "B V"], within: Segments, tau: float
) -> Bool[Array, "B V"]:
    """Mark the kept tokens that reach the tau quantile of their segment's kept saliencies.

    The quantile interpolates linearly between neighbours, as NumPy's does.
    """
    most = keep.shape[1]
    count = over_segment(jax.ops.segment_sum, keep.astype(jnp.int32), within)
    rank = scoring.rank_in_segment(saliency, within.number, keep)
    # count 4, tau 0.55: 1.65 tokens lie below the quantile, so that it is between ascending 1 and 2
    below = tau * np.maximum(np.arange(most + 1) - 1, 0)
    low = jnp.asarray(np.floor(below).astype(np.int32))[count]
    share = jnp.asarray((below % 1).astype(np.float32))[count]

    def value(ascending: jax.Array) -> jax.Array:
        # One token has this rank, and a sum with zeros is exact.
        there = keep & (rank == count - 1 - ascending)
        return over_segment(jax.ops.segment_sum, jnp.where(there, saliency, 0.0), within)

    lower, upper = value(low), value(jnp.minimum(low + 1, count - 1))
    return keep & (saliency >= lower + share * (upper - lower))


@typed
def aggregate(
    features: Float[Array, "B V E"],
    chosen: Selection,
    pillar: Bool[Array, "B V"],
    layout: Layout,
    distance: float | None = None,
    self_one: bool = False,
) -> Float[Array, "B K V"]:
    """Weigh what each kept token absorbs in its frame: similar tokens that lie near it.

    The weight of token j is max(0, cosine) * max(0, 1 - d(i, j) / distance), d on the grid in units
    of tokens, and rows are scaled to add up to 1. A pillar has itself alone. Quadratic: a cosine of
    K x V tokens.

    Args:
        distance: None is 0.8 of the farthest pair of the frame.
        self_one: give the token itself weight 1 after the scaling.
    """
    within = segments.frames(layout)
    cell = layout.grid[..., 1:].astype(jnp.float32)  # [B, V, 2]

    def at_kept(values: jax.Array) -> jax.Array:
        index = chosen.index.reshape(*chosen.index.shape, *(1,) * (values.ndim - 2))
        return jnp.take_along_axis(values, index, axis=1)

    corner = [over_segment(jax.ops.segment_max, cell[..., axis], within) for axis in (0, 1)]
    farthest = jnp.hypot(*corner)
    reach = _REACH * farthest if distance is None else jnp.full_like(farthest, distance)
    gap = jnp.linalg.norm(at_kept(cell)[:, :, None] - cell[:, None], axis=-1)  # [B, K, V]
    near = jnp.maximum(0.0, 1 - gap / jnp.maximum(at_kept(reach), 1e-6)[..., None])

    units = scoring.unit(features)
    exact = jax.lax.Precision.HIGHEST
    similar = jnp.einsum("bke,bve->bkv", at_kept(units), units, precision=exact)
    same = at_kept(within.number)[..., None] == within.number[:, None]
    weights = jnp.where(same, jnp.maximum(similar, 0.0) * near, 0.0)

    own = scoring.keep_weights(chosen, pillar.shape[1])
    # The cosine with itself is 1, also of a vector without length: no row adds up to 0.
    weights = jnp.where(own > 0, 1.0, jnp.where(at_kept(pillar)[..., None], 0.0, weights))
    weights = weights / weights.sum(axis=2, keepdims=True)
    weights = jnp.where(own > 0, 1.0, weights) if self_one else weights
    return jnp.where(chosen.valid[..., None], weights, 0.0)
