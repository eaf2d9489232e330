"""Dropped tokens that come back as one token for each cell of the grid (VFlowOpt's recycling)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.ivc import rank_in_segment
from ivc_jax.methods.select import NEAR, from_mask, keep_weights
from ivc_jax.types import Layout, Selection, typed

_LEAST_WEIGHT = 1e-9  # an entropy with a negative weight may bring an importance below 0


@typed
def recycle(
    worth: Float[Array, "B V"],
    keep: Bool[Array, "B V"],
    pool: Bool[Array, "B V"],
    cell: Int[Array, "B V"],
    num_keep: int,
) -> Selection:
    """Keep tokens as they are, and the pool of each cell as its mean, weighted by worth.

    The mean takes the slot of the most important token of the pool in its cell, the first of
    equals. A grid of 3 x 4 and cells of 2 x 2; k is kept, the others are the pool:

         0   1 |  k   3      cells {0, 1, 4}, {3, 6, 7}, {8}, {10, 11}: each becomes its mean,
         4   k |  6   7      weighted by importance, in the slot of its most important token
        -------+-------
         8   k | 10  11
    """
    leads = rank_in_segment(worth, cell, pool, NEAR) == 0  # [B, V]
    chosen = from_mask(keep | leads, num_keep)

    def of_kept(field: jax.Array) -> jax.Array:
        return jnp.take_along_axis(field, chosen.index, axis=1)[..., None]

    mean = of_kept(leads) & chosen.valid[..., None]  # [B, K, 1]
    member = mean & pool[:, None] & (of_kept(cell) == cell[:, None])  # [B, K, V]
    mass = jnp.where(member, jnp.maximum(worth, _LEAST_WEIGHT)[:, None], 0.0)
    mass /= jnp.where(mean, mass.sum(axis=2, keepdims=True), 1.0)
    itself = keep_weights(chosen, worth.shape[1])
    return chosen.replace(weights=jnp.where(mean, mass, itself))


@typed
def number_cells(layout: Layout, across: Int[Array, " V"] | np.ndarray) -> Int[Array, "B V"]:
    """Number the cells that tokens lie in; alike in every image, anything at padding.

    Args:
        across: the cell of each row, and of each column, of a grid.
    """
    across = jnp.asarray(across)
    if not len(across):
        return layout.grid[..., 0]
    place = across[layout.grid[..., 1:]]  # [B, V, 2]
    return place[..., 0] * (across[-1] + 1) + place[..., 1]


def bound_cells(cell: float, max_count: int) -> np.ndarray:
    """Tabulate the most cells that a grid of 0 .. max_count tokens, rows by columns, can touch."""
    cells = np.zeros(max_count + 1, np.int32)
    touched = np.floor(np.arange(max_count) / cell).astype(np.int32) + 1  # by 1, 2, ... in a row
    for rows in range(1, math.isqrt(max_count) + 1):
        columns = np.arange(rows, max_count // rows + 1)
        sizes = rows * columns
        cells[sizes] = np.maximum(cells[sizes], touched[rows - 1] * touched[columns - 1])
    return cells
