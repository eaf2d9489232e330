"""The decoder over packed questions.

The blocks are the library's own. Only the attention between them is written out here, because most
of the N x N mask of a packed sequence is empty: the picture is attended once, and every question
looks at the picture and at its own slots.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from digit_scenes.loop import Params
from digit_scenes.packing import Plan
from ivc_jax.config import DecoderConfig
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.attention import attend


def compute_answer_logits(
    config: DecoderConfig,
    params: Params,
    plan: Plan,
    tokens: jax.Array,
    visual: jax.Array,
    seen: jax.Array | None = None,
) -> jax.Array:
    """Run packed sequences [B, N] behind visual tokens [B, W, D]; return logits [B, A, vocab].

    Args:
        seen: bool [L, B, H, W], the visual tokens that a head of a block may look at; None is all.
    """
    hidden = decoder.embed(params, tokens)  # [B, N, D]
    # the picture lies between its two marks: slots 1 to picture - 2
    hidden = hidden.at[:, 1 : plan.picture - 1].set(visual)
    positions = jnp.broadcast_to(plan.positions[:, None], (3, *tokens.shape))
    angles = rope.angles(config.rope, positions)
    if seen is not None:  # the marks around the picture are seen by all
        seen = jnp.pad(seen, 3 * [(0, 0)] + [(1, 1)], constant_values=True)
    for layer, block in enumerate(params["layers"]):
        look = functools.partial(attend_packed, plan, seen=None if seen is None else seen[layer])
        hidden, _ = decoder.run_layer(config, block, hidden, angles, look)
    return decoder.logits(config, params, hidden[:, plan.answer_index])


def attend_packed(
    plan: Plan,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    seen: jax.Array | None = None,
) -> tuple[jax.Array, None]:
    """Attend as `plan.mask` says, without forming the N x N scores.

    Args:
        seen: bool [B, H, picture], slots of the picture that a head may look at; None is all.

    Returns:
        The mixed values [B, N, H, C], and nothing else for the block to hand on.
    """
    # The N x N scores of a picture and two runs of questions; what is formed:
    #
    #              picture   run 1     run 2
    #   picture    causal    .         .
    #   run 1      far       a block a question, on the diagonal
    #   run 2      far       .         the same, padded to the longest question
    (B, _, H, C), P = queries.shape, plan.picture
    if seen is None:
        picture = attend(queries[:, :P], keys[:, :P], values[:, :P], causal=True)
    else:
        picture = jax.nn.dot_product_attention(
            queries[:, :P], keys[:, :P], values[:, :P], mask=seen[:, :, None], is_causal=True
        )
    asking = queries[:, P:] * C**-0.5  # [B, T, H, C]
    far = jnp.einsum("bthc,bphc->bhtp", asking, keys[:, :P])  # [B, H, T, P]
    scores = [far if seen is None else jnp.where(seen[:, :, None], far, -1e30)]
    longest = max(length for _, length, _ in plan.runs)
    near = []
    for begin, length, count in plan.runs:
        own = np.s_[:, begin : begin + count * length]
        shape = (B, count, length, H, C)
        asked = asking[:, own[1].start - P : own[1].stop - P].reshape(shape)
        block = jnp.einsum("bnqhc,bnkhc->bhnqk", asked, keys[own].reshape(shape))
        # -1e30 and not -inf: padded rows of other lengths share one softmax
        block = jnp.where(np.tri(length, dtype=bool), block, -1e30)
        block = jnp.pad(block, 4 * [(0, 0)] + [(0, longest - length)], constant_values=-1e30)
        near.append(block.reshape(B, H, count * length, longest))
    scores.append(jnp.concatenate(near, axis=2))  # [B, H, T, longest]
    # one softmax over the picture and a question's own slots
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1))
    far, near_weights = weights[..., :P], weights[..., P:]
    mixed = jnp.einsum("bhtp,bphc->bthc", far, values[:, :P])  # [B, T, H, C]
    parts, at = [], 0
    for begin, length, count in plan.runs:
        size = count * length
        block = near_weights[:, :, at : at + size, :length].reshape(B, H, count, length, length)
        own = values[:, begin : begin + size].reshape(B, count, length, H, C)
        parts.append(jnp.einsum("bhnqk,bnkhc->bnqhc", block, own).reshape(B, size, H, C))
        at += size
    return jnp.concatenate([picture, mixed + jnp.concatenate(parts, axis=1)], axis=1), None
