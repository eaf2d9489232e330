"""What a prefill costs, as a formula in tokens.

A decoder block on n tokens multiplies and adds, in the matrices of width D, I and in attention,

    n (2 D H C + 2 D G C + 3 D I) + 2 n² H C

times, the n d² and n² d of FastV's formula (arXiv 2403.06764, section 4.2) for grouped queries and
a gated feed-forward part. A multiplication and an addition are two operations. Causal attention is
counted whole, as that formula does.
"""

import numpy as np

from ivc_jax.config import DecoderConfig
from ivc_jax.engine.prefill import Prefill


def count_block_flops(config: DecoderConfig, tokens: np.ndarray) -> np.ndarray:
    """Return the floating-point operations of one block on so many tokens, float64."""
    width = config.head_dim
    heads, groups = config.num_heads * width, config.num_kv_heads * width  # H C and G C
    linear = 2 * config.hidden_size * (heads + groups)  # of a token: q and o, k and v
    linear += 3 * config.hidden_size * config.intermediate_size  # gate, up and down
    tokens = np.asarray(tokens, np.float64)
    return 2 * (tokens * linear + 2 * tokens**2 * heads)  # a multiplication and an addition


def count_prefill_flops(config: DecoderConfig, prompt: Prefill) -> np.ndarray:
    """Return the operations of all decoder blocks in a prefill: float64 [B].

    Tower, embedding, selection and logits are left out: pruning does not change the first, and the
    rest is small. Padding is not counted.
    """
    # [B, L], without padding
    tokens = np.asarray(prompt.visual_computed) + np.asarray(prompt.text_count)[:, None]
    return count_block_flops(config, tokens).sum(axis=1)  # over L
