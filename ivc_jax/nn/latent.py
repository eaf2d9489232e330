"""Latent attention: keys and values of all heads are made of one short vector of a token.

A cache holds that vector, normed, and the key that all heads share, turned: `rank` + `F2` numbers
of a token and nothing twice (F2 the width that is turned). Attention takes one of two forms:

    expanded    W_k and W_v make keys and values of every head; cheap for many queries that meet
                each token once (prefill)
    absorbed    W_k goes into the query and W_v behind the mix, so that all heads ask the vectors
                themselves: cheap for a few queries and a long cache (decode)

    q . (W_k c)  =  (W_k' q) . c          sum_j p_j (W_v c_j)  =  W_v (sum_j p_j c_j)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivc_jax.config import DecoderConfig
from ivc_jax.nn import rope
from ivc_jax.nn.layers import Linear
from ivc_jax.parallel.constraints import constrain


class LatentHeads(nn.Module):
    """The projections of latent attention.

    The rows of checkpoints that are turned lie so that neighbours are a plane; here they lie in
    halves, as everywhere (`nn.rope`): `load` sorts them.
    """

    config: DecoderConfig

    def setup(self) -> None:
        """Declare the projections; k_b_proj and v_b_proj share a tensor in checkpoints."""
        config, latent = self.config, self.config.latent
        heads = config.num_heads
        if latent.query_rank is None:
            self.q_proj = Linear(heads * config.head_dim, use_bias=False)
        else:
            self.q_a_proj = Linear(latent.query_rank, use_bias=False)
            self.q_a_layernorm = nn.RMSNorm(epsilon=latent.norm_eps)
            self.q_b_proj = Linear(heads * config.head_dim, use_bias=False)
        self.kv_a_proj_with_mqa = Linear(latent.rank + config.rope.head_dim, use_bias=False)
        self.kv_a_layernorm = nn.RMSNorm(epsilon=latent.norm_eps)
        self.k_b_proj = Linear(heads * latent.plain_dim, use_bias=False)
        self.v_b_proj = Linear(heads * latent.value_dim, use_bias=False)

    def project(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Project [B, N, D] to queries [B, N, H, C], turned, and to what caches hold.

        Returns:
            Queries, and latent keys [B, N, 1, rank + F2].
        """
        B, N, _ = x.shape
        plain, rank = self.config.latent.plain_dim, self.config.latent.rank
        if self.config.latent.query_rank is None:
            queries = self.q_proj(x)
        else:
            queries = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        queries = queries.reshape(B, N, self.config.num_heads, -1)
        queries = constrain(queries, "data", None, "model")  # whole heads
        turned = rope.rotate(queries[..., plain:], angles)  # [B, N, H, F2]
        made = self.kv_a_proj_with_mqa(x)[:, :, None]  # [B, N, 1, rank + F2]
        vector = self.kv_a_layernorm(made[..., :rank])  # [B, N, 1, rank]
        shared = rope.rotate(made[..., rank:], angles)  # [B, N, 1, F2]
        queries = jnp.concatenate([queries[..., :plain], turned], axis=-1)
        return queries, jnp.concatenate([vector, shared], axis=-1)

    def expand(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Make keys [B, N, H, C] and values [B, N, H, E] of latent keys [B, N, 1, rank + F2]."""
        B, N, H = *latents.shape[:2], self.config.num_heads
        vector = latents[:, :, 0, : self.config.latent.rank]  # [B, N, rank]
        shared = latents[..., self.config.latent.rank :]  # [B, N, 1, F2]
        plain, values = (
            constrain(projection(vector).reshape(B, N, H, -1), "data", None, "model")
            for projection in (self.k_b_proj, self.v_b_proj)
        )  # [B, N, H, C - F2], [B, N, H, E]
        shared = jnp.broadcast_to(shared, (B, N, H, shared.shape[-1]))
        return jnp.concatenate([plain, shared], axis=-1), values

    def absorb(self, queries: jax.Array) -> jax.Array:
        """Turn queries [B, N, H, C] into such that ask latent keys: [B, N, H, rank + F2]."""
        plain = self.config.latent.plain_dim
        weight = self._by_head(self.k_b_proj)  # [H, C - F2, rank]
        asking = jnp.einsum("bnhc,hcr->bnhr", queries[..., :plain], weight)
        absorbed = jnp.concatenate([asking, queries[..., plain:]], axis=-1)
        # Attention divides by the root of the width that it sees, the model by that of a head.
        return absorbed * (absorbed.shape[-1] / queries.shape[-1]) ** 0.5

    def release(self, mixed: jax.Array) -> jax.Array:
        """Make the mixed values [B, N, H, E] of mixed latent keys [B, N, H, rank + F2]."""
        weight = self._by_head(self.v_b_proj)  # [H, E, rank]
        return jnp.einsum("bnhr,her->bnhe", mixed[..., : weight.shape[-1]], weight)

    def _by_head(self, projection: Linear) -> jax.Array:
        weight = projection.variables["params"]["weight"]  # [H * width, rank]
        return weight.reshape(self.config.num_heads, -1, weight.shape[-1])
