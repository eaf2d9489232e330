"""Attention in steps, where no kernel of a library serves: on CPU, and in float32 on GPU.

A step multiplies the queries that share a key head, few enough at a time that their scores stay in
a CPU's cache. Causal queries come in parts, each with the keys up to its own end and no others:

    queries 0 1   k k . . . .
    queries 2 3   k k k k . .       .: never multiplied; k above the diagonal are masked
    queries 4 5   k k k k k k

Why not `jax.nn.dot_product_attention`: XLA's CPU back end swaps the operands of its second product
and transposes all probabilities for that. 4,159 tokens and 12 heads of 128 in parts of 256 take
0.77 s with it and 0.44 s with the two products below (2.0 s at once; torch's kernel 0.46 s).
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Causal queries come in at most so many parts: a quarter more than the least work. Eight parts
# are an eighth more; 4,159 tokens take 0.91 s with them, 1.14 with four, but they compile in 2.7 s
# where these take 1.9 s and scores at once 1.2 s (8 blocks; every block has its own parts).
_PARTS = 4
_PART_SLOTS = 128  # slots of a part are a multiple of this: 1,087 tokens have 3 parts, 300 have 3

_NEVER = -1e30  # a logit; finite, because a row of nothing but infinities would be NaN


def attend_stepwise(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    step_bytes: int,
) -> jax.Array:
    """Attend from queries [B, N, H, C] over keys and values [B, S, G, C]: [B, N, H, C].

    Heads of values may have a width of their own, which that of the result is then.

    A query that may look at nothing looks at everything: its output is finite and means nothing.

    Args:
        lengths: [B], valid keys of each row, counted from the left. Causal attention does not look
            at them: a valid query sees nothing behind itself, and padding follows the valid slots.
        mask: [#B, 1, N, S], True where a query may look at a key.
        causal: a query sees no key in a later slot.
        step_bytes: of the float32 scores of a step, unless those of a single query are more.
    """
    B, N, H, C = queries.shape
    S, G = keys.shape[1:3]
    P, r = B * G, H // G  # pairs of a sample and a key head; query heads of each
    size = N  # slots of a part
    if causal:
        size = -(-N // _PARTS)
        size += -size % _PART_SLOTS
    row = 4 * r * S  # bytes of the scores of one slot, at most
    fitting = (p for p in range(2, P + 1) if P % p == 0 and p * size * row <= step_bytes)
    p = max(fitting, default=1)  # pairs of a step
    steps = min(size, -(-p * size * row // step_bytes))  # of a part
    n = -(-size // steps)  # slots of a step
    total = -(-N // n)  # steps of all parts

    def attend_pairs(pairs: tuple[jax.Array, ...]) -> jax.Array:
        first, queries, keys, values = pairs
        samples, parts = (first + jnp.arange(p)) // G, []
        for start in range(0, total, steps):
            part = np.s_[start : start + steps]
            count = min((start + steps) * n, S) if causal else S
            see = partial(_see, mask, None if causal else lengths, causal, samples, count)
            attend_step = partial(_attend_step, keys[:, :count], values[:, :count], see)
            slots = n * np.arange(total)[part, None] + np.arange(n)  # [steps, n]
            parts.append(_map(attend_step, (jnp.asarray(slots), queries[part])))
        return jnp.concatenate(parts)  # [total, p, r, n, C]

    queries = jnp.pad(queries, ((0, 0), (0, total * n - N), (0, 0), (0, 0)))
    queries = queries.reshape(B, total, n, G, r, C).transpose(0, 3, 1, 4, 2, 5)
    queries = queries.reshape(P // p, p, total, r, n, C).swapaxes(1, 2)
    keys, values = (x.swapaxes(1, 2).reshape(P // p, p, S, -1) for x in (keys, values))
    # [P / p, total, p, r, n, C]
    mixed = _map(attend_pairs, (p * jnp.arange(P // p), queries, keys, values))
    mixed = mixed.swapaxes(1, 2).reshape(B, G, total, r, n, -1).transpose(0, 2, 4, 1, 3, 5)
    return mixed.reshape(B, total * n, H, -1)[:, :N]


def _attend_step(
    keys: jax.Array,
    values: jax.Array,
    see: Callable[[jax.Array], jax.Array | None],
    step: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Attend from slots [n] with queries [p, r, n, C] to keys and values [p, S, C]."""
    slots, queries = step
    p, r, n, C = queries.shape
    rows, wide = queries.reshape(p, r * n, C), partial(jnp.einsum, preferred_element_type="float32")
    logits = wide("pqc,psc->pqs", rows, keys).reshape(p, r, n, -1) * C**-0.5  # [p, r, n, S]
    seen = see(slots)
    raised = raise_logits(logits, None if seen is None else seen[:, None])
    shares = raised.reshape(p, r * n, -1).astype(values.dtype)  # [p, r n, S]
    # Divided behind the product: C numbers a query, not S.
    mixed = wide("pqs,psc->pqc", shares, values).reshape(p, r, n, -1)
    return (mixed / raised.sum(axis=-1, keepdims=True)).astype(values.dtype)


def _see(
    mask: jax.Array | None,
    lengths: jax.Array | None,
    causal: bool,
    samples: jax.Array,
    count: int,
    slots: jax.Array,
) -> jax.Array | None:
    """Say which of the first `count` keys queries in these slots see: [#p, n, count].

    Args:
        samples: [p], of each pair.
        slots: [n].
    """
    columns, seen = jnp.arange(count), []
    if mask is not None:
        rows = jnp.take(mask[:, 0], slots, axis=1, mode="clip")  # [#B, n, S]
        seen.append(rows if len(mask) == 1 else rows[samples])
    if causal:
        seen.append((columns <= slots[:, None])[None])
    if lengths is not None:
        seen.append((columns < lengths[samples, None])[:, None])
    return functools.reduce(jnp.logical_and, seen) if seen else None


def raise_logits(logits: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Return softmax probabilities over the last axis, times one positive number a row."""
    if seen is not None:
        # Added and not chosen by `where`: XLA's CPU back end fuses a sum with the product before
        # it. 3.0 ns a score against 4.5 (256 keys, width 32), 2.3 without a mask.
        logits += jnp.where(seen, 0.0, _NEVER)
    return jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))


def _map(function: Callable[[Any], jax.Array], arrays: tuple[jax.Array, ...]) -> jax.Array:
    """Map over the leading axis, without a loop if it is 1."""
    if len(arrays[0]) > 1:
        return jax.lax.map(function, arrays)
    return function(jax.tree.map(lambda array: array[0], arrays))[None]
