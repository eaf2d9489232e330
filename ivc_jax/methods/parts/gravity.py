"""What v2.0 of the SparseVLMs repository adds: rotary decay and priority heads."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ivc_jax.config import RopeConfig
from ivc_jax.methods import scoring
from ivc_jax.types import Layout, typed

# Llama's gravity turns negative from distance 1707 on. The released code divides by it all the
# same; this bound is ours.
_LEAST_GRAVITY = 0.5


def gravity(distance: np.ndarray, rope: RopeConfig, axis: int | None = None) -> np.ndarray:
    """Return the score that rotation alone gives two vectors of ones at some distance.

    g(d) = 2 / sqrt(C) sum_m cos(d theta_m); with M-RoPE it is the sum over axes, each with its own
    distance.

    Args:
        distance: differences of position ids.
        axis: add up the planes that this axis turns; None is all of them, for 1-D positions.
    """
    planes = rope.frequencies
    if axis is not None:
        planes = planes[rope.axis_of_plane == axis]
    return 2 / np.sqrt(rope.head_dim) * np.cos(np.multiply.outer(distance, planes)).sum(axis=-1)


@typed
def corrected(
    attention: Float[Array, "B H T V"], layout: Layout, rope: RopeConfig
) -> Float[Array, "B H T V"]:
    """Divide text-to-visual attention by the gravity between the two tokens."""
    text = jnp.take_along_axis(layout.positions, layout.text_index[None], axis=2)
    visual = scoring.visual_positions(layout)
    ids, pull = np.arange(layout.num_positions), 0.0
    for axis in range(3):
        table = jnp.asarray(gravity(ids, rope, axis), jnp.float32)
        pull += table[jnp.abs(text[axis][:, :, None] - visual[axis][:, None])]  # [B, T, V]
    return attention / jnp.maximum(pull, _LEAST_GRAVITY)[:, None]


@typed
def mean_over_heads(
    votes: Float[Array, "B H V"], valid: Bool[Array, "B V"], share: float
) -> Float[Array, "B V"]:
    """Average over the heads that give the visual tokens most: the share of them, half to even."""
    total = jnp.where(valid[:, None], votes, 0.0).sum(axis=2)  # [B, H]
    count = max(1, round(share * total.shape[1]))
    one = jnp.zeros(total.shape, jnp.int32)
    chosen = scoring.rank_in_segment(total, one, one == 0) < count
    return jnp.where(chosen[..., None], votes, 0.0).sum(axis=1) / count
