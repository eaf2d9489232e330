"""Pictures of one prompt, and where its visual tokens lie on them.

a picture             one panel, a cell a token
in tiles              a panel a tile, and one of the view of the whole
a video               a panel a temporal slice
with learned tokens   cells alone, beside the picture: they do not lie on it
"""

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

MOST_SLICES = 16  # of a video that are shown
_SIDE = 1024  # pixels of the longer side of a picture, less where there are several
_LEAST_SIDE = 256
_QUALITY = 82  # of WebP


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture, or one grid of cells.

    Attributes:
        title: what it shows.
        rows: of cells; 0 shows a picture alone.
        columns: likewise.
        tokens: the visual token of each cell, row by row; -1 where there is none.
        picture: a WebP file that the cells cover, or None.
    """

    title: str
    rows: int
    columns: int
    tokens: list[int]
    picture: bytes | None


def make_panels(
    layout: Mapping[str, np.ndarray],
    pictures: Sequence[Image.Image] = (),
    frames: Sequence[Image.Image] = (),
    titles: Sequence[str] = (),
) -> list[Panel]:
    """Lay the visual tokens of a sample on its pictures, or on the frames of its video.

    Args:
        layout: `grid` [n, 3], `image_id` [n], `tiles` [n, 2] and `content` [n] of the n visual
            tokens, as in `ivc_jax.types.Layout`.
        pictures: as the model sees them, one an image.
        frames: of a video, the first of each temporal slice; instead of pictures.
        titles: of the frames.
    """
    found = list(_list_frames(layout))
    if frames:
        even = np.linspace(0, len(found) - 1, min(len(found), MOST_SLICES)).round()
        chosen = [(found[n], frames[n], titles[n]) for n in np.unique(even.astype(int))]
    else:
        chosen = [part for image in range(len(pictures)) for part in _place(found, image, pictures)]
    side = max(_LEAST_SIDE, round(_SIDE / math.sqrt(max(len(chosen), 1))))
    return [_make_panel(cells, picture, title, side) for cells, picture, title in chosen]


@dataclasses.dataclass(frozen=True)
class _Frame:
    """The tokens of a frame, a tile or a view, and their cells."""

    image: int
    number: int
    cells: np.ndarray  # [rows, columns], token or -1
    tiles: tuple[int, int]  # (columns, rows)
    shows: bool  # every token a part of the picture


def _list_frames(layout: Mapping[str, np.ndarray]) -> Iterator[_Frame]:
    grid, image_id = layout["grid"], layout["image_id"]
    for image in np.unique(image_id):
        shows = bool(layout["content"][image_id == image].all())
        for number in np.unique(grid[image_id == image, 0]):
            (tokens,) = np.nonzero((image_id == image) & (grid[:, 0] == number))
            rows, columns = grid[tokens, 1:].T
            cells = np.full((rows.max() + 1, columns.max() + 1), -1)
            cells[rows, columns] = tokens
            tiles = tuple(map(int, layout["tiles"][tokens[0]]))
            yield _Frame(int(image), int(number), cells, tiles, shows and (cells >= 0).all())


def _place(
    found: Sequence[_Frame], image: int, pictures: Sequence[Image.Image]
) -> Iterator[tuple[_Frame | None, Image.Image | None, str]]:
    """Yield the frames of an image, each with what lies below it."""
    mine = [frame for frame in found if frame.image == image]
    picture = pictures[image]
    name = "Picture" if len(pictures) == 1 else f"Picture {image + 1}"
    if len(mine) == 1 and mine[0].shows:
        yield mine[0], picture, name
        return
    columns, rows = mine[0].tiles
    if len(mine) == columns * rows + 1 and all(frame.shows for frame in mine):
        for frame in mine[:-1]:
            row, column = divmod(frame.number, columns)
            yield (
                frame,
                _crop(picture, row, column, rows, columns),
                f"{name}, tile {frame.number + 1}",
            )
        yield mine[-1], picture, f"{name}, view of the whole"
        return
    yield None, picture, f"{name}: its tokens do not lie on it cell by cell"
    for frame in mine:
        yield frame, None, f"{name}, part {frame.number + 1}"


def _crop(picture: Image.Image, row: int, column: int, rows: int, columns: int) -> Image.Image:
    across, down = picture.width / columns, picture.height / rows
    edges = column * across, row * down, (column + 1) * across, (row + 1) * down
    return picture.crop(tuple(map(round, edges)))


def _make_panel(frame: _Frame | None, picture: Image.Image | None, title: str, side: int) -> Panel:
    content = None
    if picture is not None:
        small = picture.convert("RGB")  # a copy: shrinking changes it
        small = small.copy() if small is picture else small
        small.thumbnail((side, side))
        file = io.BytesIO()
        small.save(file, "WEBP", quality=_QUALITY)
        content = file.getvalue()
    cells = np.zeros((0, 0), int) if frame is None else frame.cells
    return Panel(title, *cells.shape, cells.ravel().tolist(), content)
