"""A picture shown twice: a view of the whole, and a mosaic of tiles (DeepSeek-VL2).

Both are squares of cells, and every row of either ends in a learned token n; a learned token s
stands between them. Rows of the mosaic run across its tiles. Two tiles of 2 x 2 cells:

    whole    a b n        mosaic    c d | g h n        tokens  a b n a b n s c d g h n e f i j n
             a b n                  e f | i j n

    grid     frame 0, rows 0 and 1, columns 0 to 2; s is (0, 2, 0); frame 1, columns 0 to 4
"""

import numpy as np

from ivc_jax.config import VisionConfig

# What stands in `Footprint.source` for a learned token.
NEWLINE, SEPARATOR = -1, -2


def lay_views(
    cells: np.ndarray, vision: VisionConfig, tiles: tuple[int, int], size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out the tokens of a picture.

    Args:
        cells: [1 + tiles, side, side] int32, number of each merged cell: of the whole, then of the
            tiles row by row.
        vision: of the tower.
        tiles: (columns, rows).
        size: (height, width) of the picture in pixels before it was padded; without it every cell
            counts as content.

    Returns:
        source [v] int32, grid [v, 3] int32 and content [v] bool, as in `Footprint`.
    """
    (columns, rows), (_, side, _) = tiles, cells.shape
    mosaic = cells[1:].reshape(rows, columns, side, side).swapaxes(1, 2)
    mosaic = mosaic.reshape(rows * side, columns * side)  # [rows of cells, columns of cells]
    parts = []
    for frame, (view, shape) in enumerate(((cells[0], (1, 1)), (mosaic, tiles))):
        shown = _mark_content(side, vision, shape, size)
        place = np.indices((len(view), view.shape[1] + 1), np.int32)
        parts.append(
            (
                np.pad(view, ((0, 0), (0, 1)), constant_values=NEWLINE).ravel(),
                np.stack([np.full_like(place[0], frame), *place], axis=-1).reshape(-1, 3),
                np.pad(shown, ((0, 0), (0, 1))).ravel(),
            )
        )
    between = np.int32([SEPARATOR]), np.int32([[0, side, 0]]), np.zeros(1, bool)
    source, grid, content = map(np.concatenate, zip(parts[0], between, parts[1], strict=True))
    return source, grid, content


def _mark_content(
    side: int, vision: VisionConfig, tiles: tuple[int, int], size: tuple[int, int] | None
) -> np.ndarray:
    """Mark the cells of a view that show a part of the picture: bool [rows, columns].

    They are those that meet the picture where the released code takes it to lie: scaled to fit,
    its sides cut to whole pixels, in the middle.
    """
    across, down = tiles
    if size is None:
        return np.ones((down * side, across * side), bool)
    height, width = size
    full = across * vision.view_size, down * vision.view_size
    scale = min(full[0] / width, full[1] / height)
    columns, rows = (
        _meet(side, vision, count, whole, int(length * scale))
        for count, whole, length in zip(tiles, full, (width, height), strict=True)
    )
    return rows[:, None] & columns


def _meet(side: int, vision: VisionConfig, tiles: int, whole: int, length: int) -> np.ndarray:
    """Mark the cells along one axis that meet a picture of this length in its middle."""
    cell = vision.patch_size * vision.spatial_merge_size
    tile, place = np.divmod(np.arange(tiles * side), side)
    start = tile * vision.view_size + place * cell
    # the last cell of a tile reaches over its border
    stop = np.minimum(start + cell, (tile + 1) * vision.view_size)
    first = (whole - length) // 2
    return np.maximum(start, first) < np.minimum(stop, first + length)
