"""What the first stage imitates: the attention that visual tokens receive in a deeper block."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ivc_jax.nn.attention import attention_received
from ivc_jax.types import Layout, typed


@typed
def sum_received(
    queries: Float[Array, "B N H C"],
    keys: Float[Array, "B N G C"],
    layout: Layout,
    rows: str = "all",
    per_row: bool = False,
) -> Float[Array, "B V"]:
    """Sum the causal attention to each visual token over heads and queries; no map is kept.

    Early tokens are seen by more queries, so that the sum over all of them falls with the place.

    Args:
        rows: "all" queries from the first visual token to the end of the prompt, or those of
            "text" among them.
        per_row: divide by the number of these queries that can see the token.
    """
    N, index = keys.shape[1], layout.visual_index
    slots = jnp.arange(N)
    first = jnp.where(layout.visual_valid, index, N).min(axis=1, keepdims=True, initial=N)
    present = slots < layout.lengths[:, None]  # [B, N]
    asking = (slots >= first) & present
    if rows == "text":
        asking &= ~_mark_visual(layout)
    ends = jnp.broadcast_to(slots + 1, asking.shape)
    mass = attention_received(queries, keys, present, asking.astype(jnp.float32), ends)
    total = jnp.take_along_axis(mass, index, axis=1) * queries.shape[2]  # [B, V]
    if per_row:
        # queries in this slot or behind it
        seen = jnp.cumsum(asking[:, ::-1], axis=1)[:, ::-1]  # [B, N]
        total = total / jnp.maximum(jnp.take_along_axis(seen, index, axis=1), 1)
    return jnp.where(layout.visual_valid, total, 0.0)


@typed
def compare(
    scores: Float[Array, "B V"],
    received: Float[Array, "B V"],
    valid: Bool[Array, "B V"],
    labels: str = "mean",
) -> Float[Array, ""]:
    """Return the mean square error of scores over the valid tokens, averaged over samples.

    Args:
        labels: "mean" divides what a token receives by the mean over its sample, "raw" does not.
    """
    count = jnp.maximum(valid.sum(axis=1), 1)  # [B]
    received = jnp.where(valid, received, 0.0)
    if labels == "mean":
        mean = received.sum(axis=1) / count
        received = received / jnp.where(mean > 0, mean, 1.0)[:, None]
    error = jnp.where(valid, scores - received, 0.0) ** 2
    shown = valid.any(axis=1)
    each = error.sum(axis=1) / count
    return jnp.where(shown, each, 0.0).sum() / jnp.maximum(shown.sum(), 1)


def _mark_visual(layout: Layout) -> jax.Array:
    """Mark the slots of visual tokens: [B, N]."""
    B, N = layout.positions.shape[1:]
    slot = jnp.where(layout.visual_valid, layout.visual_index, N)  # padding is dropped
    return jnp.zeros((B, N), bool).at[jnp.arange(B)[:, None], slot].set(True, mode="drop")
