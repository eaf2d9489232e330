"""Reference tokens by other rules than the released one, as many as it marks.

What attention sees of two positions is their difference: plane i of an axis turns by theta_i times
it. The mean cosine of a difference, each axis with the planes that it turns, says how close two
tokens are in rotary space, whatever lies before them in the prompt:

    closeness(p, q) = sum over axes of table[axis, |p[axis] - q[axis]|]

That is V of a difference (`ivc.make_tables`). Looked up it is the same to the last bit in every
bucket, so that ties are exact. All rules see the unpruned prompt and mark exactly `counts` tokens
of every segment.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax import ivc
from ivc_jax.methods.cells import draw_cells
from ivc_jax.methods.farthest import pick
from ivc_jax.methods.select import Segments, split_totals
from ivc_jax.types import Layout, typed

_LAST_SEED = 2**31 - 1


@typed
def mark_random(
    layout: Layout, within: Segments, counts: Int[Array, "B V"], seed: int = 0
) -> Bool[Array, "B V"]:
    """Mark tokens at random, by the number of their image and by their cell, as `Random` does.

    Seeds count down from the last one: `Random`, as the host of `+ivc`, has a draw of its own.
    """
    return within.top(draw_cells(layout, _LAST_SEED - seed), counts, tolerance=0.0)


@typed
def mark_lattice(layout: Layout, within: Segments, counts: Int[Array, "B V"]) -> Bool[Array, "B V"]:
    """Mark an even lattice over the grid of every image and every frame.

    Of h x w cells n are marked, in k rows: the whole number nearest to sqrt(n h / w), but no fewer
    than can hold them. Row i of these holds m = floor((i + 1) n / k) - floor(i n / k). Number i of
    m in s rows or columns lies at i (s - 1) / (m - 1), rounded half up, so that the first and the
    last are among them; a single one in the middle, at floor((s - 1) / 2):

        x . . . x
        . . . . .      n 8 of 4 x 5: sqrt(6.4) is nearest to 3; rows 0, 2 and 3 hold 2, 3 and 3
        x . x . x
        x . x . x
    """
    grid = _Grid.find(layout, within, counts)
    n, k = grid.counts, jnp.maximum(grid.lines, 1)  # [B, V] both
    i, in_row = _find_place(grid.row, k, grid.height)
    _, in_column = _find_place(grid.column, (i + 1) * n // k - i * n // k, grid.width)
    # A grid that lacks cells lacks some of these: the first others stand in.
    return grid.parts.top((in_row & in_column).astype(jnp.float32), n, tolerance=0.0)


@typed
def mark_farthest(
    places: Int[Array, "3 B V"],
    closeness: Float[np.ndarray, "axes positions"],
    within: Segments,
    counts: Int[Array, "B V"],
    most: int,
) -> Bool[Array, "B V"]:
    """Mark the first token of a segment, then always the one farthest from all marked so far.

    Greedy farthest points in rotary space; the distance is the sum over planes of 1 - cosine, up
    to a factor. A table look-up an axis for V tokens in each of `most` steps.

    Args:
        places: position ids.
        closeness: see above.
        most: at least the sum of the counts of a sample.
    """

    def compare(token: jax.Array) -> jax.Array:
        picked = jnp.take_along_axis(places, token[None], axis=2)  # [3, B, 1]
        return ivc.gather_scores(closeness, jnp.abs(places - picked))  # [B, V]

    return pick(compare, within, counts, most).keep


@typed
def mark_phase(
    layout: Layout,
    closeness: Float[np.ndarray, "3 positions"],
    within: Segments,
    counts: Int[Array, "B V"],
    most: int,
) -> Bool[Array, "B V"]:
    """Mark where rows and columns cross that cover the phases of their own axis.

    Rows are farthest points by the planes of height, columns by those of width: no row of a picture
    is far from a chosen one in the phases that tell rows apart. There are k rows as in a lattice
    and ceil(n / k) columns; crossings too many are those of the last column with the last rows.

    Args:
        closeness: of the axes of M-RoPE. On one line no axis has planes of its own.
        most: at least the sum of the counts of a sample.
    """
    grid = _Grid.find(layout, within, counts)
    k = grid.lines
    columns = -(-grid.counts // jnp.maximum(k, 1))  # [B, V]
    width, first = grid.width, grid.parts.first
    nth_row = _order_lines(grid.parts, grid.row, grid.column == 0, closeness[1], k, most)
    nth_column = _order_lines(grid.parts, grid.column, grid.row == 0, closeness[2], columns, most)
    # tokens of the first column speak for their rows, those of the first row for their columns
    V = k.shape[1]
    nth_row, nth_column = (
        jnp.take_along_axis(nth, jnp.minimum(first + head, V - 1), axis=1)  # [B, V]
        for nth, head in ((nth_row, grid.row * width), (nth_column, grid.column))
    )
    cross = (nth_row < k) & (nth_column < columns)
    order = jnp.where(cross, nth_column * k + nth_row, V)
    return grid.parts.top(-order.astype(jnp.float32), grid.counts, tolerance=0.0)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The grid of every image and frame, and what is marked there: [B, V] each."""

    parts: Segments
    counts: jax.Array  # tokens to mark, n
    row: jax.Array
    column: jax.Array
    height: jax.Array
    width: jax.Array

    @classmethod
    def find(cls, layout: Layout, within: Segments, counts: jax.Array) -> "_Grid":
        """Split the counts of segments over their images and frames."""
        frame, *axes = jnp.moveaxis(layout.grid, -1, 0)
        parts = Segments.by_runs(within.valid, within.number, layout.image_id, frame)
        if not frame.shape[1]:
            return cls(parts, counts, frame, frame, frame, frame)
        row, column = (axis - parts.min(axis) for axis in axes)
        sides = (parts.max(axis) + 1 for axis in (row, column))
        return cls(parts, split_totals(counts, within, parts), row, column, *sides)

    @property
    def lines(self) -> jax.Array:
        """The rows k that hold n of h x w cells, as far apart as their columns."""
        n, h, w = self.counts, self.height, self.width
        # k is the largest with k - 1/2 <= sqrt(n h / w), that is with (2 k - 1)² <= 4 n h / w.
        square = 4 * n * h // w
        root = jnp.sqrt(square.astype(jnp.float32)).astype(jnp.int32)
        root += ((root + 1) ** 2 <= square).astype(jnp.int32)  # float32 may be one off
        root -= (root**2 > square).astype(jnp.int32)
        return jnp.clip((root + 1) // 2, -(-n // w), jnp.minimum(n, h))


def _find_place(index: jax.Array, count: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the nearest of `count` even places among `size`: its number, and whether it is here."""
    gaps, steps = jnp.maximum(count - 1, 1), jnp.maximum(size - 1, 1)
    number = jnp.where(count > 1, (2 * index * gaps + steps) // (2 * steps), 0)
    place = jnp.where(count > 1, (2 * number * steps + gaps) // (2 * gaps), (size - 1) // 2)
    return number, index == place


def _order_lines(
    parts: Segments,
    along: jax.Array,
    heads: jax.Array,
    closeness: np.ndarray,
    counts: jax.Array,
    most: int,
) -> jax.Array:
    """Number rows or columns at one token of each, `heads` [B, V], in the order of being picked.

    Args:
        along: row or column of every token, [B, V].
        closeness: by the difference of two, [positions].
        counts: lines to pick of this token's part, [B, V].

    Returns:
        int32 [B, V], V where nothing was picked.
    """
    lines = parts.replace(number=jnp.where(heads, parts.number, -1))

    def compare(token: jax.Array) -> jax.Array:
        gap = jnp.abs(along - jnp.take_along_axis(along, token, axis=1))
        return jnp.asarray(closeness)[gap]  # [B, V]

    order, V = pick(compare, lines, counts, most).order, along.shape[1]
    return jnp.where(order < V, order - lines.min(order), V)
