"""Density-peak clustering, batched, and the weights that average clusters into single tokens.

The algorithm is that of Rodriguez and Laio (Science 344, 2014) with a density from the nearest
neighbours, as in `cluster_and_merge` of the SparseVLMs repository, but without its random noise.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods import scoring
from ivc_jax.types import Selection, typed

_AVERAGE_EPS = 1e-6  # added to the size of a cluster (`cluster_and_merge`)


@flax.struct.dataclass
class Peaks:
    """Clusters of R points; points that are not valid hold junk.

    Densities are logarithms: their order is that of the densities, and nothing under- or overflows.
    """

    centre: jax.Array  # [B, R] int32, slot of the centre of this point's cluster
    log_density: jax.Array  # [B, R] float32, -(mean of the smallest squared distances)
    log_prominence: jax.Array  # [B, R] float32, log(density * distance to a denser point)


@typed
def density_peaks(
    vectors: Float[Array, "B R D"],
    valid: Bool[Array, "B R"],
    num_clusters: Int[Array, " B"],
    max_clusters: int,
) -> Peaks:
    """Cluster the valid points; quadratic in R.

    With distances d = |x - y| / sqrt(D) the density of a point is exp(-mean of its c smallest d^2),
    its own 0 included. Centres are the c points with the largest product of density and distance
    to the nearest denser point; the densest takes the largest distance of all. The other points
    join the nearest centre. Of two points alike in density the lower slot counts as denser.

    Args:
        num_clusters: c of each sample, at most its valid points.
        max_clusters: bound on c.
    """
    R = vectors.shape[1]
    both = valid[:, :, None] & valid[:, None]
    square = _square_distances(vectors, valid)  # [B, R, R]
    nearest = -jax.lax.top_k(jnp.where(both, -square, -jnp.inf), max_clusters)[0]
    counted = jnp.arange(max_clusters) < num_clusters[:, None, None]
    total = jnp.where(counted, nearest, 0.0).sum(axis=2)
    log_density = -total / jnp.maximum(num_clusters, 1)[:, None]

    distance, slots = jnp.sqrt(square), jnp.arange(R)
    other, own = log_density[:, None], log_density[:, :, None]
    # Row i marks the points j that are denser than i.
    denser = both & ((other > own) | ((other == own) & (slots < slots[:, None])))
    widest = jnp.where(both, distance, 0.0).max(axis=(1, 2), initial=0.0)[:, None, None]
    delta = jnp.where(denser, distance, widest).min(axis=2, initial=jnp.inf)
    prominence = log_density + jnp.log(delta)
    rank = scoring.rank_in_segment(prominence, jnp.zeros(valid.shape, jnp.int32), valid)
    is_centre = rank < num_clusters[:, None]
    to_centre = jnp.where(is_centre[:, None], distance, jnp.inf)
    joined = jnp.argmin(to_centre, axis=2).astype(jnp.int32)
    return Peaks(jnp.where(is_centre, slots, joined), log_density, prominence)


def _square_distances(vectors: jax.Array, valid: jax.Array) -> jax.Array:
    """Return |x - y|^2 / D of all pairs, exactly symmetric, exact zeros on the diagonal."""
    vectors = jnp.where(valid[..., None], vectors.astype(jnp.float32), 0.0)
    # Distances do not see a common shift, but the cancellation in x^2 + y^2 - 2xy does.
    count = jnp.maximum(valid.sum(axis=1), 1)[:, None, None]
    vectors -= vectors.sum(axis=1, keepdims=True) / count
    exact = jax.lax.Precision.HIGHEST
    product = jnp.einsum("brd,bsd->brs", vectors, vectors, precision=exact)
    length = jnp.diagonal(product, axis1=1, axis2=2)
    # Mutual nearest neighbours tie in density, which a lopsided product would break at random.
    product = (product + product.mT) / 2
    square = jnp.maximum(length[:, :, None] + length[:, None] - 2 * product, 0.0)
    return jnp.where(jnp.eye(square.shape[1], dtype=bool), 0.0, square / vectors.shape[2])


@typed
def merge(owner: Int[Array, "B V"], whole: Bool[Array, "B V"], num_keep: int) -> Selection:
    """Keep the tokens that own themselves, each as the plain mean of the tokens that it owns.

    token      0  1  2  3  4      token 3 is the centre of a cluster of three
    owner      0  3 -1  3  3      rows of weights   1 0 0 0 0
    whole      1  0  0  0  0                        0 w 0 w w   w = 1 / (3 + 1e-6)

    Args:
        owner: the token that each token becomes a part of; -1 is dropped.
        whole: tokens that stay exactly as they are.
    """
    kept = scoring.from_mask(owner == jnp.arange(owner.shape[1]), num_keep)
    member = (owner[:, None] == kept.index[..., None]) & kept.valid[..., None]  # [B, K, V]
    merged = ~jnp.take_along_axis(whole, kept.index, axis=1)
    size = member.sum(axis=2) + jnp.where(merged, _AVERAGE_EPS, 0.0)
    return kept.replace(weights=member / jnp.maximum(size, 1.0)[..., None])
