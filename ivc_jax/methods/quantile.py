"""Quantiles inside segments, interpolated linearly between neighbours as NumPy's are."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ivc_jax.methods.select import Segments
from ivc_jax.types import typed


@typed
def find_quantile(
    values: Float[Array, "B V"], within: Segments, share: float, among: Bool[Array, "B V"]
) -> Float[Array, "B V"]:
    """Return the quantile of the marked values of each token's segment.

    Args:
        share: of the values that lie below it, in [0, 1].
        among: the values to take; of a segment without any the result is 0.
    """
    count = within.sum(among.astype(jnp.int32))  # [B, V]
    rank = within.rank(values, among, tolerance=0.0)
    # count 4, share 0.55: 1.65 tokens lie below the quantile, which is between ascending 1 and 2
    below = share * np.maximum(np.arange(values.shape[1] + 1) - 1, 0)
    low = jnp.asarray(np.floor(below).astype(np.int32))[count]
    part = jnp.asarray((below % 1).astype(np.float32))[count]

    def read(ascending: jax.Array) -> jax.Array:
        # One token has this rank, and a sum with zeros is exact.
        there = among & (rank == count - 1 - ascending)
        return within.sum(jnp.where(there, values, 0.0))

    lower, upper = read(low), read(jnp.minimum(low + 1, count - 1))
    return lower + part * (upper - lower)
