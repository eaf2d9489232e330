"""IVC-Prune of pictures that are shown twice, as released for DeepSeek-VL2
(`IVCP_forward_flashattention` in its modeling_deepseek.py).

Text looks at the view of the whole. What it sees there is kept in the mosaic too, where a cell of
the view is as many cells as there are tiles. Learned tokens, n at the end of rows and s between the
two, stay; padding around the picture is never foreground. A view of 2 x 2 cells, 2 x 1 tiles:

    view   a b n        mosaic   a a | b b n
           c d n  s              c c | d d n
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import RopeConfig
from ivc_jax.methods.coordinates import Coordinates
from ivc_jax.methods.select import Segments, round_counts
from ivc_jax.types import Layout, typed

_VIEW, _MOSAIC = 0, 1  # frames of `Layout.grid`
_ROW_FRACTION = 0.15  # of a row of the mosaic, by V and again by U


@dataclasses.dataclass(frozen=True)
class _Cells:
    """Where the tokens of pictures lie: [B, V] each."""

    frame: jax.Array
    row: jax.Array
    column: jax.Array
    last_row: jax.Array  # of the token's frame; the separator is alone in that of the view
    last_column: jax.Array  # of the token's frame: that of its learned tokens

    @classmethod
    def find(cls, layout: Layout) -> "_Cells":
        frame, row, column = jnp.moveaxis(layout.grid, -1, 0)
        frames = Segments.by_frame(layout)
        return cls(frame, row, column, frames.max(row), frames.max(column))

    @property
    def separates(self) -> jax.Array:
        return (self.frame == _VIEW) & (self.row == self.last_row)


def find_views(layout: Layout) -> Segments:
    """Make the view of every picture, with the learned tokens of its rows, a segment."""
    cells = _Cells.find(layout)
    inside = layout.visual_valid & (cells.frame == _VIEW) & ~cells.separates
    return Segments.by_number(jnp.where(inside, layout.image_id, -1), layout.num_images)


def _find_rows(layout: Layout) -> Segments:
    """Make every row of a mosaic a segment."""
    cells = _Cells.find(layout)
    inside = layout.visual_valid & (cells.frame == _MOSAIC)
    return Segments.by_runs(inside, layout.image_id, cells.frame, cells.row)


@typed
def mark_coordinates(
    coordinates: Coordinates, layout: Layout, rope: RopeConfig, score_dtype: str = "float32"
) -> Bool[Array, "B V"]:
    """Mark the IVC tokens: of every view, and of every row of the mosaics."""
    by_row = dataclasses.replace(
        coordinates, cos_fraction=_ROW_FRACTION, sin_fraction=_ROW_FRACTION
    )
    return coordinates.mark(layout, rope, find_views(layout), score_dtype) | by_row.mark(
        layout, rope, _find_rows(layout), score_dtype
    )


@typed
def combine(
    coordinates: Bool[Array, "B V"],
    foreground: Float[Array, "B V"],
    seeds: Bool[Array, "B V"],
    layout: Layout,
    share: float,
) -> Bool[Array, "B V"]:
    """Mark what is kept of every picture: as much as that is.

    Args:
        coordinates: IVC tokens.
        foreground: scores, of views alone.
        seeds: cells of views that stay.
        layout: unpruned.
        share: IVC tokens and foreground of a view, together, of its tokens; one token of
            foreground at least.
    """
    views, cells = find_views(layout), _Cells.find(layout)
    marked = coordinates & views.valid
    room = views.look_up(round_counts(share, layout.visual_slots))
    room = jnp.maximum(room - views.sum(marked.astype(jnp.int32)), 1)
    shows = views.valid & layout.content & ~marked
    chosen = (views.rank(foreground, shows) < room) | seeds
    learned = cells.separates | (cells.column == cells.last_column)
    kept = coordinates | chosen | project(chosen, layout) | learned
    return kept & layout.visual_valid


@typed
def project(chosen: Bool[Array, "B V"], layout: Layout) -> Bool[Array, "B V"]:
    """Mark the cells of mosaics that lie within chosen cells of their view."""
    cells = _Cells.find(layout)
    columns, rows = jnp.moveaxis(jnp.maximum(layout.tiles, 1), -1, 0)  # [B, V]
    side = cells.last_column // columns  # cells along the view, and along a tile
    source = cells.row // rows * (side + 1) + cells.column // columns
    looked_up = Segments.by_image(layout).read(chosen, source)
    return looked_up & (cells.frame == _MOSAIC) & (cells.column < cells.last_column)


def bound_picture(
    max_count: int,
    side: int,
    coordinates: Coordinates,
    seeds: int,
    share: float,
) -> Int[np.ndarray, "n"]:
    """Bound the kept tokens of a picture of each size 0 .. max_count: 0 where there is none.

    Args:
        max_count: of visual tokens.
        side: cells along a view.
        coordinates: IVC tokens.
        seeds: of a view, at most.
        share: as in `combine`.
    """
    bound, view = np.zeros(max_count + 1, np.int32), side * (side + 1)
    if view > max_count:
        return bound
    target = int(round_counts(share, max_count)[view])
    marked = [int(each[view]) for each in coordinates.count(max_count)]  # by V, by U
    by_row = round_counts(_ROW_FRACTION, max_count)
    # Two sets may be one: then there is most room for foreground.
    chosen = max(1, target - max(marked)) + seeds
    whole = min(view, max(target, sum(marked) + 1) + seeds + side)
    for columns in range(1, max_count // side + 1):
        width = side * columns + 1
        for rows in range(1, (max_count - view - 1) // (side * width) + 1):
            mosaic = side * rows * width
            here = chosen * columns * rows + side * rows * (1 + 2 * int(by_row[width]))
            size = view + 1 + mosaic
            bound[size] = max(bound[size], whole + 1 + min(mosaic, here))
    return bound
