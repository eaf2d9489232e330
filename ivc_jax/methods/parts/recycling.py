"""Recycling of dropped tokens into a few cluster means (SparseVLM, arXiv 2410.04417).

Of d dropped tokens the best R = floor(0.3 d) + 1 become c = floor(0.1 R) + 1 means (the released
code, llava/model/language_model/modelling_sparse_llama.py):

N = 576, 300 kept by score    d = 276   R = 83   c = 9    309 left
n = 309, 200 kept by score    d = 109   R = 33   c = 4    204 left
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.methods import scoring
from ivc_jax.methods.parts.cluster import density_peaks
from ivc_jax.types import Layout

_TOKENS = 576  # the published lists count of so many
# Rounding up adds a fixed number of means to the proportional ones. As a share of the tokens it is
# taken at this size, a picture of 448 x 448 pixels.
_TYPICAL_TOKENS = 256


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
        pools = scoring.rounded_counts(self.pool_share, max_count, "floor") + 1
        pools = np.minimum(pools, dropped)
        clusters = scoring.rounded_counts(self.cluster_share, max_count, "floor")[pools] + 1
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

    def owners(
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
        owner = jnp.where(keep, jnp.arange(V, dtype=jnp.int32), -1)
        if not most_dropped:
            return owner  # a bucket without visual tokens

        rank = scoring.rank_in_segment(scores, jnp.where(dropped, 0, -1), dropped)
        best = dropped & (rank < jnp.asarray(pools)[num_dropped][:, None])
        pool = scoring.from_mask(best, int(pools[most_dropped]))
        # A modifier may bring in more tokens than planned; they make no more clusters.
        num_clusters = jnp.minimum(
            jnp.asarray(planned)[layout.visual_count], jnp.asarray(clusters)[num_dropped]
        )
        vectors = jnp.take_along_axis(hidden, pool.index[..., None], axis=1)
        peaks = density_peaks(vectors, pool.valid, num_clusters, int(planned.max()))
        centre = jnp.take_along_axis(pool.index, peaks.centre, axis=1)
        place = jnp.where(pool.valid, pool.index, V)
        return owner.at[jnp.arange(B)[:, None], place].set(centre, mode="drop")
