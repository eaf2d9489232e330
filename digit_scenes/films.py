"""Films: handwritten digits that appear in cells of a grid, move from cell to cell, and vanish.

    second     0 1 2 3 4 5 6 7
    red 7          - - - - -        appears after 2 seconds, vanishes after 7
    blue 3     - - - - - - - -      there from the start to the end

Cells are those of `scenes`; the ground of a film stands still.
"""

import dataclasses

import numpy as np

from digit_scenes.digits import DigitSet
from digit_scenes.glyphs import CELL, COLOUR_NAMES, Glyph, draw_glyph, draw_ground
from digit_scenes.scenes import GRID, join

MOST_DIGITS = 5
_LEAST_SECONDS = 2  # that a digit is there
_LEAST_WAY = 3  # a moving digit goes a third of the grid at least
_ATTEMPTS = 200


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long a film is, and how large.

    Attributes:
        seconds: of the film.
        rate: frames a second.
        grid: cells along a side of its frames.
    """

    seconds: int = 8
    rate: int = 4
    grid: int = GRID

    @property
    def size(self) -> int:
        """Side of the frames in pixels."""
        return self.grid * CELL


@dataclasses.dataclass(frozen=True)
class Actor:
    """One digit of a film.

    Attributes:
        glyph: how it is drawn, and where inside a cell.
        first: second after which it appears; 0 is there from the start.
        last: second after which it vanishes.
        start: (row, column) of its cell when it appears.
        end: likewise in its last frame.
    """

    glyph: Glyph
    first: int
    last: int
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def name(self) -> str:
        """The words that refer to the digit, such as 'red 7'."""
        return f"{COLOUR_NAMES[self.glyph.colour]} {self.glyph.label}"

    def locate(self, frame: int, rate: int) -> tuple[int, int] | None:
        """Return its cell (row, column) in a frame, None where it is not there."""
        first, last = self.first * rate, self.last * rate
        if not first <= frame < last:
            return None
        done, way = frame - first, last - first - 1  # steps
        row, column = (a + (b - a) * done // way for a, b in zip(self.start, self.end, strict=True))
        return row, column


@dataclasses.dataclass(frozen=True)
class Film:
    """Frames [frames, size, size, 3] uint8, and the digits in them."""

    frames: np.ndarray
    actors: tuple[Actor, ...]
    timing: Timing


def draw_film(random: np.random.Generator, source: DigitSet, timing: Timing) -> Film:
    """Draw a film of three to five digits, no two of a class and no two that appear together."""
    wanted = int(random.integers(3, MOST_DIGITS + 1))
    seconds = random.permutation(timing.seconds - _LEAST_SECONDS + 1)[:wanted]
    actors: list[Actor] = []
    for first in map(int, seconds):
        for _ in range(_ATTEMPTS):
            actor = _draw_actor(random, source, first, timing)
            if all(_are_apart(actor, other, timing) for other in actors):
                actors.append(actor)
                break
    ground = np.stack([draw_ground(random) for _ in range(timing.grid**2)])
    frames = []
    for frame in range(timing.seconds * timing.rate):
        cells = ground.copy()
        for actor in actors:
            if (place := actor.locate(frame, timing.rate)) is not None:
                actor.glyph.stamp(cells[place[0] * timing.grid + place[1]], source)
        frames.append(join(np.clip(cells, 0, 255).astype(np.uint8), timing.grid))
    return Film(np.stack(frames), tuple(actors), timing)


def _draw_actor(random: np.random.Generator, source: DigitSet, first: int, timing: Timing) -> Actor:
    glyph = draw_glyph(random, source)
    last = int(random.integers(first + _LEAST_SECONDS, timing.seconds + 1))
    start = [int(value) for value in random.integers(0, timing.grid, 2)]
    end = list(start)
    if random.integers(2):  # half of them move, along one axis
        axis, way = int(random.integers(2)), timing.grid // _LEAST_WAY
        options = [v for v in range(timing.grid) if abs(v - start[axis]) >= max(way, 1)]
        end[axis] = options[int(random.integers(len(options)))] if options else start[axis]
    return Actor(glyph, first, last, (start[0], start[1]), (end[0], end[1]))


def _are_apart(one: Actor, other: Actor, timing: Timing) -> bool:
    """Say whether two digits differ in class and never share a cell."""
    if one.glyph.label == other.glyph.label:
        return False
    for frame in range(timing.seconds * timing.rate):
        places = [actor.locate(frame, timing.rate) for actor in (one, other)]
        if places[0] is not None and places[0] == places[1]:
            return False
    return True
