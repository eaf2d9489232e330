"""How a cell is drawn: grey ground that says nothing about place, and a digit on it.

All arithmetic on pixels is on whole numbers (where a matrix product holds them as floats, they are
exact), so a seed gives the same picture on every machine.
"""

import dataclasses
import functools

import numpy as np

from digit_scenes.digits import DigitSet

CELL = 16  # side of a cell in pixels
SIDES = (12, 16)  # least and greatest width and height of a digit in pixels
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (228, 48, 44),
    "orange": (244, 148, 28),
    "yellow": (240, 232, 60),
    "green": (52, 196, 76),
    "cyan": (64, 222, 226),
    "blue": (60, 100, 250),
    "purple": (176, 72, 216),
    "white": (246, 246, 246),
}
COLOUR_NAMES = tuple(COLOURS)
_KNOTS = 3  # of the blotches of a cell, along a side

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Glyph:
    """How one digit is drawn.

    Attributes:
        label: its class.
        colour: number of its colour.
        pick: number of its picture in the set of digits.
        box: (x1, y1, x2, y2) inside its cell in pixels, right and bottom exclusive.
        ink: red, green and blue.
        slant: pixels by which its first row is shifted, its last as far the other way.
    """

    label: int
    colour: int
    pick: int
    box: Box
    ink: tuple[int, int, int]
    slant: int

    def stamp(self, canvas: np.ndarray, source: DigitSet) -> None:
        """Draw onto the picture of a cell int32 [CELL, CELL, 3], in place."""
        x1, y1, x2, y2 = self.box
        down, across = make_enlargement(8, y2 - y1), make_enlargement(8, x2 - x1)
        # [tall, wide], 256 is opaque; ink 16 is 1 << 20
        alpha = (down @ source.tiles[self.pick] @ across.T).astype(np.int32) >> 12
        alpha = np.minimum(alpha * 5 >> 2, 256)  # a quarter bolder than scanned
        patch = canvas[y1:y2, x1:x2]
        patch += (np.array(self.ink, np.int32) - patch) * _slant(alpha, self.slant)[..., None] >> 8


def draw_glyph(random: np.random.Generator, source: DigitSet) -> Glyph:
    """Draw how a digit of chance looks, and where in its cell it lies."""
    pick = int(random.integers(len(source.labels)))
    colour = int(random.integers(len(COLOURS)))
    # width and height apart, and slanted: there are few digits to learn from
    wide, tall = random.integers(SIDES[0], SIDES[1] + 1, 2).tolist()
    x, y = (int(random.integers(0, CELL - side + 1)) for side in (wide, tall))
    ink = np.array(COLOURS[COLOUR_NAMES[colour]]) + random.integers(-10, 11, 3)
    return Glyph(
        label=int(source.labels[pick]),
        colour=colour,
        pick=pick,
        box=(x, y, x + wide, y + tall),
        ink=tuple(np.clip(ink, 0, 255).tolist()),
        slant=int(random.integers(-2, 3)),
    )


def draw_ground(random: np.random.Generator) -> np.ndarray:
    """Draw grey blotches and noise, int32 [CELL, CELL, 3]."""
    knots = random.integers(-24, 25, (_KNOTS, _KNOTS))
    enlarge = make_enlargement(_KNOTS, CELL)
    blotches = (enlarge @ knots @ enlarge.T).astype(np.int32) >> 16
    grey = blotches + random.integers(-8, 9, (CELL, CELL)) + random.integers(60, 121)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.int32)


@functools.cache
def make_enlargement(source: int, target: int) -> np.ndarray:
    """Bilinear resize as a matrix [target, source] of whole numbers; rows sum to 256."""
    # middle of each target cell among the sources, in 256ths
    where = np.clip((2 * np.arange(target) + 1) * source * 128 // target - 128, 0, None)
    low = np.minimum(where // 256, source - 1)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source))
    fraction = where - low * 256
    fraction = np.where(low == high, 0, fraction)
    np.add.at(weights, (np.arange(target), low), 256 - fraction)
    np.add.at(weights, (np.arange(target), high), fraction)
    return weights


def _slant(alpha: np.ndarray, most: int) -> np.ndarray:
    """Shift the first row by `most` pixels, the last as far the other way, and those between."""
    tall = len(alpha)
    shifted = np.zeros_like(alpha)
    for row in range(tall):
        by = most * (tall - 1 - 2 * row) // (tall - 1)
        source = np.s_[max(-by, 0) : alpha.shape[1] - max(by, 0)]
        shifted[row, max(by, 0) : alpha.shape[1] - max(-by, 0)] = alpha[row, source]
    return shifted
