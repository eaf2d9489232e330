"""The decoder over packed questions; nobody asks where it looks."""

import functools

import jax
import jax.numpy as jnp

from digit_scenes.loop import Params
from digit_scenes.packed import attend_packed
from digit_scenes.packing import Plan
from ivc_jax.config import DecoderConfig
from ivc_jax.nn import decoder, rope


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
