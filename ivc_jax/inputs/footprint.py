"""What a picture or a video takes up, from its size alone: patch rows, visual tokens, positions.

An image in one piece is one patch row; one that is cut into tiles has a row for each, a video for
each temporal slice. The patches of one merged cell lie next to each other, and each cell becomes a
visual token. Merge 2, an image of 4 x 4 patches:

    patches      0  1 |  4  5        row        0 1 2 3  4 5 6 7  8 9 10 11  12 13 14 15
                 2  3 |  6  7                   `cell 0' `cell 1' `-cell 2-' `-cell 3--'
                ------+------
                 8  9 | 12 13        grid       (0,0,0) (0,0,1) (0,1,0) (0,1,1)
                10 11 | 14 15        source        0       1       2       3

A tower with windows wants its cells window by window, each window padded to its full size, so that
a reshape cuts a row into windows. Tokens stay in raster order:

    image     a b | c        row            a b d e  c f - -  g h - -  i - - -
    (2 x 2    d e | f                       `--v--'  `--v--'  `--v--'  `--v--'
    cells a   ----+--        source         a 0, b 1, c 4, d 2, e 3, f 5, g 8, h 9, i 12
    window)   g h | i
"""

import dataclasses
import functools

import numpy as np

from ivc_jax.config import ModelConfig, VisionConfig
from ivc_jax.inputs.batch import Visual
from ivc_jax.inputs.views import lay_views

_FAR = 2**30  # more than the positions of any model; int32 holds it with room for sums


@dataclasses.dataclass(frozen=True, eq=False)
class Footprint:
    """What one visual takes up; the only place that knows windows, views and timestamps.

    Attributes:
        rows: patch rows.
        patches: slots of each row, whole merged cells and windows.
        slots: where the patches of a slice lie in their row, in the order in which a processor
            returns them (merge blocks in raster order): [p] int64, or a slice where they stay in
            order.
        patch_positions: [rows, patches, 2] int32, (row, column) of the patch in each slot; -1 is
            padding.
        source: [v] int32, the merged cell that becomes each visual token, counted through all
            rows: patches / merge² cells a row; below 0 a token that no patch makes
            (`inputs.views`).
        grid: [v, 3] int32, (frame, row, column) of each token in merged cells; a tile is a frame.
        content: [v] bool, whether a token shows a part of the picture.
        tiles: (columns, rows) of its tiles.
        runs: its tokens come in so many equal runs, with text between them.
        times: of each temporal slice of a video, in seconds; () if nobody has said.
        positions: [v, 3] int32, position ids (time, height, width) of each token, counted from
            where its run starts.
        span: how far the position ids of the text behind a run are moved on.
    """

    rows: int
    patches: int
    slots: np.ndarray | slice
    patch_positions: np.ndarray
    source: np.ndarray
    grid: np.ndarray
    content: np.ndarray
    tiles: tuple[int, int]
    runs: int
    times: tuple[float, ...]
    positions: np.ndarray
    span: int

    @property
    def count(self) -> int:
        """Number of visual tokens."""
        return len(self.source)


def measure_visual(visual: Visual, kind: str, config: ModelConfig) -> Footprint:
    """Work out the footprint of an "image" or a "video"; an image has no time."""
    seconds = visual.seconds if kind == "video" else None
    return find_footprint(visual.grid, config, seconds, visual.tiles, visual.size, visual.times)


# A data set has few sizes, and a picture is measured for its prompt and again for its layout.
@functools.lru_cache(maxsize=128)
def find_footprint(
    grid: tuple[int, int, int],
    config: ModelConfig,
    seconds: float | None = None,
    tiles: tuple[int, int] = (1, 1),
    size: tuple[int, int] | None = None,
    times: tuple[float, ...] = (),
) -> Footprint:
    """Work out the footprint of a visual; equal arguments get the same one.

    Args:
        grid: (t, h, w) in patches; h and w are multiples of the merge size.
        config: of the model.
        seconds: from one temporal slice of a video to the next; None for an image.
        tiles: as in `Visual`.
        size: as in `Visual`.
        times: as in `Visual`.
    """
    vision = config.vision
    merge, area = vision.spatial_merge_size, vision.merge_area
    # in merged cells; those at the right and lower borders may lack patches (`cuts_cells`)
    rows, height, width = grid[0], -(-grid[1] // merge), -(-grid[2] // merge)
    places, cells = _place_cells(height, width, vision)  # [h' * w'] and a number
    raster = np.stack(np.indices(grid[1:]), axis=-1).reshape(-1, 2)[sort_patches(*grid[1:], merge)]
    cell, inside = np.divmod(raster, merge)  # [h * w, 2] both
    slots = places[cell[:, 0] * width + cell[:, 1]] * area + inside[:, 0] * merge + inside[:, 1]
    # [patches of a row, 2]; what no patch takes is padding
    patch_positions = np.full((cells * area, 2), -1, np.int32)
    patch_positions[slots] = raster
    if len(slots) == cells * area and vision.window_cells is None:
        slots = slice(cells * area)  # copying a row is twice as fast as scattering it
    frames = np.arange(rows, dtype=np.int32)[:, None]  # [t, 1]
    runs = rows if vision.timestamps and seconds is not None else 1
    # Every slice is cut the same way: [t, h * w] before it is flat, a row of `cells` cells each.
    source = (frames * cells + places).ravel().astype(np.int32)
    tokens = np.indices((rows, height, width), np.int32).reshape(3, -1).T  # [v, 3]
    content = np.ones(len(tokens), bool)
    if vision.view_size is not None:
        source, tokens, content = lay_views(
            source.reshape(rows, height, width), vision, tiles, size
        )
    found = Footprint(
        rows=rows,
        patches=cells * area,
        slots=slots,
        # broadcasting copies nothing
        patch_positions=np.broadcast_to(patch_positions, (rows, *patch_positions.shape)),
        source=source,
        grid=tokens,
        content=content,
        tiles=tiles,
        runs=runs,
        times=times,
        positions=_number_tokens(tokens, runs, config, seconds),
        span=len(tokens) // runs if config.decoder.rope.line else max(height, width),
    )
    for array in (found.source, found.grid, found.content, found.positions):
        array.setflags(write=False)  # others will get the same one
    return found


def sort_patches(height: int, width: int, merge: int) -> np.ndarray:
    """List patches [h * w], numbered in raster order, cell by cell (merge-block order)."""
    row, column = np.indices((height, width))  # [h, w] each
    cell = row // merge * -(-width // merge) + column // merge
    inside = row % merge * merge + column % merge
    return np.lexsort((inside.ravel(), cell.ravel()))


def _place_cells(height: int, width: int, vision: VisionConfig) -> tuple[np.ndarray, int]:
    """Return where in its row each cell of a slice lies, [h * w] in raster order, and the cells
    of a row.

    Windows start at the upper left corner; those at the right and lower borders may be cut off.
    The cells of a window come in raster order, its padding behind them.
    """
    side = vision.window_cells
    if side is None:
        return np.arange(height * width), height * width
    row, column = np.indices((height, width))  # [h, w] each
    across, down = -(-width // side), -(-height // side)  # windows
    window = row // side * across + column // side  # [h, w]
    columns = np.minimum(side, width - column // side * side)  # of this cell's window
    places = window * side**2 + row % side * columns + column % side  # [h, w]
    return places.ravel(), across * down * side**2


def _number_tokens(
    grid: np.ndarray, runs: int, config: ModelConfig, seconds: float | None
) -> np.ndarray:
    """Number the tokens of cells [v, 3] from where their run starts: position ids [v, 3] int32.

    On a line they follow each other. Otherwise they have the numbers of their cells; with absolute
    time frame 3 at 4 positions a second and half a second a frame is 3 * 4 * 0.5 = 6, rounded down.
    """
    if config.decoder.rope.line:
        place = np.arange(len(grid), dtype=np.int32) % (len(grid) // runs)  # [v]
        return np.tile(place[:, None], 3)
    positions, rate = grid.copy(), config.vision.tokens_per_second
    if runs > 1:
        positions[:, 0] = 0
    elif seconds is not None and rate is not None:
        # float32 products, as the reference implementation forms them
        step = np.float32(rate) * np.float32(min(seconds, _FAR))
        time = grid[:, 0].astype(np.float32) * step  # [v]
        positions[:, 0] = time.clip(max=_FAR)  # what is cut off exceeds every model
    return positions
