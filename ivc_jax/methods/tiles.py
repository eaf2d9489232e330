"""IVC-Prune of pictures in tiles, as released for InternVL2.5 (`IVCP_forward_flashattention` in its
modeling_internlm2.py).

Text looks at the thumbnail, the whole picture behind its tiles. What it sees there is kept in the
tiles too, where a cell of the thumbnail is as many cells as there are tiles:

    thumbnail   a b        2 x 1 tiles   a a | b b      token  0 1 2 3 4 5 6 7 8 9 10 11
                c d                      c c | d d             a a c c b b d d a b c  d
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ivc_jax.methods.base import MethodError
from ivc_jax.methods.select import Segments, keep_one, round_counts
from ivc_jax.types import Layout, typed


def check_tiles(layout: Layout) -> None:
    """Refuse pictures of which nobody says how their tiles lie.

    Args:
        layout: of a batch on the host, or on devices that this process can read.

    Raises:
        MethodError: names the sample and the picture.
    """
    if not getattr(layout.tiles, "is_fully_addressable", True):
        return  # a batch of several processes comes from a processor, which knows its tiles
    count = np.asarray(layout.tiles).prod(axis=-1)  # [B, V], without the thumbnail
    number, frame = np.asarray(layout.image_id), np.asarray(layout.grid)[..., 0]
    ends = number != np.pad(number, ((0, 0), (0, 1)), constant_values=-1)[:, 1:]  # [B, V]
    wrong = (number >= 0) & ends & (frame != np.where(count > 1, count, 0))
    for sample, token in np.argwhere(wrong):
        raise MethodError(
            f"sample {sample}: image {number[sample, token]} has {frame[sample, token] + 1} tiles,"
            " and combine=tiles must know how they lie; pass images_spatial_crop=[(columns, rows),"
            " ...] to Batch.from_hf, a view of the whole not counted, or choose combine=fill"
        )


def find_thumbnails(layout: Layout) -> Segments:
    """Make the last tile of every picture, which shows all of it, a segment."""
    count = layout.tiles.prod(axis=-1)  # [B, V]
    last = jnp.where(count > 1, count, 0)  # the only tile is the whole picture
    shows = layout.visual_valid & (layout.grid[..., 0] == last)
    return Segments.by_number(jnp.where(shows, layout.image_id, -1), layout.num_images)


@typed
def combine(
    coordinates: Bool[Array, "B V"],
    foreground: Float[Array, "B V"],
    seeds: Bool[Array, "B V"],
    layout: Layout,
    keep_ratio: float,
) -> Bool[Array, "B V"]:
    """Mark what is kept of every picture, a share `keep_ratio` of its tokens at most.

    Of the thumbnail its IVC tokens stay, and foreground up to that share of it; the foreground is
    looked up in the tiles, whose IVC tokens stay as well, and so do the seeds. If there is room,
    more of the thumbnail follows. If there is none, the last tokens go, whatever they are.

    Args:
        coordinates: IVC tokens of every tile.
        foreground: scores, of thumbnails alone.
        seeds: of thumbnails alone.
        layout: unpruned.
        keep_ratio: of a picture, and of its thumbnail.
    """
    images, thumbnails = Segments.by_image(layout), find_thumbnails(layout)
    counts = keep_one(round_counts(keep_ratio, layout.visual_slots))
    inside = thumbnails.valid  # [B, V]
    marked = coordinates & inside
    room = thumbnails.look_up(counts) - thumbnails.sum(marked.astype(jnp.int32))
    chosen = thumbnails.rank(foreground, inside & ~marked) < room
    priority = coordinates | chosen | project(chosen, layout) | seeds
    target = images.look_up(counts)  # [B, V]
    room = target - images.sum(priority.astype(jnp.int32))
    added = thumbnails.rank(foreground, inside & ~priority) < room
    # place of a token among those of its image that have priority: 1, 2, ...
    reached = jnp.cumsum(priority, axis=1, dtype=jnp.int32)
    before = jnp.take_along_axis(reached - priority, images.first, axis=1)
    whole = images.valid & (target == images.count)  # keep_ratio 1
    return (priority & (reached - before <= target)) | added | whole


@typed
def project(chosen: Bool[Array, "B V"], layout: Layout) -> Bool[Array, "B V"]:
    """Mark the cells of tiles that lie within chosen cells of their thumbnail."""
    images, frames = Segments.by_image(layout), Segments.by_frame(layout)
    columns, rows = jnp.moveaxis(jnp.maximum(layout.tiles, 1), -1, 0)  # [B, V]
    tile, row, column = jnp.moveaxis(layout.grid, -1, 0)  # [B, V]
    height, width = frames.max(row) + 1, frames.max(column) + 1  # cells of a tile
    # cell of the mosaic, and with it that of the thumbnail
    down, across = tile // columns * height + row, tile % columns * width + column
    cell = down // rows * width + across // columns
    looked_up = images.read(chosen, columns * rows * height * width + cell)
    return looked_up & layout.visual_valid & (tile < columns * rows) & (columns * rows > 1)
