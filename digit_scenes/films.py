"""Films: handwritten digits that appear on a textured canvas, move over it, and vanish.

    second     0 1 2 3 4 5 6 7
    red 7          - - - - -        appears after 2 seconds, vanishes after 7
    blue 3     - - - - - - - -      there from the start to the end

As in `scenes`, all arithmetic on pixels is on whole numbers.
"""

import dataclasses

import numpy as np

from digit_scenes.digits import DigitSet
from digit_scenes.scenes import COLOUR_NAMES, COLOURS, FRAME, SIDES, SIZE, render, stamp

MOST_DIGITS = 5
_LEAST_SECONDS = 2  # that a digit is there
_LEAST_WAY = 3  # a moving digit goes a third of the canvas at least
_GAP = 2  # pixels between two digits
_ATTEMPTS = 200


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long a film is.

    Attributes:
        seconds: of the film.
        rate: frames a second.
        size: side of the square canvas in pixels, even.
    """

    seconds: int = 8
    rate: int = 4
    size: int = SIZE


@dataclasses.dataclass(frozen=True)
class Actor:
    """One digit of a film.

    Attributes:
        label: its class.
        colour: number of its colour.
        pick: number of its picture in the set of digits.
        side: of its square in pixels.
        first: second after which it appears; 0 is there from the start.
        last: second after which it vanishes.
        start: (x, y) of its upper left corner when it appears.
        end: likewise in its last frame.
    """

    label: int
    colour: int
    pick: int
    side: int
    first: int
    last: int
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def name(self) -> str:
        """The words that refer to the digit, such as 'red 7'."""
        return f"{COLOUR_NAMES[self.colour]} {self.label}"

    def locate(self, frame: int, rate: int) -> tuple[int, int] | None:
        """Return its upper left corner (x, y) in a frame, None where it is not there."""
        first, last = self.first * rate, self.last * rate
        if not first <= frame < last:
            return None
        done, way = frame - first, last - first - 1  # steps
        x, y = (a + (b - a) * done // way for a, b in zip(self.start, self.end, strict=True))
        return x, y


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
    inks = [
        np.array(COLOURS[COLOUR_NAMES[actor.colour]], np.int32)
        + random.integers(-10, 11, 3, dtype=np.int32)
        for actor in actors
    ]
    background = render(random, source, 0, timing.size).pixels.astype(np.int32)
    frames = []
    for frame in range(timing.seconds * timing.rate):
        canvas = background.copy()
        for actor, ink in zip(actors, inks, strict=True):
            place = actor.locate(frame, timing.rate)
            if place is not None:
                stamp(canvas, source.tiles[actor.pick], np.clip(ink, 0, 255), (*place, actor.side))
        frames.append(np.clip(canvas, 0, 255).astype(np.uint8))
    return Film(np.stack(frames), tuple(actors), timing)


def _draw_actor(random: np.random.Generator, source: DigitSet, first: int, timing: Timing) -> Actor:
    pick = int(random.integers(len(source.labels)))
    side = int(random.integers(SIDES[0], SIDES[1] + 1))
    last = int(random.integers(first + _LEAST_SECONDS, timing.seconds + 1))
    low, high = FRAME + 1, timing.size - FRAME - 1 - side  # where corners may be
    start = [int(value) for value in random.integers(low, high + 1, 2)]
    end = list(start)
    if random.integers(2):  # half of them move, along one axis
        axis, way = int(random.integers(2)), timing.size // _LEAST_WAY
        options = [v for v in range(low, high + 1) if abs(v - start[axis]) >= way]
        end[axis] = options[int(random.integers(len(options)))] if options else start[axis]
    return Actor(
        label=int(source.labels[pick]),
        colour=int(random.integers(len(COLOURS))),
        pick=pick,
        side=side,
        first=first,
        last=last,
        start=(start[0], start[1]),
        end=(end[0], end[1]),
    )


def _are_apart(one: Actor, other: Actor, timing: Timing) -> bool:
    """Say whether two digits differ in class and never touch."""
    if one.label == other.label:
        return False
    for frame in range(timing.seconds * timing.rate):
        a, b = one.locate(frame, timing.rate), other.locate(frame, timing.rate)
        if a is None or b is None:
            continue
        if all(
            a[axis] < b[axis] + other.side + _GAP and b[axis] < a[axis] + one.side + _GAP
            for axis in (0, 1)
        ):
            return False
    return True
