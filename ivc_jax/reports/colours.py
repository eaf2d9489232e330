"""The colours of all figures: one colour and marker a method, and whatever else has a colour.

`choose_styles` is where every figure has the look of its lines from. What it does with a name:

- a method of `METHODS` looks the same in every figure;
- a modifier (`fastv+ivc`) keeps colour and marker of its method; the marker is hollow and the line
  broken, each modifier in its own way;
- a variant (`random:layer=0`, `ivc, budget 0.25`) keeps the colour of its method; marker and line
  follow from the words behind the name;
- any other name, such as a method of yours, has a colour and marker that follow from its letters,
  and its variants the same colour.

The last two may meet what a figure has already; then the next free look is taken, in the order of
the names. Only names decide, so the same names look the same everywhere.
"""

import itertools
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Seven colours of Okabe and Ito (2008) and, in place of their yellow, which is faint on white, the
# wine of Tol (2021): for readers without red or green receptors they stay apart as well.
BLACK, VERMILLION, BLUE, GREEN = "#000000", "#D55E00", "#0072B2", "#009E73"
PINK, ORANGE, SKY, WINE = "#CC79A7", "#E69F00", "#56B4E9", "#882255"
PALETTE = (BLACK, VERMILLION, BLUE, GREEN, PINK, ORANGE, SKY, WINE)
HIGHLIGHTED = len(PALETTE)  # series of a panel that have a colour; more could not be told apart

REST = "#C8C8C8"  # lines that are there for comparison only
SOFT, FRAME, FIELD = "#5F6368", "#9AA0A6", "#ECEFF1"  # explaining text; frames; a marked range
REAL, IMAGINARY, BOTH = "#D55E00", "#0072B2", "#733380"  # chosen by V, by U, by both
AXES = {"height": "#117733", "width": "#882255"}  # axes of positions
MEASURED = "#1F4E79"  # differences, which belong to no method
RIGHT, WRONG = "#0072B2", "#B84A00"  # text below an answer, beside its tick or cross
RIGHT_BOX, WRONG_BOX = "#56B4E9", "#E69F00"  # on a picture
CHOSEN = "#B84A00"  # a ring around what was chosen
CLASSES = (BLUE, VERMILLION, ORANGE, "#999999")  # of tokens: alive, ViT sink, LLM sink, dead

METHODS: Mapping[str, tuple[str, str]] = {
    "dense": (BLACK, ""),
    "ivc": (BLACK, "o"),
    "ivc_progressive": (BLACK, "s"),
    "ivc_removal": (BLACK, "^"),
    "random": (SKY, "v"),
    "nuwa": (SKY, "P"),
    "covipal": (SKY, "D"),
    "quota": (SKY, "*"),
    "uniform": (WINE, "D"),
    "dart": (WINE, "^"),
    "vscan": (WINE, "X"),
    "embedlens": (WINE, "s"),
    "fastv": (VERMILLION, "s"),
    "vispruner": (VERMILLION, "*"),
    "fitprune": (VERMILLION, "P"),
    "pyramiddrop": (BLUE, "^"),
    "scope": (BLUE, "s"),
    "cdpruner": (BLUE, "X"),
    "vflowopt": (BLUE, "D"),
    "sparsevlm": (GREEN, "P"),
    "divprune": (GREEN, "^"),
    "prumerge": (GREEN, "v"),
    "holov": (PINK, "X"),
    "visiondrop": (PINK, "*"),
    "fastervlm": (PINK, "P"),
    "visionzip": (ORANGE, "X"),
    "hired": (ORANGE, "D"),
    "fsr": (ORANGE, "v"),
}
_MODIFIED = {"ivc": (0, (4, 1.5)), "pore": (0, (1, 1.2)), "rope": (0, (5, 1, 1, 1))}  # dashes
# looks of variants and unknown names; none of these markers is one of the table
_VARIED = tuple(itertools.product("<>dp", ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)))))
_NAME = re.compile(r"(?P<name>\w+)(?P<modifiers>(?:\+\w+)*)(?P<fields>.*)", re.DOTALL)
_ALWAYS = ("ivc", "random")  # what others are compared with, and what needs no method

Style = dict[str, Any]  # arguments of matplotlib's `plot`


def choose_styles(names: Sequence[str]) -> dict[str, Style]:
    """Give every series of a figure its colour, marker and line.

    Args:
        names: of the series: labels of methods, or other words.

    Returns:
        By name what `plot` takes. No two are equal, unless a method has more than twelve variants.
    """
    names = list(dict.fromkeys(names))
    # what the table fixes goes first: others keep clear of it
    found = {name: style for name in names if (style := _look_up(name)) is not None}
    taken = {_key(style) for style in found.values()}
    colours = {name: colour for name, (colour, _) in METHODS.items()}
    for name in names:
        if name in found:
            continue
        base, modifiers, _ = _split(name)
        if base not in colours:
            colours[base] = _choose_colour(base, {style["color"] for style in found.values()})
        found[name] = _vary(name, colours[base], bool(modifiers), taken)
        taken.add(_key(found[name]))
    return {name: found[name] for name in names}


def choose_highlighted(scores: Mapping[str, float], most: int = HIGHLIGHTED) -> list[str]:
    """Choose the series that have a colour where there are more than can be told apart.

    `ivc` and `random` are always among them, the others are those that score best; of equals the
    first.

    Args:
        scores: mean score of each series.

    Returns:
        At most `most` names, in the order of `scores`.
    """
    order = sorted(scores, key=lambda name: (name not in _ALWAYS, -scores[name]))
    return [name for name in scores if name in order[:most]]


def _look_up(name: str) -> Style | None:
    """Return the look that follows from the table alone, if it does."""
    base, modifiers, fields = _split(name)
    if base not in METHODS or fields or len(modifiers) > 1 or not _MODIFIED.keys() >= {*modifiers}:
        return None
    line = _MODIFIED[modifiers[0]] if modifiers else "-"
    return _write(*METHODS[base], line, hollow=bool(modifiers))


def _choose_colour(name: str, used: Collection[str]) -> str:
    """Choose the colour of an unknown name, one that the figure has not where there is one."""
    colours = [*_turn(PALETTE[1:], name), BLACK]  # black is that of ivc
    return min(colours, key=lambda colour: colour in used)  # of equals the first


def _vary(name: str, colour: str, hollow: bool, taken: Collection[tuple]) -> Style:
    """Choose marker and line of a variant or an unknown name."""
    looks = [_write(colour, marker, line, hollow) for marker, line in _turn(_VARIED, name)]
    mine = [key for key in taken if key[0] == colour]
    free = [look for look in looks if _key(look) not in taken]
    # best with another marker and another line than its relatives, else with one of both
    return min(free or looks, key=lambda look: _count_shared(_key(look), mine))


def _count_shared(key: tuple, others: Collection[tuple]) -> int:
    return sum((key[1] == other[1]) + (key[2] == other[2]) for other in others)


def _split(name: str) -> tuple[str, list[str], str]:
    """Split "fastv+ivc:layer=2" into name, modifiers and the rest; unknown names at the colon."""
    parts = _NAME.fullmatch(name)
    if parts is not None and (parts["name"] in METHODS or parts["modifiers"]):
        modifiers = [word for word in parts["modifiers"].split("+") if word]
        return parts["name"], modifiers, parts["fields"]
    base, _, fields = name.partition(":")
    return base, [], fields


def _turn(values: Sequence[Any], name: str) -> list[Any]:
    """Turn a list so that it begins where the letters of a name say."""
    start = zlib.crc32(name.encode()) % len(values)  # `hash` differs from process to process
    return [*values[start:], *values[:start]]


def _write(colour: str, marker: str, line: Any, hollow: bool = False) -> Style:
    if not marker:  # a single score over the whole width
        return {"color": colour, "marker": marker, "ls": "--", "lw": 1.0, "zorder": 2}
    style = {"color": colour, "marker": marker, "ls": line, "lw": 1.4, "zorder": 3}
    if (colour, marker, hollow) == (*METHODS["ivc"], False):
        style |= {"lw": 2.6, "zorder": 5}
    return style | ({"markerfacecolor": "white"} if hollow else {})


def _key(style: Style) -> tuple:
    return style["color"], style["marker"], style["ls"], style.get("markerfacecolor")
