"""Questions about a film: when, where, in which order, and which colour."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from digit_scenes.films import Actor, Film

_CLEAR = 8  # a half of the frame begins an eighth of its side behind the middle


@dataclasses.dataclass(frozen=True)
class FilmQuestion:
    """A question, its answer, and what kind of question it is."""

    text: str
    answer: str
    category: str


def list_when(film: Film) -> Iterator[FilmQuestion]:
    """Ask in which second digits appear and vanish."""
    for actor in film.actors:
        if actor.first:
            text = f"After how many seconds does the {actor.name} appear?"
            yield FilmQuestion(text, str(actor.first), "appear")
        if actor.last < film.timing.seconds:
            text = f"After how many seconds does the {actor.name} vanish?"
            yield FilmQuestion(text, str(actor.last), "vanish")


def list_where(film: Film) -> Iterator[FilmQuestion]:
    """Ask in which corner digits are at some second, and which way they move."""
    for actor in film.actors:
        for second in range(actor.first, actor.last):
            if corner := _find_corner(actor, second, film):
                text = f"Where is the {actor.name} after {second} seconds?"
                yield FilmQuestion(text, corner, "place")
        (y1, x1), (y2, x2) = actor.start, actor.end
        if actor.start != actor.end:
            way = ("right" if x2 > x1 else "left") if x1 != x2 else ("down" if y2 > y1 else "up")
            yield FilmQuestion(f"Which way does the {actor.name} move?", way, "way")


def list_order(film: Film) -> Iterator[FilmQuestion]:
    """Ask which of two digits appears first, and which vanishes first."""
    for one in film.actors:
        for other in film.actors:
            if one is other:
                continue
            pair = f"the {one.name} or the {other.name}"
            first = min((one, other), key=lambda actor: actor.first)
            yield FilmQuestion(f"Which appears first, {pair}?", first.name, "appear")
            if one.last != other.last:
                first = min((one, other), key=lambda actor: actor.last)
                yield FilmQuestion(f"Which vanishes first, {pair}?", first.name, "vanish")


def list_colour(film: Film) -> Iterator[FilmQuestion]:
    """Ask for the colour of a digit, which is there for a part of the film; worded as of scenes."""
    for actor in film.actors:
        colour = actor.name.split()[0]
        yield FilmQuestion(f"What colour is the {actor.glyph.label}?", colour, "colour")


TASKS: Mapping[str, Callable[[Film], Iterator[FilmQuestion]]] = {
    "when": list_when,
    "where": list_where,
    "order": list_order,
    "colour": list_colour,
}


def draw_questions(
    random: np.random.Generator, film: Film, task: str, most: int
) -> list[FilmQuestion]:
    """Draw questions of a task, none twice."""
    options = list(TASKS[task](film))
    return [options[int(i)] for i in random.permutation(len(options))[:most]]


def _find_corner(actor: Actor, second: int, film: Film) -> str | None:
    """Name the quarter of the frame that a digit's cell is in; None near the middle lines."""
    grid = film.timing.grid
    place = actor.locate(second * film.timing.rate, film.timing.rate)
    if place is None:
        return None
    names = []
    for value, (low, high) in zip(place, (("upper", "lower"), ("left", "right")), strict=True):
        off = value + 0.5 - grid / 2  # from the middle line
        if abs(off) < grid / _CLEAR:
            return None
        names.append(high if off > 0 else low)
    return " ".join(names)
