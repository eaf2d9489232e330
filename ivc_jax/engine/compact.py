"""Shorten a sequence to its kept tokens: one stable sort, then gathers.

slot           0    1    2    3    4    5    6    7
token         <v>   a    b    c    d   </v>  Q    -       - : padding
keep           1    0    1    0    1    1    1    0
order          0    2    4    5    6  | 1    3    7       stable sort, kept slots first
result        <v>   b    d   </v>  Q                      cut to N - V + K slots
new slot       0    .    1    .    2    3    4    .       how many are kept before it

Tokens that stand in the place of others (`Selection.place`) are sorted by the slots of these, and
have their positions.

Whatever names a slot (`visual_index`, `text_index`) is sent through "new slot"; whatever lies in
slots (hidden states, positions, keys and values) is gathered by "order"; whatever is known of
visual tokens (grid, features to come) is gathered by the selection.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.types import Blend, KVSpan, Layout, Selection, typed


@flax.struct.dataclass
class Sequence:
    """Hidden states of the current tokens and where they came from."""

    hidden: jax.Array  # [B, N, D]
    layout: Layout
    origin: jax.Array  # [B, N] int32, slot in the unpruned prompt
    # [J, B, V, D], what later blocks will have added to the visual tokens; None is nothing (more)
    features: jax.Array | None = None


@typed
def mark_kept(layout: Layout, selection: Selection) -> Bool[Array, "B N"]:
    """Mark the slots that stay: every valid text slot and the selected visual slots."""
    B, N = layout.positions.shape[1:]
    rows = jnp.arange(B)[:, None]  # [B, 1]
    slots = jnp.arange(N)  # [N]
    # Padding entries are sent to slot N, which `drop` discards.
    visual = jnp.where(layout.visual_valid, layout.visual_index, N)  # [B, V]
    chosen = jnp.take_along_axis(layout.visual_index, selection.index, axis=1)  # [B, K]
    chosen = jnp.where(selection.valid, chosen, N)
    keep = slots < layout.lengths[:, None]  # [B, N]
    # all visual slots go, and the chosen ones come back below
    keep = keep.at[rows, visual].set(False, mode="drop")
    return keep.at[rows, chosen].set(True, mode="drop")


@typed
def compact(
    sequence: Sequence,
    selection: Selection,
    renumber: bool = False,
    merged: Float[Array, "B K D"] | None = None,
) -> tuple[Sequence, Int[Array, "B S"]]:
    """Merge hidden states as the selection says and gather the kept tokens to the left.

    Args:
        renumber: number the tokens 0, 1, 2, ... instead of keeping their positions.
        merged: what the kept tokens become that others merge into; None is the weighted sums.

    Returns:
        The sequence of static length S = N - V + K, and the old slot of each new slot.
    """
    layout = sequence.layout
    keep = mark_kept(layout, selection)
    N, V = keep.shape[1], layout.visual_index.shape[1]
    length = N - V + selection.index.shape[1]  # S
    valid = selection.valid  # [B, K]
    place = selection.index if selection.place is None else selection.place  # [B, K]
    order, new_slot = _sort(layout, selection, keep)  # [B, N] both
    order = order[:, :length]  # [B, S]

    def take(array: jax.Array, index: jax.Array = place) -> jax.Array:
        """Take what is known of the kept visual tokens: [B, V, ...] to [B, K, ...]."""
        index = index.reshape(*index.shape, *(1,) * (array.ndim - 2))
        return jnp.take_along_axis(array, index, axis=1)

    slots = order  # whose positions the tokens have
    if selection.place is not None:
        slots = jnp.take_along_axis(_find_places(layout, selection, place), order, axis=1)
    positions = jnp.take_along_axis(layout.positions, slots[None], axis=2)  # [3, B, S]
    if renumber:
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), positions.shape)
    shorter = layout.replace(
        visual_index=jnp.where(
            valid,
            jnp.take_along_axis(new_slot, take(layout.visual_index, selection.index), axis=1),
            0,
        ),
        visual_valid=valid,
        visual_origin=jnp.where(valid, take(layout.visual_origin, selection.index), 0),
        image_id=jnp.where(valid, take(layout.image_id), -1),
        grid=jnp.where(valid[..., None], take(layout.grid), -1),
        content=valid & take(layout.content),
        tiles=jnp.where(valid[..., None], take(layout.tiles), 0),
        image_count=jnp.where(valid, take(layout.image_count), 0),
        text_index=jnp.where(
            layout.text_valid, jnp.take_along_axis(new_slot, layout.text_index, axis=1), 0
        ),
        positions=positions,
        lengths=keep.sum(axis=1, dtype=jnp.int32),
    )
    return Sequence(
        hidden=jnp.take_along_axis(_merge(sequence, selection, merged), order[..., None], axis=1),
        layout=shorter,
        origin=jnp.take_along_axis(sequence.origin, order, axis=1),
        features=_merge_features(sequence, selection),
    ), order


def _sort(layout: Layout, selection: Selection, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sort kept slots to the front: the old slot of each new one, and the new of each old: [B, N].

    Args:
        keep: [B, N] bool.
    """
    if selection.place is None:
        order = jnp.argsort(~keep, axis=1, stable=True)
        return order.astype(jnp.int32), jnp.cumsum(keep, axis=1, dtype=jnp.int32) - 1
    # behind the token before it, whatever its own place
    stands = _find_places(layout, selection, jax.lax.cummax(selection.place, axis=1))
    order = jnp.argsort(jnp.where(keep, stands, keep.shape[1]), axis=1, stable=True)
    return order.astype(jnp.int32), jnp.argsort(order, axis=1).astype(jnp.int32)


def _find_places(layout: Layout, selection: Selection, place: jax.Array) -> jax.Array:
    """Return the slot of the place [B, K] of each kept token, any other's own slot: [B, N]."""
    B, N = layout.positions.shape[1:]
    own, there = (
        jnp.take_along_axis(layout.visual_index, each, axis=1)  # [B, K]
        for each in (selection.index, place)
    )
    slots = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), (B, N))
    own = jnp.where(selection.valid, own, N)  # `drop` discards slot N
    return slots.at[jnp.arange(B)[:, None], own].set(there, mode="drop")


def add_feature(sequence: Sequence) -> Sequence:
    """Add the first of the features to the visual tokens, and be done with it."""
    hidden, layout, features = sequence.hidden, sequence.layout, sequence.features
    # padding is sent to slot N, which `drop` discards
    slot = jnp.where(layout.visual_valid, layout.visual_index, hidden.shape[1])  # [B, V]
    rows = jnp.arange(hidden.shape[0])[:, None]  # [B, 1]
    hidden = hidden.at[rows, slot].add(features[0].astype(hidden.dtype), mode="drop")
    return sequence.replace(hidden=hidden, features=features[1:] if len(features) > 1 else None)


def _merge(sequence: Sequence, selection: Selection, merged: jax.Array | None) -> jax.Array:
    """Give the kept tokens the weighted sums of the tokens merged into them: [B, N, D]."""
    hidden, layout, weights = sequence.hidden, sequence.layout, selection.weights
    if weights is None:
        return hidden
    visual = jnp.take_along_axis(hidden, layout.visual_index[..., None], axis=1)  # [B, V, D]
    summed = weigh(weights, visual, layout.visual_valid)  # [B, K, D]
    if merged is None:
        merged = summed
    else:  # a token that nothing merges into stays as it is
        alone = ((weights != 0).sum(axis=2) <= 1) & (weights.max(axis=2) == 1)  # [B, K]
        if selection.becomes_class is not None:
            alone &= ~selection.becomes_class
        merged = jnp.where(alone[..., None], summed, merged.astype(hidden.dtype))
    slot = jnp.take_along_axis(layout.visual_index, selection.index, axis=1)  # [B, K]
    slot = jnp.where(selection.valid, slot, hidden.shape[1])
    rows = jnp.arange(hidden.shape[0])[:, None]
    return hidden.at[rows, slot].set(merged, mode="drop")


def _merge_features(sequence: Sequence, selection: Selection) -> jax.Array | None:
    """Give the kept tokens their features, or the weighted sums of them: [J, B, K, D]."""
    if sequence.features is None:
        return None
    if selection.weights is None:
        index = selection.index[None, :, :, None]  # [1, B, K, 1]
        return jnp.take_along_axis(sequence.features, index, axis=2)
    return weigh(selection.weights, sequence.features, sequence.layout.visual_valid)


def weigh(weights: jax.Array | Blend, visual: jax.Array, valid: jax.Array) -> jax.Array:
    """Sum vectors of visual tokens [..., B, V, D] by weights [B, K, V]: [..., B, K, D]."""
    # Padding may hold anything, and 0 * NaN is NaN.
    vectors = jnp.where(valid[..., None], visual, 0).astype(jnp.float32)
    if isinstance(weights, Blend):
        return weights.mix(vectors).astype(visual.dtype)
    exact = jax.lax.Precision.HIGHEST  # a token that is merely kept stays as it is
    # float32, as the weights are
    merged = jnp.einsum("bkv,...bvd->...bkd", weights, vectors, precision=exact)
    return merged.astype(visual.dtype)


def compact_caches(
    cache: list[KVSpan], order: jax.Array, lengths: jax.Array, whole_layers: int = 0
) -> list[KVSpan]:
    """Drop the same tokens from the caches of earlier blocks.

    Args:
        cache: spans of N slots.
        order: [B, S], old slot of each new slot.
        lengths: [B], tokens that stay.
        whole_layers: blocks whose cache stays as it is. A span that holds others too is split:

            layers       0 1 2 | 3 4          whole_layers=2
            becomes      0 1 | 2 | 3 4        whole | compacted | compacted
    """
    index = order[None, :, :, None, None]  # [1, B, S, 1, 1]

    def shorten(span: KVSpan) -> KVSpan:
        keys, values = (
            jnp.take_along_axis(x, index, axis=2)  # [L, B, S, G, C]
            for x in (span.keys, span.values)
        )
        return span.replace(keys=keys, values=values, lengths=lengths)

    result, layer = [], 0
    for span in cache:
        count = span.keys.shape[0]
        whole = min(max(whole_layers - layer, 0), count)
        if whole:
            result.append(span.replace(keys=span.keys[:whole], values=span.values[:whole]))
        if whole < count:
            rest = span.replace(keys=span.keys[whole:], values=span.values[whole:])
            result.append(shorten(rest if whole else span))
        layer += count
    return result
