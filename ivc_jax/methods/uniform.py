"""A baseline that looks at no signal: an even grid of tokens."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.methods.cells import CellRanking
from ivc_jax.types import Layout

# 2^32 over powers of the plastic number 1.3247..., the best constants for an even spread in two
# dimensions, and over the golden ratio for the frames of a video; odd, so that no period is short.
_ROW, _COLUMN, _FRAME = 0xC13FA9A9, 0x91E10DA5, 0x9E3779B9


@dataclasses.dataclass(frozen=True)
class Uniform(CellRanking):
    """Keep cells spread evenly over each image; the fields are those of `CellRanking`.

    Cell (frame, row, column) has the value frac(row / p + column / p² + frame / g) with p the
    plastic number and g the golden ratio; the lowest values stay. These are the points of a
    rank-1 lattice, which has no large hole at any count and any aspect ratio (Roberts' R2
    sequence). The arithmetic is exact, in 32-bit integers.
    """

    name: ClassVar[str] = "uniform"

    def score_cells(self, layout: Layout) -> jax.Array:
        """Return the value of every cell with its sign changed."""
        turns = jnp.asarray(np.array([_FRAME, _ROW, _COLUMN], np.uint32))
        value = (layout.grid.astype(jnp.uint32) * turns).sum(axis=-1, dtype=jnp.uint32)  # [B, V]
        return -(value >> 8).astype(jnp.float32)  # 24 bits are exact in float32
