"""Local aggregation: how much of the tokens near it a kept one absorbs (Nuwa, arXiv 2602.02951)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ivc_jax.methods.select import Segments, keep_weights, normalize
from ivc_jax.types import Layout, Selection, typed

_REACH = 0.8  # of the distance between opposite corners of an even grid (code for Qwen2.5-VL)


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
        distance: None is 0.8 of the farthest pair of the frame, odd sides rounded up to even: of
            3 x 3 tokens it is 0.8 * hypot(3, 3).
        self_one: give the token itself weight 1 after the scaling.
    """
    within = Segments.by_frame(layout)
    cell = layout.grid[..., 1:].astype(jnp.float32)  # [B, V, 2]

    def at_kept(values: jax.Array) -> jax.Array:
        index = chosen.index.reshape(*chosen.index.shape, *(1,) * (values.ndim - 2))
        return jnp.take_along_axis(values, index, axis=1)

    # The last row or column of an even grid is odd: 2 | 1 is 3.
    sides = (within.max(layout.grid[..., axis]) | 1 for axis in (1, 2))
    farthest = jnp.hypot(*(side.astype(jnp.float32) for side in sides))  # [B, V]
    reach = _REACH * farthest if distance is None else jnp.full_like(farthest, distance)
    gap = jnp.linalg.norm(at_kept(cell)[:, :, None] - cell[:, None], axis=-1)  # [B, K, V]
    near = jnp.maximum(0.0, 1 - gap / jnp.maximum(at_kept(reach), 1e-6)[..., None])

    units = normalize(features)
    exact = jax.lax.Precision.HIGHEST
    similar = jnp.einsum("bke,bve->bkv", at_kept(units), units, precision=exact)  # [B, K, V]
    same = at_kept(within.number)[..., None] == within.number[:, None]
    weights = jnp.where(same, jnp.maximum(similar, 0.0) * near, 0.0)

    own = keep_weights(chosen, pillar.shape[1])
    # The cosine with itself is 1, also of a vector without length: no row adds up to 0.
    weights = jnp.where(own > 0, 1.0, jnp.where(at_kept(pillar)[..., None], 0.0, weights))
    weights = weights / weights.sum(axis=2, keepdims=True)
    weights = jnp.where(own > 0, 1.0, weights) if self_one else weights
    return jnp.where(chosen.valid[..., None], weights, 0.0)
