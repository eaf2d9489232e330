"""Selections whose tokens stand in the place of others (`Selection.place`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ivc_jax.methods.select import from_mask
from ivc_jax.types import Blend, Selection, typed


@typed
def place_tokens(
    place: Int[Array, "B K"],
    valid: Bool[Array, "B K"],
    weights: jax.Array | Blend,
    visual_count: Int[Array, " B"],
) -> Selection:
    """Select tokens by their places: each uses up the slot of its place, or the next free one.

        place   0  1  0  1  5  5      of 7 tokens
        index   0  1  2  3  5  6

    Args:
        place: of tokens in their order, the valid ones first.
        weights: as in `Selection`.
        visual_count: tokens of the sample; no fewer than are valid.
    """
    slot = jnp.arange(place.shape[1], dtype=jnp.int32)
    after = jax.lax.cummax(jnp.where(valid, place - slot, -slot), axis=1) + slot  # [B, K]
    # behind the last token there is none: the last ones move up
    left = visual_count[:, None] - valid.sum(axis=1, keepdims=True, dtype=jnp.int32)
    index = jnp.where(valid, jnp.minimum(after, slot + left), 0)
    return Selection(index, valid, weights, place=jnp.where(valid, place, 0))


@typed
def unite(
    selection: Selection,
    marked: Bool[Array, "B V"],
    num_keep: int,
    visual_count: Int[Array, " B"],
) -> Selection:
    """Add marked tokens, as they are, to a selection with places.

    A marked token whose place another one took comes back in its stead. Where both are more than
    the sample has, marked ones stay and the last of the others go.

    Returns:
        The union in num_keep slots.
    """
    V, B = marked.shape[1], len(marked)
    place = jnp.where(selection.valid, selection.place, V)  # [B, K]
    slot = jnp.broadcast_to(jnp.arange(place.shape[1], dtype=jnp.int32), place.shape)
    first = jnp.full((B, V + 1), V, jnp.int32)  # slot of the first token at each place; V is none
    first = first.at[jnp.arange(B)[:, None], place].min(slot)
    held = jnp.pad(marked, ((0, 0), (0, 1)))
    back = jnp.take_along_axis(held, place, axis=1)  # [B, K]
    back &= jnp.take_along_axis(first, place, axis=1) == slot
    added = from_mask(marked & (first[:, :V] == V), num_keep)
    alone = _stay(jnp.minimum(place, V - 1), selection.weights)
    rows = jax.tree.map(lambda a, b: jnp.where(back[..., None], a, b), alone, selection.weights)
    more = _stay(added.index, selection.weights)
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), rows, more)
    stands = jax.lax.cummax(place, axis=1)  # what stands behind it is no part of its image
    place, stands = (
        jnp.concatenate([each, jnp.where(added.valid, added.index, V)], axis=1)
        for each in (place, stands)
    )

    certain = jnp.concatenate([back, added.valid], axis=1)  # [B, K + num_keep]
    room = (visual_count - certain.sum(axis=1, dtype=jnp.int32))[:, None]
    others = (place < V) & ~certain
    stays = certain | (others & (jnp.cumsum(others, axis=1) <= room))
    order = jnp.argsort(jnp.where(stays, stands, V), axis=1, stable=True)[:, :num_keep]
    valid = jnp.take_along_axis(stays, order, axis=1)

    def take(rows: jax.Array) -> jax.Array:
        return jnp.where(
            valid[..., None], jnp.take_along_axis(rows, order[..., None], axis=1), 0
        ).astype(rows.dtype)

    place = jnp.take_along_axis(place, order, axis=1)
    return place_tokens(place, valid, jax.tree.map(take, rows), visual_count)


def _stay(token: jax.Array, like: jax.Array | Blend) -> jax.Array | Blend:
    """Return weights in the form of `like` that leave tokens [B, K] as they are."""
    if not isinstance(like, Blend):
        return (token[..., None] == jnp.arange(like.shape[2])).astype(jnp.float32)
    index = jnp.broadcast_to(token[..., None], (*token.shape, like.index.shape[2]))
    first = (jnp.arange(index.shape[2]) == 0).astype(jnp.float32)
    return Blend(index, jnp.broadcast_to(first, index.shape))
