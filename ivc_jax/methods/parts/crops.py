"""Runs of raster neighbours inside each image, and how they share its budget."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ivc_jax.methods import scoring
from ivc_jax.methods.segments import Segments
from ivc_jax.types import typed

# Lifts a product that rounding has left just below a whole number; float32 loses less than this.
_LIFT = 1 + 1e-6


@typed
def cut(within: Segments, number: Int[Array, "B V"]) -> Segments:
    """Cut segments into runs of neighbours, of equal length but that the first may be one longer.

    n = 7, number = 3      0 0 0 1 1 2 2

    Args:
        number: of runs of the segment of this token; at least one is made, at most one a token.
    """
    B, V = number.shape
    number = jnp.maximum(number, 1)
    slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), (B, V))
    place = slots - jax.lax.cummax(jnp.where(_begins(within.number), slots, 0), axis=1)

    length, longer = within.count // number, within.count % number
    border = longer * (length + 1)  # where the runs of one more end
    in_longer = place < border
    # The length is 0 in padding, and where there are fewer tokens than runs.
    offset = jnp.where(in_longer, place % (length + 1), (place - border) % jnp.maximum(length, 1))
    starts = (offset == 0) & (within.number >= 0)
    run = jnp.cumsum(starts, axis=1, dtype=jnp.int32) - 1
    return Segments(jnp.where(within.number >= 0, run, -1), length + in_longer, V)


@typed
def crop_mean(values: Float[Array, "B V"], crops: Segments) -> Float[Array, "B V"]:
    """Hand every token the mean over its crop."""
    return _total(values, crops.number) / jnp.maximum(crops.count, 1)


@typed
def crop_quotas(
    weight: Float[Array, "B V"], budget: Int[Array, "B V"], crops: Segments, within: Segments
) -> Int[Array, "B V"]:
    """Share the budget of each segment among its crops by weight, none more than it has tokens.

    Arguments and result are those of the crop or of the segment that the token is in. What a crop
    cannot take goes to crops with room, by weight times room, until every token has a place
    (appendix A.3 of the paper; its rounding is not published). The budgets are used up.
    """
    # A crop is represented by its first token.
    first = _begins(crops.number) & (crops.number >= 0)
    size = jnp.where(first, crops.count, 0)

    def overfull(quota: jax.Array) -> jax.Array:
        return (quota > size).any()

    def move(quota: jax.Array) -> jax.Array:
        excess = _total(jnp.maximum(quota - size, 0), within.number)
        quota = jnp.minimum(quota, size)
        room = size - quota
        return quota + _share_out(excess, weight * room, room > 0, within)

    # Each round fills a crop for good, so there are no more rounds than crops.
    quota = jax.lax.while_loop(overfull, move, _share_out(budget, weight, first, within))
    return _total(quota, crops.number)


def _share_out(
    amount: jax.Array, weight: jax.Array, takers: jax.Array, within: Segments
) -> jax.Array:
    """Share a number by weight, rounded down; the largest get one more each. int32 [B, V]."""
    weight = jnp.where(takers & (weight > 0), weight, 0.0)  # nor NaN
    whole = _total(weight, within.number)
    weight = jnp.where(whole > 0, weight, takers)  # nothing to go by: equal parts
    part = weight / jnp.maximum(_total(weight, within.number), jnp.finfo(jnp.float32).tiny)
    given = jnp.floor(amount * part * _LIFT).astype(jnp.int32)
    rest = amount - _total(given, within.number)
    return given + (scoring.rank_in_segment(part, within.number, takers) < rest)


def _total(values: Shaped[Array, "B V"], number: Int[Array, "B V"]) -> Shaped[Array, "B V"]:
    """Add up the values of all tokens with the same number."""
    same = number[:, :, None] == number[:, None]
    return jnp.where(same, values[:, None], 0).sum(axis=2, dtype=values.dtype)


def _begins(number: jax.Array) -> jax.Array:
    """Mark where a run of equal numbers [B, V] begins."""
    B, V = number.shape
    changed = number[:, 1:] != number[:, :-1]
    return jnp.concatenate([jnp.ones((B, min(V, 1)), bool), changed], axis=1)
