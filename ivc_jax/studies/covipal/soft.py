"""Tokens kept in part: a gate with an exact budget, and the bias that it puts on keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods.select import Segments
from ivc_jax.types import Layout, typed


@typed
def gate(
    scores: Float[Array, "B V"],
    valid: Bool[Array, "B V"],
    counts: Int[Array, "B"],
    tau: float = 0.2,
    halvings: int = 50,
) -> tuple[Float[Array, "B V"], Float[Array, "B 1"]]:
    """Keep shares sigmoid((score - threshold) / tau) that sum to `counts`.

    The threshold is found by bisection; its derivative is that of the equation it solves,
    d threshold / d score_k = m_k (1 - m_k) / sum of all m_q (1 - m_q).

    Returns:
        Shares, 0 at padding, and the threshold.
    """
    scores = jnp.where(valid, scores, 0.0)
    fixed = jax.lax.stop_gradient(scores)

    def share(values: jax.Array, threshold: jax.Array) -> jax.Array:
        return jnp.where(valid, jax.nn.sigmoid((values - threshold) / tau), 0.0)

    def halve(_: int, bounds: tuple) -> tuple:
        low, high = bounds  # [B, 1] each
        middle = (low + high) / 2
        # too many are kept: the threshold lies higher
        above = share(fixed, middle).sum(axis=1, keepdims=True) > counts[:, None]
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    least = jnp.where(valid, fixed, jnp.inf).min(axis=1, keepdims=True, initial=jnp.inf)
    most = jnp.where(valid, fixed, -jnp.inf).max(axis=1, keepdims=True, initial=-jnp.inf)
    # a sample without visual tokens has neither
    least, most = (jnp.where(jnp.isfinite(bound), bound, 0.0) for bound in (least, most))
    low, high = jax.lax.fori_loop(0, halvings, halve, (least - 20 * tau, most + 20 * tau))
    found = (low + high) / 2
    slope = share(fixed, found) * (1 - share(fixed, found))  # [B, V]
    slope = slope / jnp.maximum(slope.sum(axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    # adds nothing but the derivative
    threshold = found + (slope * (scores - fixed)).sum(axis=1, keepdims=True)
    return share(scores, threshold), threshold


@typed
def bias_keys(
    scores: Float[Array, "B V"],
    layout: Layout,
    counts: Int[Array, "B"],
    tau: float = 0.2,
    least: float = 1e-6,
    halvings: int = 50,
    straight_through: bool = False,
) -> Float[Array, "B V"]:
    """Return log of the kept shares, what is added to the logits of visual keys; 0 at padding.

    Args:
        counts: of tokens kept.
        least: the smallest share.
        straight_through: the best `counts` tokens keep all and the others `least`; derivatives are
            those of the shares all the same.
    """
    valid = layout.visual_valid
    shares, _ = gate(scores, valid, counts, tau, halvings)
    bias = jnp.log(jnp.maximum(shares, least))
    if straight_through:
        kept = Segments.by_sample(layout).top(
            jax.lax.stop_gradient(scores), counts[:, None] * valid
        )
        hard = jnp.where(kept, 0.0, jnp.log(least))
        bias = bias + jax.lax.stop_gradient(hard - bias)
    return jnp.where(valid, bias, 0.0)


@typed
def spread(bias: Float[Array, "B V"], layout: Layout) -> Float[Array, "B 1 N N"]:
    """Put the bias of visual keys into their slots; a token sees itself as it is."""
    B, N = layout.positions.shape[1:]
    slot = jnp.where(layout.visual_valid, layout.visual_index, N)  # padding is dropped
    row = jnp.zeros((B, N)).at[jnp.arange(B)[:, None], slot].set(bias, mode="drop")
    return (row[:, None] * (1 - jnp.eye(N)))[:, None]
