"""Recycling of dropped tokens into a few cluster means (SparseVLM, arXiv 2410.04417).

Of d dropped tokens the best R = floor(0.3 d) + 1 become c = floor(0.1 R) + 1 means (the released
code, llava/model/language_model/modelling_sparse_llama.py):

N = 576, 300 kept by score    d = 276   R = 83   c = 9    309 left
n = 309, 200 kept by score    d = 109   R = 33   c = 4    204 left
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.ivc import rank_in_segment
from ivc_jax.methods.select import NEAR, from_mask, round_counts
from ivc_jax.types import Layout, Selection, typed

_TOKENS = 576  # the published lists count of so many
# Rounding up adds a fixed number of means to the proportional ones. As a share of the tokens it is
# taken at this size, a picture of 448 x 448 pixels.
_TYPICAL_TOKENS = 256
_CANCELLED = 2.0**-20  # part of x^2 + y^2 that cancels to nothing in float32
_AVERAGE_EPS = 1e-6  # added to the size of a cluster (`cluster_and_merge`)


@dataclasses.dataclass(frozen=True)
class Recycling:
    """How many tokens are clustered into how many.

    Attributes:
        pool_share: of the dropped tokens, those to be clustered; 0 recycles nothing.
        cluster_share: clusters of a clustered token.
    """

    pool_share: float
    cluster_share: float

    def tabulate(self, max_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return R and c of every number of dropped tokens 0 .. max_count, int32."""
        dropped = np.arange(max_count + 1, dtype=np.int32)
        if not self.pool_share:
            return np.zeros_like(dropped), np.zeros_like(dropped)
        pools = round_counts(self.pool_share, max_count, "floor") + 1
        pools = np.minimum(pools, dropped)
        clusters = round_counts(self.cluster_share, max_count, "floor")[pools] + 1
        return pools, np.minimum(clusters, pools)

    def plan(self, ratios: tuple[float, ...], max_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Follow every unpruned count 0 .. max_count through the cuts.

        Args:
            ratios: shares of the unpruned tokens kept by score, at one cut or more.

        Returns:
            Tokens kept by score and clusters at the last of the cuts, int32 [max_count + 1].
        """
        present = unpruned = np.arange(max_count + 1, dtype=np.int32)
        kept, clusters = present, np.zeros_like(present)
        for ratio in ratios:
            # By way of the published integer, so that halves are exact: 62.5 is 300 / 576 of 120.
            wanted = np.rint(ratio * _TOKENS * unpruned / _TOKENS).astype(np.int32)
            least = 0 if self.pool_share else np.minimum(present, 1)
            kept = np.maximum(np.minimum(wanted, present - 1), least)
            clusters = self.tabulate(max_count)[1][present - kept]
            present = kept + clusters
        return kept, clusters

    def with_means(self, ratios: tuple[float, ...]) -> tuple[float, ...]:
        """Turn the shares kept by score at each cut into the shares left."""
        slope, fixed = self._linear
        left = [1.0]
        for ratio in ratios:
            left.append(min(left[-1], ratio + slope * (left[-1] - ratio) + fixed))
        return tuple(left[1:])

    def without_means(self, left: tuple[float, ...]) -> tuple[float, ...]:
        """Invert `with_means`; not positive where the means alone are more than the share."""
        slope, fixed = self._linear
        ratios, before = [1.0], 1.0
        for share in left:
            kept = (share - slope * before - fixed) / (1 - slope)
            ratios.append(ratios[-1] if share >= before else kept)
            before = share
        return tuple(ratios[1:])

    @property
    def _linear(self) -> tuple[float, float]:
        """Approximate c / N by slope * d / N + fixed, the mean over the places of the roundings."""
        if not self.pool_share:
            return 0.0, 0.0
        return self.pool_share * self.cluster_share, (self.cluster_share + 0.5) / _TYPICAL_TOKENS

    def choose_owners(
        self,
        keep: jax.Array,
        scores: jax.Array,
        hidden: jax.Array,
        layout: Layout,
        plan: tuple[np.ndarray, np.ndarray],
    ) -> jax.Array:
        """Choose the token that each token becomes a part of: int32 [B, V], -1 is dropped.

        Quadratic in R, which is 154 at most for 576 tokens and the published lists.

        Args:
            keep: [B, V] bool, tokens that stay as they are.
            scores: [B, V], the best of the dropped tokens are recycled.
            hidden: [B, V, D] of the tokens, to tell which are alike.
            plan: of this cut, for the counts up to the unpruned slots.
        """
        B, V = keep.shape
        counts, planned = plan
        pools, clusters = self.tabulate(V)
        dropped = layout.visual_valid & ~keep
        num_dropped = dropped.sum(axis=1)
        most_dropped = (np.minimum(np.arange(len(counts)), V) - counts).max(initial=0)
        owner = jnp.where(keep, jnp.arange(V, dtype=jnp.int32), -1)  # [B, V]
        if not most_dropped:
            return owner  # a bucket without visual tokens

        rank = rank_in_segment(scores, jnp.where(dropped, 0, -1), dropped, NEAR)
        best = dropped & (rank < jnp.asarray(pools)[num_dropped][:, None])
        pool = from_mask(best, int(pools[most_dropped]))  # index [B, R]
        # A modifier may bring in more tokens than planned; they make no more clusters.
        num_clusters = jnp.minimum(
            jnp.asarray(planned)[layout.visual_count], jnp.asarray(clusters)[num_dropped]
        )
        vectors = jnp.take_along_axis(hidden, pool.index[..., None], axis=1)  # [B, R, D]
        peaks = find_peaks(vectors, pool.valid, num_clusters, int(planned.max()))
        centre = jnp.take_along_axis(pool.index, peaks.centre, axis=1)  # [B, R], visual index
        place = jnp.where(pool.valid, pool.index, V)  # V is out of bounds, and dropped
        return owner.at[jnp.arange(B)[:, None], place].set(centre, mode="drop")


@flax.struct.dataclass
class Peaks:
    """Clusters of R points; points that are not valid hold junk.

    Densities are logarithms: their order is that of the densities, and nothing under- or overflows.
    """

    centre: jax.Array  # [B, R] int32, slot of the centre of this point's cluster
    log_density: jax.Array  # [B, R] float32, -(mean of the smallest squared distances)
    log_prominence: jax.Array  # [B, R] float32, log(density * distance to a denser point)


@typed
def find_peaks(
    vectors: Float[Array, "B R D"],
    valid: Bool[Array, "B R"],
    num_clusters: Int[Array, " B"],
    max_clusters: int,
) -> Peaks:
    """Cluster the valid points; quadratic in R.

    The algorithm is that of Rodriguez and Laio (Science 344, 2014) with a density from the nearest
    neighbours, as in `cluster_and_merge` of the SparseVLMs repository, without its random noise.
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
    square = _measure_squares(vectors, valid)  # [B, R, R]
    nearest = -jax.lax.top_k(jnp.where(both, -square, -jnp.inf), max_clusters)[0]
    counted = jnp.arange(max_clusters) < num_clusters[:, None, None]
    total = jnp.where(counted, nearest, 0.0).sum(axis=2)
    log_density = -total / jnp.maximum(num_clusters, 1)[:, None]  # [B, R]

    distance, slots = jnp.sqrt(square), jnp.arange(R)
    other, own = log_density[:, None], log_density[:, :, None]
    near = NEAR * jnp.abs(own)
    # Row i marks the points j that are denser than i.
    alike = jnp.abs(other - own) <= near
    denser = both & jnp.where(alike, slots < slots[:, None], other > own)
    widest = jnp.where(both, distance, 0.0).max(axis=(1, 2), initial=0.0)[:, None, None]
    delta = jnp.where(denser, distance, widest).min(axis=2, initial=jnp.inf)
    prominence = log_density + jnp.log(delta)
    rank = rank_in_segment(prominence, jnp.zeros(valid.shape, jnp.int32), valid, NEAR)
    is_centre = rank < num_clusters[:, None]
    to_centre = jnp.where(is_centre[:, None], distance, jnp.inf)
    least = to_centre.min(axis=2, keepdims=True, initial=jnp.inf)
    joined = jnp.argmax(to_centre <= (1 + NEAR) * least, axis=2).astype(jnp.int32)
    return Peaks(jnp.where(is_centre, slots, joined), log_density, prominence)


def _measure_squares(vectors: jax.Array, valid: jax.Array) -> jax.Array:
    """Return |x - y|^2 / D of all pairs, exactly symmetric, exact zeros on the diagonal."""
    vectors = jnp.where(valid[..., None], vectors.astype(jnp.float32), 0.0)
    # Distances do not see a common shift, but the cancellation in x^2 + y^2 - 2xy does.
    least = NEAR**2 * jnp.square(vectors).sum(axis=2)  # [B, R], what rounding makes of nothing
    count = jnp.maximum(valid.sum(axis=1), 1)[:, None, None]
    vectors -= vectors.sum(axis=1, keepdims=True) / count
    exact = jax.lax.Precision.HIGHEST
    product = jnp.einsum("brd,bsd->brs", vectors, vectors, precision=exact)
    length = jnp.diagonal(product, axis1=1, axis2=2)  # [B, R], x^2
    # Mutual nearest neighbours tie in density, which a lopsided product would break at random.
    product = (product + product.mT) / 2
    square = jnp.maximum(length[:, :, None] + length[:, None] - 2 * product, 0.0)
    least += _CANCELLED * length
    alike = square <= jnp.maximum(least[:, :, None], least[:, None])
    return jnp.where(alike | jnp.eye(square.shape[1], dtype=bool), 0.0, square / vectors.shape[2])


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
    kept = from_mask(owner == jnp.arange(owner.shape[1]), num_keep)
    member = (owner[:, None] == kept.index[..., None]) & kept.valid[..., None]  # [B, K, V]
    merged = ~jnp.take_along_axis(whole, kept.index, axis=1)
    size = member.sum(axis=2) + jnp.where(merged, _AVERAGE_EPS, 0.0)
    return kept.replace(weights=member / jnp.maximum(size, 1.0)[..., None])
