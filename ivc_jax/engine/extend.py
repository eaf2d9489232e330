"""Tokens behind a prompt: run through the model against the caches, which they join.

Here heads lie before slots, so that a query reads the keys of its head in one piece. A span's
cache has S prompt slots, of which the first `lengths[b]` are valid, and `room` slots
behind them, at which the tokens of every sample are written alike. Two tokens, x, are run where
three, g, have been before:

    slot          0 1 2 3 4 5 6   7 8 9 10 11 12      S = 7, room = 6, written = 3
    sample 0      k k k k k - -   g g g x  x  .       -: padding, never attended
    sample 1      k k k k k k k   g g g x  x  .       .: not yet written
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ivc_jax.config import ModelConfig
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.attention import attend_cached
from ivc_jax.nn.blocks import run_blocks
from ivc_jax.parallel.constraints import constrain
from ivc_jax.types import KVSpan

Caches = tuple[KVSpan, ...]


def make_room(caches: Caches, room: int, apart: bool) -> Caches:
    """Add slots behind those of the prompt, and put heads before slots.

    Args:
        caches: of the prompt.
        room: slots to add.
        apart: an array for each block, as its parameters lie (`ivc_jax.nn.blocks`): out of one
            stack for all, a CPU would copy a block's cache for every token.
    """
    behind = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))

    def widen(vectors: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
        wide = jnp.pad(vectors.swapaxes(2, 3), behind)  # [L, B, G, S + room, C]
        wide = constrain(wide, None, "data", "model")
        return tuple(wide) if apart else wide

    return tuple(span.replace(keys=widen(span.keys), values=widen(span.values)) for span in caches)


def extend(
    config: ModelConfig,
    params: dict[str, Any],
    caches: Caches,
    next_position: jax.Array,
    tokens: jax.Array,
    written: jax.Array | int,
    room: int,
) -> tuple[jax.Array, Caches]:
    """Run n tokens of every sample; traced.

    Args:
        caches: of the prompt, with room behind it.
        next_position: [B] int32, position id of the first token behind the prompt.
        tokens: [B, n] int32.
        written: tokens that are in the caches already.
        room: slots behind those of the prompt.

    Returns:
        Hidden states [B, n, D] behind the last block, and the caches with these tokens.
    """
    sizes, n = config.decoder, tokens.shape[1]
    hidden = decoder.embed(params, tokens)  # [B, n, D]
    layer, extended = 0, []
    for span in caches:
        apart, (B, _, slots, _) = isinstance(span.keys, tuple), span.keys[0].shape[-4:]
        first = slots - room  # S
        slot = first + written  # of the first of these tokens
        start = next_position + written - (0 if span.shift is None else span.shift)  # [B]
        place = start[:, None] + jnp.arange(n)  # [B, n]
        angles = rope.angles(sizes.rope, jnp.broadcast_to(place, (3, B, n)))  # [B, n, F]
        column = jnp.arange(slots)  # [S + room]
        before = (column >= first) & (column <= slot + jnp.arange(n)[:, None])  # [n, S + room]
        mask = (column < span.lengths[:, None])[:, None] | before  # [B, n, S + room]
        body = partial(_run_cached, sizes, angles, mask[:, None], slot)
        run = _run_apart if apart else _run_stacked
        hidden, keys, values = run(body, hidden, span, params["layers"], layer)
        extended.append(span.replace(keys=keys, values=values))
        layer += len(span.keys)
    return hidden, tuple(extended)


def _run_apart(body, hidden, span, layers, start):
    """Run a span's blocks, each with a cache of its own."""

    def run(hidden, params, cache):
        (hidden, *cache), _ = body((hidden, *cache), params, None)
        return hidden, cache

    each = list(zip(span.keys, span.values, strict=True))
    hidden, made = run_blocks(run, hidden, layers, start, start + len(each), each)
    return hidden, *zip(*made, strict=True)


def _run_stacked(body, hidden, span, layers, start):
    """Run a span's blocks, whose caches are the loop's own buffer."""
    L = span.keys.shape[0]
    carry = hidden, span.keys, span.values
    return run_blocks(body, carry, layers, start, start + L, jnp.arange(L))[0]


def _run_cached(sizes, angles, mask, slot, carry, params, index):
    """Run one block on tokens [B, n, D]; keys and values go to `slot` and on of its cache.

    Caches are [B, G, S + room, C], or stacked [L, B, G, S + room, C] and its own is at `index`.
    """
    hidden, *cache = carry

    def write(old, new):
        # One small in-place write, never a copy of a cache.
        new = new.swapaxes(1, 2)  # [B, G, n, C]
        if index is None:
            return jax.lax.dynamic_update_slice(old, new, (0, 0, slot, 0))
        return jax.lax.dynamic_update_slice(old, new[None], (index, 0, 0, slot, 0))

    def read(vectors):
        if index is None:
            return vectors
        return jax.lax.dynamic_index_in_dim(vectors, index, keepdims=False)

    def attend(query, *new):
        keys, values = map(write, cache, new)
        return attend_cached(query, read(keys), read(values), mask), (keys, values)

    hidden, cache = decoder.run_layer(sizes, params, hidden, angles, attend, cached=True)
    return (hidden, *cache), None
