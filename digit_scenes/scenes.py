"""Scenes: handwritten digits scattered, scaled and coloured over a textured canvas.

All arithmetic on pixels is on whole numbers (where a matrix product holds them as floats, they are
exact), so a seed gives the same picture on every machine.
"""

import dataclasses
import functools

import numpy as np

from digit_scenes.digits import DigitSet

SIZE = 192
SIDES = (24, 44)  # least and greatest side of a digit in pixels
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
FRAME = 3
_CROWDED = 10  # from this number of digits on (of that canvas), they are smaller and on a grid
_BLOTCHES = 7  # along a side
_TINT = 48  # how far red and blue drift from green across the canvas


@dataclasses.dataclass(frozen=True)
class Digit:
    """One digit of a scene; `box` is (x1, y1, x2, y2) in pixels, right and bottom exclusive."""

    label: int
    colour: int
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """The words that refer to the digit, such as 'red 7'."""
        return f"{COLOUR_NAMES[self.colour]} {self.label}"

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture [size, size, 3] uint8 and the digits in it."""

    pixels: np.ndarray
    digits: tuple[Digit, ...]

    @property
    def size(self) -> int:
        """Side of the square canvas in pixels."""
        return self.pixels.shape[0]


def render(
    random: np.random.Generator,
    source: DigitSet,
    num_digits: int,
    size: int = SIZE,
    cues: bool = True,
    sides: tuple[int, int] = SIDES,
) -> Scene:
    """Draw a scene.

    Args:
        num_digits: digits wanted; a crowded canvas may end up with fewer.
        size: side of the canvas in pixels.
        cues: give the canvas the marks that tell where on it one is, a frame and a slight drift of
            its tint from left to right and from top to bottom. Without, its blotches are not tied
            to the canvas either; digits keep off the border all the same.
        sides: least and greatest side of a digit in pixels; a crowd's are smaller.
    """
    canvas = _draw_background(random, size, cues)
    digits = []
    for x, y, side in _choose_places(random, num_digits, size, sides):
        pick = int(random.integers(len(source.labels)))
        colour = int(random.integers(len(COLOURS)))
        ink = np.array(COLOURS[COLOUR_NAMES[colour]]) + random.integers(-10, 11, 3)
        ink = np.clip(ink, 0, 255).astype(np.int32)
        stamp(canvas, source.tiles[pick], ink, (x, y, side))
        digits.append(Digit(int(source.labels[pick]), colour, (x, y, x + side, y + side)))
    if cues:
        for edge in (np.s_[:FRAME], np.s_[-FRAME:], np.s_[:, :FRAME], np.s_[:, -FRAME:]):
            canvas[edge] = 16
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), tuple(digits))


def stamp(
    canvas: np.ndarray, tile: np.ndarray, ink: np.ndarray, place: tuple[int, int, int]
) -> None:
    """Draw a digit onto a canvas int32 [size, size, 3], in place.

    Args:
        canvas: to draw on.
        tile: [8, 8], ink from 0 to 16.
        ink: its colour, int32 [3].
        place: (x, y, side) of its square.
    """
    x, y, side = place
    weights = make_enlargement(8, side)
    # [side, side, 1], 256 is opaque
    alpha = (weights @ tile @ weights.T).astype(np.int32)  # ink 16 is 1 << 20
    alpha = np.minimum((alpha >> 12) * 5 >> 2, 256)[..., None]  # a quarter bolder than scanned
    patch = canvas[y : y + side, x : x + side]
    patch += (ink - patch) * alpha >> 8


def _draw_background(random: np.random.Generator, size: int, cues: bool) -> np.ndarray:
    knots, wide, shift = _BLOTCHES, size, (0, 0)
    if not cues:
        # Cut from a larger mesh at random: fixed knots and flat borders would mark places.
        knots, wide = _BLOTCHES + 2, size * (_BLOTCHES + 2) // _BLOTCHES
        half = size // (2 * _BLOTCHES)
        shift = random.integers(half + 1, wide - size - half, 2)
    # [size, knots]: coarse knots become smooth blotches, whole numbers all the way
    down, right = (make_enlargement(knots, wide)[start : start + size] for start in shift)
    blotches = (down @ random.integers(-24, 25, (knots, knots)) @ right.T).astype(np.int32) >> 16
    noise = random.integers(-8, 9, (size, size), dtype=np.int8)
    grey = (blotches + noise + random.integers(70, 111)).astype(np.int32)
    canvas = np.repeat(grey[..., None], 3, axis=2)
    if cues:
        drift = np.arange(size) * _TINT // size - _TINT // 2
        canvas[..., 0] += drift[None, :]
        canvas[..., 2] += drift[:, None]
    return canvas


def _choose_places(
    random: np.random.Generator, num_digits: int, size: int, sides: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """Choose (x, y, side) of squares that do not touch each other or the frame."""
    low, high = FRAME + 1, size - FRAME - 1
    if num_digits >= _CROWDED * (size * sum(SIDES)) ** 2 // (SIZE * sum(sides)) ** 2:
        return _choose_cells(random, num_digits, low, high, sides)
    places: list[tuple[int, int, int]] = []
    for _ in range(num_digits):
        for _ in range(60):
            side = int(random.integers(sides[0], sides[1] + 1))
            x, y = (int(v) for v in random.integers(low, high - side + 1, 2))
            if all(
                x + side + 1 < a or a + s + 1 < x or y + side + 1 < b or b + s + 1 < y
                for a, b, s in places
            ):
                places.append((x, y, side))
                break
    return places


def _choose_cells(
    random: np.random.Generator, num_digits: int, low: int, high: int, sides: tuple[int, int]
) -> list[tuple[int, int, int]]:
    cells = (high - low) // (sum(sides) // 2 + 2)
    step = (high - low) // cells
    places = []
    for cell in random.permutation(cells * cells)[:num_digits]:
        side = int(random.integers(sides[0] - 2, step))
        row, column = divmod(int(cell), cells)
        x, y = (int(v) for v in random.integers(0, step - side + 1, 2))
        places.append((low + column * step + x, low + row * step + y, side))
    return places


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
