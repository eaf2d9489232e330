"""What the decoder can tell a method: vectors and attention of one block on one sequence."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ivc_jax.methods.requests import (
    AttentionReceived,
    AttentionRows,
    Keys,
    Request,
    TokenVectors,
    Values,
)
from ivc_jax.nn.attention import attention_received, attention_rows, largest_attention_received
from ivc_jax.types import Layout


def answer_layer(
    requests: Iterable[Request],
    layout: Layout,
    queries: jax.Array | None,
    keys: jax.Array,
    values: jax.Array,
) -> dict[Request, Any]:
    """Answer requests about one block.

    Args:
        requests: all of this block.
        queries: [B, N, H, C], rotated; None if no request needs them.
        keys: [B, N, G, C], rotated.
        values: [B, N, G, C].
    """
    signals: dict[Request, Any] = {}
    for request in requests:
        if isinstance(request, Values):
            signals[request] = split(layout, values)
        elif isinstance(request, Keys):
            signals[request] = split(layout, keys)
        elif isinstance(request, AttentionRows):
            signals[request] = _form_rows(request, layout, queries, keys)
        elif isinstance(request, AttentionReceived):
            signals[request] = _average_received(request, layout, queries, keys)
    return signals


def split(layout: Layout, vectors: jax.Array) -> TokenVectors:
    """Gather per-token vectors [B, N, ...] of visual and text slots."""
    return TokenVectors(
        visual=_take(vectors, layout.visual_index), text=_take(vectors, layout.text_index)
    )


def _take(vectors: jax.Array, slots: jax.Array) -> jax.Array:
    """Take vectors [B, N, ...] at slots [B, Q]: [B, Q, ...]."""
    index = slots.reshape(*slots.shape, *(1,) * (vectors.ndim - 2))  # [B, Q, 1, ...]
    return jnp.take_along_axis(vectors, index, axis=1)


def _form_rows(
    request: AttentionRows, layout: Layout, queries: jax.Array, keys: jax.Array
) -> jax.Array:
    """Return causal attention rows over the visual tokens: [B, H, Q, V]."""
    if request.queries == "text":
        slots, valid = layout.text_index, layout.text_valid  # [B, T]
    else:
        # The last ones of the prompt, [B, count]; a shorter prompt has fewer.
        slots = layout.lengths[:, None] - request.count + jnp.arange(request.count)
        valid = slots >= 0  # [B, Q]
        slots = jnp.maximum(slots, 0)
    visible = (jnp.arange(keys.shape[1]) <= slots[..., None]) & valid[..., None]  # [B, Q, N]
    rows = attention_rows(_take(queries, slots), keys, visible)  # [B, H, Q, N]
    # [B, H, Q, V]; the softmax was over all visible slots, so that these do not sum to 1
    columns = jnp.take_along_axis(rows, layout.visual_index[:, None, None], axis=3)
    return jnp.where(layout.visual_valid[:, None, None], columns, 0.0)


def _average_received(
    request: AttentionReceived, layout: Layout, queries: jax.Array, keys: jax.Array
) -> jax.Array:
    """Return the attention from visual tokens to each of them, averaged over queries: [B, V]."""
    valid = layout.visual_valid
    ends = layout.visual_index + 1  # [B, V], a query sees itself and what is before
    if not request.causal:
        # Every query sees the prompt up to the last visual token.
        last = jnp.where(valid, ends, 0).max(axis=1, keepdims=True, initial=0)  # [B, 1]
        ends = jnp.broadcast_to(last, ends.shape)
    visible = jnp.arange(keys.shape[1]) < layout.lengths[:, None]  # [B, N]
    receive = attention_received if request.heads == "mean" else largest_attention_received
    asking = _take(queries, layout.visual_index)  # [B, V, H, C]
    mass = receive(asking, keys, visible, valid.astype(jnp.float32), ends)  # [B, N]
    # [B, V]
    mass = _take(mass, layout.visual_index) / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
    return jnp.where(valid, mass, 0.0)
