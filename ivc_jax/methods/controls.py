"""Tokens that go in the place of the IVC tokens: as many of each image, chosen otherwise.

An image of 3 x 5 cells, its IVC tokens (x), and what controls that are not drawn take instead:

    ivc          first        nearest      first_columns  mirror_lr    mirror_both
    x x . . .    x x x . .    x x . . .    x . . . .      . . . x x    . . . . .
    . . . x .    . . . . .    x . . . .    x . . . .      . x . . .    . x . . .
    . . . . .    . . . . .    . . . . .    x . . . .      . . . . .    . . . x x
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ivc_jax.methods.cells import draw_cells
from ivc_jax.methods.select import Segments
from ivc_jax.methods.uniform import Uniform
from ivc_jax.types import Layout

MIRRORS = {"mirror_lr": (False, True), "mirror_ud": (True, False), "mirror_both": (True, True)}
OUTSIDE = ("other", "rank")  # controls that take no IVC token
CONTROLS = (
    *("ivc", "random", *OUTSIDE, "first", "nearest", "last", "first_columns", "last_columns"),
    *(*MIRRORS, "block", "lattice"),
)


def order_tokens(
    control: str, layout: Layout, chosen: jax.Array, free: jax.Array, seed: int
) -> jax.Array:
    """Say which tokens of an image go first under a control of `IVCRemoval`.

    Args:
        control: one of `CONTROLS`.
        layout: of the unpruned sequence.
        chosen: [B, V] bool, the IVC tokens that may go.
        free: [B, V] bool, all tokens that may go.
        seed: of what is drawn.

    Returns:
        float32 [B, V]: the largest go first, of equal ones the first.
    """
    if not chosen.shape[1] or control == "ivc":
        return chosen.astype(jnp.float32)
    frame, row, column = jnp.moveaxis(layout.grid, -1, 0)  # [B, V] each
    if control in MIRRORS:
        return _mirror(layout, chosen, free, *MIRRORS[control]).astype(jnp.float32)
    if control == "rank":
        return _match_rows(layout, chosen, free, seed).astype(jnp.float32)
    if control == "block":
        return -_measure_from_drawn(layout, seed)
    orders: dict[str, Callable[[], jax.Array]] = {
        "random": lambda: draw_cells(layout, seed),
        "other": lambda: jnp.where(chosen, -1.0, draw_cells(layout, seed)),
        "first": lambda: jnp.zeros_like(column),
        "last": lambda: jnp.broadcast_to(jnp.arange(column.shape[1]), column.shape),
        "nearest": lambda: -(frame**2 + row**2 + column**2),
        "first_columns": lambda: -column,
        "last_columns": lambda: column,
        "lattice": lambda: Uniform().score_cells(layout),
    }
    return orders[control]().astype(jnp.float32)


def _mirror(
    layout: Layout, chosen: jax.Array, free: jax.Array, rows: bool, columns: bool
) -> jax.Array:
    """Mark the mirror images of the IVC tokens in the grid of their frame: bool [B, V].

    Where one may not go, or is no cell, the nearest token goes that may.
    """
    frames, (frame, row, column) = Segments.by_frame(layout), jnp.moveaxis(layout.grid, -1, 0)
    width = frames.max(column) + 1  # [B, V]
    # learned tokens of some models stand below the rows of their frame
    last = frames.max(jnp.where(column == width - 1, row, 0))
    row = last - row if rows else row
    column = width - 1 - column if columns else column
    cells = jnp.stack([frame, row, column], axis=-1)  # [B, V, 3], mirror images
    place = jnp.clip(frames.first + row * width + column, 0, row.shape[1] - 1)  # [B, V]
    at = lambda table: jnp.take_along_axis(table, place, axis=1)  # noqa: E731
    real = (jnp.take_along_axis(layout.grid, place[..., None], axis=1) == cells).all(axis=-1)
    # a mirror image of a mirror image is the cell itself: who is chosen there goes here
    taken = free & real & at(chosen)
    lost = chosen & ~(real & at(free))

    def measure(token: jax.Array) -> jax.Array:
        return ((layout.grid - cells[:, token, None]) ** 2).sum(axis=-1)  # [B, V]

    return _take_nearest(layout, taken, lost, free, measure)


def _match_rows(layout: Layout, chosen: jax.Array, free: jax.Array, seed: int) -> jax.Array:
    """Mark another token for each IVC token: of its row, or of the nearest that has one left."""
    frame, row, _ = jnp.moveaxis(layout.grid, -1, 0)  # [B, V] each
    # counted through all frames
    row = Segments.by_runs(layout.visual_valid, layout.image_id, frame, row).number  # [B, V]
    draws = draw_cells(layout, seed)  # below 1: they decide between rows at one distance

    def measure(token: jax.Array) -> jax.Array:
        return jnp.abs(row - row[:, token, None]) - draws  # [B, V]

    return _take_nearest(layout, jnp.zeros_like(chosen), chosen, free & ~chosen, measure)


def _take_nearest(
    layout: Layout,
    taken: jax.Array,
    asked: jax.Array,
    free: jax.Array,
    measure: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Take one more token of its image for every asked one, in raster order: bool [B, V].

    Args:
        taken: [B, V] bool, what is taken already.
        asked: [B, V] bool.
        free: [B, V] bool, what may be taken.
        measure: distances [B, V] of all tokens from this one; of equal ones the first is taken.
    """
    slots = jnp.arange(taken.shape[1])  # [V]

    def step(taken: jax.Array, token: jax.Array) -> tuple[jax.Array, None]:
        left = free & ~taken & (layout.image_id == layout.image_id[:, token, None])
        far = jnp.where(left, measure(token), jnp.inf)  # [B, V]
        found = asked[:, token] & left.any(axis=1)  # [B]
        return taken | (found[:, None] & (slots == far.argmin(axis=1)[:, None])), None

    return jax.lax.scan(step, taken, slots)[0]


def _measure_from_drawn(layout: Layout, seed: int) -> jax.Array:
    """Measure squared distances from a drawn cell of each image: float32 [B, V]."""
    within, draws = Segments.by_image(layout), draw_cells(layout, seed)
    drawn = within.valid & (draws == within.max(jnp.where(within.valid, draws, -1.0)))  # [B, V]
    far = jnp.zeros_like(draws)
    for axis in jnp.moveaxis(layout.grid, -1, 0):  # [B, V] each
        far += (axis - within.max(jnp.where(drawn, axis, -1))) ** 2
    return far
