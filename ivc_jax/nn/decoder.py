"""The language decoder: one block, and loops over blocks.

Parameters are `{"embed_tokens", "layers", "norm"[, "lm_head"]}`; `layers` are blocks in one of the
two forms of `ivc_jax.nn.blocks`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ivc_jax.config import DecoderConfig, ModelConfig
from ivc_jax.nn import rope, tower
from ivc_jax.nn.attention import attend
from ivc_jax.nn.blocks import Blocks, Params, is_stacked, run_blocks, stack, take_block
from ivc_jax.nn.experts import Experts
from ivc_jax.nn.latent import LatentHeads
from ivc_jax.nn.layers import GatedMLP, Linear, dequantized, multiply
from ivc_jax.parallel.constraints import constrain
from ivc_jax.types import typed

# What happens between the halves of a block: attention to whatever keys the caller knows. From
# rotated queries [B, N, H, C] and keys, and values [B, N, G, E], it makes the mixed values
# [B, N, H, E]; the second result is handed on to the caller. Where a cache holds something else
# than these keys and values, that pair comes as a fourth argument.
Attend = Callable[..., tuple[jax.Array, Any]]


def attend_whole(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    stored: tuple[jax.Array, jax.Array] | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attend within a whole sequence (an `Attend`); hand on what a cache holds.

    Args:
        lengths: [B], valid slots.
        mask: [#B, 1, N, N], which slots see which; without it attention is causal.
    """
    mixed = attend(queries, keys, values, mask=mask, lengths=lengths, causal=mask is None)
    return mixed, (keys, values) if stored is None else stored


class DecoderBlock(nn.Module):
    """Pre-norm block. Between its halves the caller attends, to whatever keys it knows.

    x -> norm -> q, k, v -> rotate -> attend -> o_proj -> + x -> norm -> feed forward -> +
         `---------- qkv ---------'  caller's   `------------------ mix ----------------'

    Attributes:
        routed: the feed-forward part is one of experts.
    """

    config: DecoderConfig
    routed: bool = False

    def setup(self) -> None:
        """Declare the projections under the names that checkpoints use."""
        config = self.config
        heads, groups = config.num_heads, config.num_kv_heads
        self.input_layernorm = nn.RMSNorm(epsilon=config.norm_eps)
        if config.latent is not None:
            self.latent = LatentHeads(config)
        else:
            self.q_proj = Linear(heads * config.head_dim, use_bias=config.qkv_bias)
            self.k_proj = Linear(groups * config.head_dim, use_bias=config.qkv_bias)
            self.v_proj = Linear(groups * config.value_dim, use_bias=config.qkv_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(epsilon=config.norm_eps)
            self.k_norm = nn.RMSNorm(epsilon=config.norm_eps)
        self.o_proj = Linear(config.hidden_size, use_bias=False)
        self.post_attention_layernorm = nn.RMSNorm(epsilon=config.norm_eps)
        if self.routed:
            self.mlp = Experts(config.experts)
        else:
            self.mlp = GatedMLP(config.intermediate_size, config.hidden_size)

    def qkv(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project [B, N, D] to rotated queries [B, N, H, C] and keys, and values [B, N, G, E]."""
        if self.config.latent is not None:
            queries, latents = self.latent.project(self.input_layernorm(x), angles)
            return queries, *self.latent.expand(latents)
        B, N, _ = x.shape
        config, x = self.config, self.input_layernorm(x)  # [B, N, D]
        # Split by whole heads: with fewer key heads than devices, columns would split within one.
        queries, keys, values = (
            # [B, N, H or G, C]
            constrain(projection(x).reshape(B, N, -1, width), "data", None, "model")
            for projection, width in (
                (self.q_proj, config.head_dim),
                (self.k_proj, config.head_dim),
                (self.v_proj, config.value_dim),
            )
        )
        if config.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        return rope.rotate(queries, angles), rope.rotate(keys, angles), values

    def raw_values(self, x: jax.Array, angles: jax.Array) -> jax.Array:
        """Project [B, N, D] to values [B, N, G, E] without the norm of the block."""
        if self.config.latent is not None:
            return self.latent.expand(self.latent.project(x, angles)[1])[1]
        return self.v_proj(x).reshape(*x.shape[:2], -1, self.config.value_dim)

    def mix(self, x: jax.Array, mixed: jax.Array, fed: jax.Array | None = None) -> jax.Array:
        """Add the projected attention output [B, N, H, E] and the feed-forward part to x.

        Args:
            fed: bool [B, N], the slots that get a feed-forward part; None is all of them.
        """
        B, N, _ = x.shape
        x = x + self.o_proj(mixed.reshape(B, N, -1))  # heads side by side: [B, N, H * E]
        added = self.mlp(self.post_attention_layernorm(x))
        return x + (added if fed is None else jnp.where(fed[..., None], added, 0))

    def expand(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the keys [B, N, H, C] and values [B, N, H, E] that latent keys stand for."""
        return self.latent.expand(latents)

    def __call__(
        self,
        x: jax.Array,
        angles: jax.Array,
        attend: Attend,
        cached: bool = False,
        fed: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Run the block on [B, N, D]; return the same shape, and what `attend` handed on.

        Args:
            cached: what `attend` asks is a cache: keys and values come as those lie there.
            fed: as in `mix`.
        """
        if self.config.latent is None:
            mixed, handed = attend(*self.qkv(x, angles))
            return self.mix(x, mixed, fed), handed
        queries, latents = self.latent.project(self.input_layernorm(x), angles)
        stored = latents, latents[..., :0]  # the values are the latents, too
        if cached:
            mixed, handed = attend(self.latent.absorb(queries), *stored)
            return self.mix(x, self.latent.release(mixed), fed), handed
        mixed, handed = attend(queries, *self.latent.expand(latents), stored)
        return self.mix(x, mixed, fed), handed


@typed
def project(
    config: DecoderConfig,
    layers: Blocks,
    hidden: Float[Array, "B N D"],
    angles: Float[Array, "B N F"],
    index: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return queries, keys and values of block `index` without running it."""
    block, params = _read(config, take_block(layers, index))
    return block.apply(params, hidden, angles, method="qkv")


def project_raw(
    config: DecoderConfig, layers: Blocks, hidden: jax.Array, angles: jax.Array, index: int
) -> jax.Array:
    """Return what block `index` would have as values [B, N, G, E] without its norm."""
    block, params = _read(config, take_block(layers, index))
    return block.apply(params, hidden, angles, method="raw_values")


def expand(
    config: DecoderConfig, layers: Blocks, index: int, keys: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Make keys [B, N, G, C] and values [B, N, G, E] of what the cache of block `index` holds."""
    if config.latent is None:
        return keys, values
    block, params = _read(config, take_block(layers, index))
    return block.apply(params, keys, method="expand")


@typed
def run_layer(
    config: DecoderConfig,
    params: Params,
    hidden: Float[Array, "B N D"],
    angles: Float[Array, "B N F"],
    attend: Attend = attend_whole,
    cached: bool = False,
    fed: Bool[Array, "B N"] | None = None,
) -> tuple[Float[Array, "B N D"], Any]:
    """Run a block of these parameters; return hidden states and what `attend` handed on.

    Args:
        cached: as in `DecoderBlock`.
        fed: likewise.
    """
    block, read = _read(config, params)
    with jax.named_scope("decoder_layer"):
        return block.apply(read, hidden, angles, attend, cached, fed)


@typed
def run_span(
    config: DecoderConfig,
    layers: Blocks,
    hidden: Float[Array, "B N D"],
    angles: Float[Array, "B N F"],
    start: int,
    stop: int,
    attend: Attend = attend_whole,
) -> tuple[Float[Array, "B N D"], Any]:
    """Run blocks start..stop-1.

    Returns:
        Hidden states, and what `attend` handed on, stacked: for `attend_whole` what a cache holds,
        keys and values [L, B, N, G, C].
    """

    def body(hidden: jax.Array, params: Params, _: None) -> tuple[jax.Array, Any]:
        return run_layer(config, params, hidden, angles, attend)

    each = None if is_stacked(layers) else [None] * (stop - start)
    hidden, made = run_blocks(body, hidden, layers, start, stop, each)
    return hidden, made if is_stacked(layers) else stack(made)


def _read(config: DecoderConfig, params: Params) -> tuple[DecoderBlock, dict[str, Params]]:
    """Return the kind of block that these are parameters of, and wrap them for Flax.

    They are floats then, but those of experts, few of which will be used.
    """
    block = DecoderBlock(config, routed="experts" in params["mlp"])
    floats = dequantized(params, params["input_layernorm"]["scale"].dtype, but="experts")
    return block, {"params": floats}


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """Look up token embeddings: [B, N] to [B, N, D]."""
    return params["embed_tokens"]["embedding"][tokens]


def finish(config: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Norm what the last block leaves, [..., D]."""
    return nn.RMSNorm(epsilon=config.norm_eps).apply({"params": params["norm"]}, hidden)


def logits(config: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Map hidden states [..., D] to float32 logits [..., vocab]."""
    hidden = finish(config, params, hidden)
    # The embedding [vocab, D] serves twice, or there is a head of the same shape.
    if config.tie_embeddings:
        weight = params["embed_tokens"]["embedding"]
    else:
        weight = dequantized(params["lm_head"]["weight"], hidden.dtype)
    return multiply(hidden, weight).astype(jnp.float32)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Draw random float32 parameters of a whole model, blocks apart: {"vision", "decoder"}.

    Under `jax.eval_shape` this states the shape of every parameter without making one.
    """
    sizes = config.decoder
    embed_key, layer_key, head_key, vision_key = jax.random.split(key, 4)
    normal = nn.initializers.normal(0.02)
    table = (sizes.vocab_size, sizes.hidden_size)
    # Parameters do not depend on how many slots a block sees: one will do.
    hidden = jnp.zeros((1, 1, sizes.hidden_size))
    angles = jnp.zeros((1, 1, sizes.rope.head_dim // 2))

    @functools.partial(jax.jit, static_argnums=1)  # traced once for all blocks of a kind
    def init_block(block_key: jax.Array, routed: bool) -> Params:
        block = DecoderBlock(sizes, routed)
        return block.init(block_key, hidden, angles, attend_whole)["params"]

    layer_keys = jax.random.split(layer_key, sizes.num_layers)
    decoder: Params = {
        "embed_tokens": {"embedding": normal(embed_key, table)},
        "layers": tuple(init_block(key, sizes.routes(i)) for i, key in enumerate(layer_keys)),
        "norm": {"scale": jnp.ones(sizes.hidden_size)},
    }
    if not sizes.tie_embeddings:
        decoder["lm_head"] = {"weight": normal(head_key, table)}
    return {"vision": tower.init_params(config.vision, vision_key), "decoder": decoder}
