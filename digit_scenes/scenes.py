"""Scenes: handwritten digits, each inside one cell of a square grid.

A cell is what becomes one visual token; the ground says nothing about place.
"""

import dataclasses
import functools

import numpy as np

from digit_scenes.digits import DigitSet
from digit_scenes.glyphs import CELL, COLOUR_NAMES, COLOURS, Box, draw_glyph, draw_ground

GRID = 16  # cells along a side of the pictures of the benchmark
GROUND = 10  # the label of a cell without a digit


@dataclasses.dataclass(frozen=True)
class Digit:
    """One digit of a scene; `box` is (x1, y1, x2, y2) in pixels, right and bottom exclusive."""

    label: int
    colour: int
    box: Box

    @property
    def name(self) -> str:
        """The words that refer to the digit, such as 'red 7'."""
        return f"{COLOUR_NAMES[self.colour]} {self.label}"

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def cell(self) -> tuple[int, int]:
        """The row and the column of the cell that it lies in."""
        x1, y1, _, _ = self.box
        return y1 // CELL, x1 // CELL


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
        canvas = draw_ground(random)
        if i < digits:
            glyph = draw_glyph(random, source)
            glyph.stamp(canvas, source)
            label[i], colour[i], box[i] = glyph.label, glyph.colour, glyph.box
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
    random: np.random.Generator, source: DigitSet, num_digits: int, grid: int = GRID
) -> tuple[Scene, np.ndarray]:
    """Draw a scene of fresh cells; return it and its pixels, uint8 [size, size, 3].

    Raises:
        ValueError: more digits than cells.
    """
    if num_digits > grid * grid:
        raise ValueError(f"{num_digits} digits need a larger grid than {grid} x {grid} cells")
    cells = draw_cells(random, source, num_digits, grid * grid - num_digits)
    # every cell once: those with a digit where chance puts them
    where = random.permutation(grid * grid)
    picks = np.empty(grid * grid, np.int64)
    picks[where] = np.arange(grid * grid)
    digits = tuple(_place(cells, i, at, grid) for i, at in enumerate(where[:num_digits].tolist()))
    return Scene(grid, digits), join(cells.pixels[picks], grid)


def join(cells: np.ndarray, grid: int) -> np.ndarray:
    """Join the pictures of cells [grid * grid, CELL, CELL, 3] into one [size, size, 3]."""
    rows = cells.reshape(grid, grid, CELL, CELL, 3).swapaxes(1, 2)  # [row, y, column, x, 3]
    return rows.reshape(grid * CELL, grid * CELL, 3)


def _place(cells: Cells, pick: int, at: int, grid: int) -> Digit:
    row, column = divmod(at, grid)
    x1, y1, x2, y2 = cells.box[pick].tolist()
    box = (column * CELL + x1, row * CELL + y1, column * CELL + x2, row * CELL + y2)
    return Digit(int(cells.label[pick]), int(cells.colour[pick]), box)
