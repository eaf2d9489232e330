"""Grids of tokens for frames, and how the map of a frame is resized to its grid (QuoTA).

Frames get shares of a total, c each; a grid of h x w holds the most of c that is nearly square:

    c       34           76           8            0
    grid    6 x 5 = 30   9 x 8 = 72   3 x 2 = 6    gone

The tokens of all grids follow each other in a buffer of static length. A slot of it finds its frame
by where their runs begin, and its row and column by division:

    begin   0    30   102            slot 31 is place 1 of the second: row 0, column 1
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods.shares import reach, split_by_squares, square
from ivc_jax.types import Blend, typed

ASSIGNERS = ("v1", "v2", "v3")


@flax.struct.dataclass
class Grids:
    """What each frame gets: int32 [B, F] each, 0 for a frame that is gone."""

    count: jax.Array  # c, its share of the total
    height: jax.Array
    width: jax.Array
    tokens: jax.Array  # n, what it uses of its share


@flax.struct.dataclass
class Maps:
    """Where the maps of frames lie among the visual tokens: int32 [B, F] each."""

    first: jax.Array  # visual index of the upper left token
    height: jax.Array
    width: jax.Array
    stride: jax.Array  # from a row to the next; more than the width where rows end in learned ones


@flax.struct.dataclass
class Slots:
    """The buffer that holds the tokens of all grids, in order: [B, K] each."""

    frame: jax.Array  # int32
    inside: jax.Array  # int32, place within the frame
    count: jax.Array  # int32, tokens of the frame
    row: jax.Array  # int32, of the frame's grid
    column: jax.Array
    height: jax.Array  # int32, of that grid
    width: jax.Array
    valid: jax.Array  # bool, a prefix


@typed
def assign(
    relevance: Float[Array, "B F"],
    mask: Bool[Array, "B F"],
    total: Int[Array, " B"],
    available: Int[Array, "B F"] | None = None,
    assigner: str = "v1",
) -> Grids:
    """Split a total over frames by the squares of their relevance, and find their grids.

    Args:
        relevance: p in [0, 1]; if all are 0, frames count alike.
        mask: which frames there are.
        total: N, below 2^18.
        available: tokens of each frame. All but "v1" give none more than it has: what is over goes,
            in one pass, to the others by their weights.
        assigner: "v3" picks tokens and uses all of a share; the others fill a grid.
    """
    relevance = jnp.where(mask, jnp.nan_to_num(relevance), 0.0)
    none = ~(relevance > 0).any(axis=1, keepdims=True)
    relevance = jnp.where(none, mask, relevance).astype(jnp.float32)
    if assigner == "v1":
        count = split_by_squares(relevance, mask, total)
    else:
        squares, whole = square(relevance)
        # exceeded, by more than what makes a share a whole number
        full = mask & reach(squares, whole, total[:, None], available, slack=-4)
        left = total - jnp.where(full, available, 0).sum(axis=1, dtype=jnp.int32)
        share = split_by_squares(relevance, mask & ~full, left)
        count = jnp.where(full, available, jnp.minimum(share, available))
    return make_grids(count, assigner)


def make_grids(count: jax.Array, assigner: str = "v1") -> Grids:
    """Find the grid of each share: s = floor(sqrt(c)), and a row more if that fits."""
    side = jnp.floor(jnp.sqrt(count.astype(jnp.float32))).astype(jnp.int32)
    side -= side**2 > count  # a square root may be off in its last bit
    side += (side + 1) ** 2 <= count
    height = side + ((side * (side + 1) <= count) & (count > 0))
    tokens = count if assigner == "v3" else height * side
    return Grids(count, height, side, tokens)


@typed
def lay_slots(grids: Grids, num_slots: int) -> Slots:
    """Lay the tokens of all grids out in a buffer."""
    (B, F), ends = grids.tokens.shape, jnp.cumsum(grids.tokens, axis=1)  # [B, F]
    slot = jnp.arange(num_slots, dtype=jnp.int32)
    # every frame that is not gone marks its first slot; `drop` discards what lies behind
    begin = jnp.where(grids.tokens > 0, ends - grids.tokens, num_slots)
    number = jnp.broadcast_to(jnp.arange(F, dtype=jnp.int32), (B, F))
    marks = jnp.zeros((B, num_slots), jnp.int32)
    marks = marks.at[jnp.arange(B)[:, None], begin].set(number, mode="drop")
    frame = jax.lax.cummax(marks, axis=1)  # [B, K]
    take = lambda table: jnp.take_along_axis(table, frame, axis=1)  # noqa: E731
    valid = slot < ends[:, -1:]
    inside = jnp.where(valid, slot - take(ends - grids.tokens), 0)
    height, width = jnp.maximum(take(grids.height), 1), jnp.maximum(take(grids.width), 1)
    row, column = inside // width, inside % width
    return Slots(frame, inside, take(grids.tokens), row, column, height, width, valid)


@typed
def interpolate(slots: Slots, maps: Maps) -> Blend:
    """Resize every map to its grid: bilinear, half-pixel centers, no antialiasing ("v1").

        y = max(0, (r + 0.5) * H / h - 0.5)      between rows floor(y) and the one below

    Returns:
        The four tokens that each one is made of.
    """
    rows = _find_neighbours(slots.row, slots.height, _of_slots(maps.height, slots))
    columns = _find_neighbours(slots.column, slots.width, _of_slots(maps.width, slots))
    index, weights = [], []
    for row, part in rows:
        for column, other in columns:
            index.append(_find_token(row, column, slots, maps))
            weights.append(jnp.where(slots.valid, part * other, 0.0))
    return Blend(jnp.stack(index, axis=-1), jnp.stack(weights, axis=-1))


@typed
def pool(
    slots: Slots,
    maps: Maps,
    frame: Int[Array, "B V"],
    row: Int[Array, "B V"],
    column: Int[Array, "B V"],
) -> Float[Array, "B K V"]:
    """Average every map over boxes, as adaptive pooling does ("v2"): the weights.

    Args:
        frame: of each visual token, -1 for what is no part of a map.
        row, column: of the map.
    """
    inside = slots.frame[..., None] == frame[:, None]  # [B, K, V]
    area = slots.valid.astype(jnp.int32)
    for place, size, whole, cell in (
        (slots.row, slots.height, maps.height, row),
        (slots.column, slots.width, maps.width, column),
    ):
        length = _of_slots(whole, slots)
        first, last = place * length // size, -(-(place + 1) * length // size)  # [B, K]
        inside &= (cell[:, None] >= first[..., None]) & (cell[:, None] < last[..., None])
        area *= last - first
    share = jnp.where(slots.valid, 1.0 / jnp.maximum(area, 1), 0.0)
    return jnp.where(inside, share[..., None], 0.0)


@typed
def find_places(slots: Slots, maps: Maps, assigner: str = "v1") -> Int[Array, "B K"]:
    """Find the token in whose place each one stands; 0 where there is none.

    A grid spans the extent of its map: row r is row floor((r + 0.5) * H / h) of it. "v3" picks
    evenly spaced tokens, the first and the last included.
    """
    height, width = _of_slots(maps.height, slots), _of_slots(maps.width, slots)
    if assigner == "v3":
        picked = slots.inside * (height * width - 1) // jnp.maximum(slots.count - 1, 1)
        row, column = picked // jnp.maximum(width, 1), picked % jnp.maximum(width, 1)
    else:
        row = (2 * slots.row + 1) * height // (2 * slots.height)
        column = (2 * slots.column + 1) * width // (2 * slots.width)
    return jnp.where(slots.valid, _find_token(row, column, slots, maps), 0)


def _find_neighbours(
    place: jax.Array, size: jax.Array, whole: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Return the two rows (or columns) that a place lies between, and the part of each."""
    # in whole numbers: y = twice / (2 size)
    twice = jnp.maximum((2 * place + 1) * whole - size, 0)
    low, rest = twice // (2 * size), twice % (2 * size)
    part = rest.astype(jnp.float32) / (2 * size)
    # without a part it is not looked at: it may hold anything
    high = jnp.where(rest > 0, jnp.minimum(low + 1, whole - 1), low)
    return (low, 1 - part), (high, part)


def _of_slots(table: jax.Array, slots: Slots) -> jax.Array:
    """Hand every slot what is known of its frame: [B, F] to [B, K]."""
    return jnp.take_along_axis(table, slots.frame, axis=1)


def _find_token(row: jax.Array, column: jax.Array, slots: Slots, maps: Maps) -> jax.Array:
    found = _of_slots(maps.first, slots) + row * _of_slots(maps.stride, slots) + column
    return jnp.where(slots.valid, found, 0).astype(jnp.int32)
