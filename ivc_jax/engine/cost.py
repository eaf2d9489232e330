"""What a prefill costs, as a formula in tokens.

A decoder block on n tokens multiplies and adds, in the matrices of width D, I and in attention,

    n (2 D H C + 2 D G C + 3 D I) + 2 n² H C

times, the n d² and n² d of FastV's formula (arXiv 2403.06764, section 4.2) for grouped queries and
a gated feed-forward part. A multiplication and an addition are two operations. Causal attention is
counted whole, as that formula does. Latent attention has its own matrices, and of experts those
count that a token goes through.
"""

import numpy as np

from ivc_jax.config import DecoderConfig
from ivc_jax.engine.prefill import Prefill


def count_block_flops(config: DecoderConfig, tokens: np.ndarray, layer: int = 0) -> np.ndarray:
    """Return the floating-point operations of block `layer` on so many tokens, float64."""
    linear = _count_attention(config) + _count_feed_forward(config, layer)  # of a token
    mixed = config.num_heads * (config.head_dim + config.value_dim)  # of a pair: scores and values
    tokens = np.asarray(tokens, np.float64)
    return 2 * (tokens * linear + tokens**2 * mixed)  # a multiplication and an addition


def _count_attention(config: DecoderConfig) -> int:
    """Count the numbers in the matrices of attention."""
    width, latent = config.hidden_size, config.latent
    queries, mixed = (config.num_heads * each for each in (config.head_dim, config.value_dim))
    if latent is None:
        groups = config.num_kv_heads * (config.head_dim + config.value_dim)
        return width * (queries + groups + mixed)  # q, k and v, o
    asked = width * queries
    if latent.query_rank is not None:
        asked = latent.query_rank * (width + queries)
    made = width * (latent.rank + config.rope.head_dim)
    expanded = latent.rank * (config.num_heads * latent.plain_dim + mixed)  # keys and values
    return asked + made + expanded + width * mixed


def _count_feed_forward(config: DecoderConfig, layer: int) -> int:
    """Count the numbers in the matrices of the feed-forward part that a token meets."""
    width, experts = config.hidden_size, config.experts
    if not config.routes(layer):
        return 3 * width * config.intermediate_size  # gate, up and down
    inner = experts.chosen * experts.hidden_dim + experts.shared_dim
    return width * (experts.count + 3 * inner)  # the router beside them


def count_prefill_flops(config: DecoderConfig, prompt: Prefill) -> np.ndarray:
    """Return the operations of all decoder blocks in a prefill: float64 [B].

    Tower, embedding, selection and logits are left out: pruning does not change the first, and the
    rest is small. Padding is not counted.
    """
    # [B, L], without padding
    tokens = np.asarray(prompt.visual_computed) + np.asarray(prompt.text_count)[:, None]
    each = (count_block_flops(config, tokens[:, i], i) for i in range(config.num_layers))
    return sum(each, np.zeros(len(tokens)))
