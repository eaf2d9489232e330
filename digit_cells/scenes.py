"""Scenes: handwritten digits, each inside one cell of a square grid.

The ground says nothing about place.

A cell is what becomes one visual token. All arithmetic on pixels is on whole numbers (where a
matrix product holds them as floats, they are exact), so a seed gives the same picture on every
machine.
"""

import dataclasses
import functools

import numpy as np

from digit_scenes.digits import DigitSet
from digit_scenes.questions import Box
from digit_scenes.scenes import COLOUR_NAMES, COLOURS, Digit, make_enlargement

CELL = 16  # side of a cell in pixels
SIDES = (12, 16)  # least and greatest width and height of a digit in pixels
GROUND = 10  # the label of a cell without a digit
_KNOTS = 3  # of the blotches of a cell, along a side


@dataclasses.dataclass(frozen=True)
class Scene:
    """Digits on a grid of `grid` x `grid` cells."""

    grid: int
    digits: tuple[Digit, ...]

    @property
    def size(self) -> int:
        """Side of the picture in pixels."""
        return self.grid * CELL


@dataclasses.dataclass(frozen=True)
class Cells:
    """Pictures of single cells.

    Attributes:
        pixels: uint8 [n, CELL, CELL, 3].
        label: int32 [n], the digit, or GROUND.
        colour: int32 [n], an index of COLOUR_NAMES, or their number where there is no digit.
        box: int32 [n, 4], of the digit inside its cell; zeros where there is none.
    """

    pixels: np.ndarray
    label: np.ndarray
    colour: np.ndarray
    box: np.ndarray

    @functools.cached_property
    def with_digit(self) -> np.ndarray:
        """Indices of the cells that hold a digit."""
        return np.flatnonzero(self.label != GROUND)

    @functools.cached_property
    def ground(self) -> np.ndarray:
        """Indices of those that hold none."""
        return np.flatnonzero(self.label == GROUND)


def draw_cells(random: np.random.Generator, source: DigitSet, digits: int, ground: int) -> Cells:
    """Draw so many cells with a digit of `source`, and so many without."""
    pixels = np.empty((digits + ground, CELL, CELL, 3), np.uint8)
    label = np.full(len(pixels), GROUND, np.int32)
    colour = np.full(len(pixels), len(COLOURS), np.int32)
    box = np.zeros((len(pixels), 4), np.int32)
    for i in range(len(pixels)):
        canvas = _draw_ground(random)
        if i < digits:
            label[i], colour[i], box[i] = _draw_digit(random, source, canvas)
        pixels[i] = np.clip(canvas, 0, 255)
    return Cells(pixels, label, colour, box)


def arrange(
    random: np.random.Generator, cells: Cells, num_digits: int, grid: int, side: int | None = None
) -> tuple[Scene, np.ndarray]:
    """Arrange drawn cells into a scene; every cell shown is as likely to hold a digit.

    Args:
        side: cells along a side of the top left corner that is shown; None shows the whole grid.

    Returns:
        The scene, and which of `cells` lies where: int64 [side * side].
    """
    side = side or grid
    where = random.permutation(side * side)[:num_digits]
    picks = random.choice(cells.ground, side * side)
    picks[where] = random.choice(cells.with_digit, num_digits)
    return Scene(grid, tuple(_place(cells, picks[at], at, side) for at in where.tolist())), picks


def render(
    random: np.random.Generator, source: DigitSet, num_digits: int, grid: int
) -> tuple[Scene, np.ndarray]:
    """Draw a scene of fresh cells; return it and its pixels, uint8 [size, size, 3]."""
    cells = draw_cells(random, source, num_digits, grid * grid - num_digits)
    # every cell once: those with a digit where chance puts them
    where = random.permutation(grid * grid)
    picks = np.empty(grid * grid, np.int64)
    picks[where] = np.arange(grid * grid)
    digits = tuple(_place(cells, i, at, grid) for i, at in enumerate(where[:num_digits].tolist()))
    return Scene(grid, digits), join(cells.pixels[picks], grid)


def find_cell(digit: Digit) -> tuple[int, int]:
    """Return the row and the column of the cell that a digit lies in."""
    x1, y1, _, _ = digit.box
    return y1 // CELL, x1 // CELL


def join(cells: np.ndarray, grid: int) -> np.ndarray:
    """Join the pictures of cells [grid * grid, CELL, CELL, 3] into one [size, size, 3]."""
    rows = cells.reshape(grid, grid, CELL, CELL, 3).swapaxes(1, 2)  # [row, y, column, x, 3]
    return rows.reshape(grid * CELL, grid * CELL, 3)


def _place(cells: Cells, pick: int, at: int, grid: int) -> Digit:
    row, column = divmod(at, grid)
    x1, y1, x2, y2 = cells.box[pick].tolist()
    box = (column * CELL + x1, row * CELL + y1, column * CELL + x2, row * CELL + y2)
    return Digit(int(cells.label[pick]), int(cells.colour[pick]), box)


def _draw_ground(random: np.random.Generator) -> np.ndarray:
    """Draw grey blotches and noise, int32 [CELL, CELL, 3]."""
    knots = random.integers(-24, 25, (_KNOTS, _KNOTS))
    enlarge = make_enlargement(_KNOTS, CELL)
    blotches = (enlarge @ knots @ enlarge.T).astype(np.int32) >> 16
    grey = blotches + random.integers(-8, 9, (CELL, CELL)) + random.integers(60, 121)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.int32)


def _draw_digit(
    random: np.random.Generator, source: DigitSet, canvas: np.ndarray
) -> tuple[int, int, Box]:
    """Draw a digit of chance into a cell; return its label, colour and box."""
    pick = int(random.integers(len(source.labels)))
    colour = int(random.integers(len(COLOURS)))
    # width and height apart, and slanted: there are few digits to learn from
    wide, tall = random.integers(SIDES[0], SIDES[1] + 1, 2).tolist()
    x, y = (int(random.integers(0, CELL - side + 1)) for side in (wide, tall))
    ink = np.array(COLOURS[COLOUR_NAMES[colour]]) + random.integers(-10, 11, 3)
    ink = np.clip(ink, 0, 255).astype(np.int32)
    down, across = make_enlargement(8, tall), make_enlargement(8, wide)
    # [tall, wide], 256 is opaque; ink 16 is 1 << 20
    alpha = (down @ source.tiles[pick] @ across.T).astype(np.int32) >> 12
    alpha = np.minimum(alpha * 5 >> 2, 256)  # a quarter bolder than scanned
    alpha = _slant(alpha, int(random.integers(-2, 3)))[..., None]
    patch = canvas[y : y + tall, x : x + wide]
    patch += (ink - patch) * alpha >> 8
    return int(source.labels[pick]), colour, (x, y, x + wide, y + tall)


def _slant(alpha: np.ndarray, most: int) -> np.ndarray:
    """Shift the first row by `most` pixels, the last as far the other way, and those between."""
    tall = len(alpha)
    shifted = np.zeros_like(alpha)
    for row in range(tall):
        by = most * (tall - 1 - 2 * row) // (tall - 1)
        source = np.s_[max(-by, 0) : alpha.shape[1] - max(by, 0)]
        shifted[row, max(by, 0) : alpha.shape[1] - max(-by, 0)] = alpha[row, source]
    return shifted
