"""Questions about a scene, with answers that are right by construction.

Coordinates in words are thousandths of the picture, as Qwen2-VL prints boxes, and those of borders
between cells: a box in words is that of a cell.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from digit_scenes.glyphs import CELL, COLOUR_NAMES, Box
from digit_scenes.scenes import Digit, Scene

DIRECTIONS = ("left of", "right of", "above", "below")
NEGATIVES = ("random", "popular", "adversarial")
# Middles of digits in one column are at most 4 pixels apart, in two at least 12.
_CLEAR = CELL / 2
# Tokens of the question (without the mark that ends it) and of the answer; every question of a task
# has the same length.
LENGTHS = {
    "grounding": (4, 4),
    "reading": (6, 1),
    "relations": (7, 1),
    "existence": (5, 1),
    "colour": (5, 1),
    "counting": (3, 1),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the answer the model is taught, and what scoring needs.

    `box` is the true box in pixels (grounding), `category` the kind of question (existence).
    """

    task: str
    text: str
    answer: str
    box: Box | None = None
    category: str = ""


def to_word(border: int, grid: int) -> int:
    """Name a border between cells, 0 to grid, in thousandths of the picture, rounded half up."""
    return (2000 * border + grid) // (2 * grid)


def write_box(cell: tuple[int, int], grid: int) -> str:
    """Write the box of a cell (row, column) as (x1,y1),(x2,y2)."""
    (y1, x1), (y2, x2) = ([to_word(place + far, grid) for place in cell] for far in (0, 1))
    return f"({x1},{y1}),({x2},{y2})"


def list_unique(scene: Scene) -> list[Digit]:
    """Return the digits that share class and colour with no other digit of the scene."""
    count = Counter(digit.name for digit in scene.digits)
    return [digit for digit in scene.digits if count[digit.name] == 1]


def choose(random: np.random.Generator, options: list) -> object:
    """Draw one of a list."""
    return options[int(random.integers(len(options)))]


def ask_grounding(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the box of a digit."""
    if not (options := list_unique(scene)):
        return None
    digit = choose(random, options)
    text, answer = f"Locate the {digit.name}.", write_box(digit.cell, scene.grid)
    return Question("grounding", text, answer, box=digit.box)


def ask_reading(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask which digit lies in a box."""
    digit = choose(random, list(scene.digits))
    return Question("reading", f"Digit in {write_box(digit.cell, scene.grid)}?", str(digit.label))


def ask_relations(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask whether one digit is left of, right of, above or below another."""
    options = list_unique(scene)
    if len(options) < 2:
        return None
    a, b = (options[i] for i in random.permutation(len(options))[:2])
    axis = int(random.integers(2))
    apart = b.centre[axis] - a.centre[axis]
    if abs(apart) < _CLEAR:
        return None
    want = bool(random.integers(2))
    direction = DIRECTIONS[2 * axis + int((apart > 0) != want)]
    text = write_relation(a.name, direction, b.name)
    return Question("relations", text, "Yes" if want else "No")


def write_relation(first: str, direction: str, second: str) -> str:
    """Write the question; all four directions take as many tokens, which packing relies on."""
    article = "" if direction.endswith("of") else "the "
    return f"Is {article}{first} {direction} {second}?"


def ask_existence(
    random: np.random.Generator, scene: Scene, want: bool | None = None, category: str = ""
) -> Question | None:
    """Ask whether a digit of a colour is there.

    Negatives are random (any absent pair), popular (a colour of the scene on a class that is not
    in it) or adversarial (a class of the scene in a wrong colour).
    """
    want = bool(random.integers(2)) if want is None else want
    category = category or choose(random, list(NEGATIVES))
    there = {(digit.colour, digit.label) for digit in scene.digits}
    if want:
        pair = choose(random, sorted(there))
    else:
        colours, labels = range(len(COLOUR_NAMES)), range(10)
        if category == "popular":
            colours = sorted({colour for colour, _ in there})
            labels = sorted(set(labels) - {label for _, label in there})
        elif category == "adversarial":
            labels = sorted({label for _, label in there})
        options = [(c, d) for c in colours for d in labels if (c, d) not in there]
        if not options:
            return None
        pair = choose(random, options)
    text, answer = _write_existence(f"{COLOUR_NAMES[pair[0]]} {pair[1]}"), "Yes" if want else "No"
    return Question("existence", text, answer, category=category)


def _write_existence(name: str) -> str:
    return f"Is there {'an' if name.startswith('o') else 'a'} {name}?"


def ask_colour(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the colour of the only digit of its class."""
    count = Counter(digit.label for digit in scene.digits)
    options = [digit for digit in scene.digits if count[digit.label] == 1]
    if not options:
        return None
    digit = choose(random, options)
    return Question("colour", f"What colour is the {digit.label}?", COLOUR_NAMES[digit.colour])


def ask_counting(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask how many digits there are, of a colour or at all."""
    if len(scene.digits) > 9:
        return None
    if random.random() < 0.4:
        return Question("counting", "How many digits?", str(len(scene.digits)))
    there = [digit.colour for digit in scene.digits]
    pick = choose(random, there) if random.random() < 0.8 else int(random.integers(8))
    return Question("counting", f"How many {COLOUR_NAMES[pick]}?", str(there.count(pick)))


TASKS: Mapping[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "grounding": ask_grounding,
    "reading": ask_reading,
    "relations": ask_relations,
    "existence": ask_existence,
    "colour": ask_colour,
    "counting": ask_counting,
}


def ask(random: np.random.Generator, scene: Scene, task: str, attempts: int = 6) -> Question | None:
    """Draw a question of a task; None where the scene allows none."""
    for _ in range(attempts):
        question = TASKS[task](random, scene)
        if question is not None:
            return question
    return None


def list_texts(grid: int) -> list[str]:
    """Return texts that hold every word of every question and answer on such a grid."""
    names = [f"{c} {d}" for c in COLOUR_NAMES for d in range(10)]
    texts = [f"Locate the {name}." for name in names]
    texts += [write_relation(name, way, name) for name in names for way in DIRECTIONS]
    texts += [_write_existence(name) for name in names]
    texts += [f"What colour is the {d}?" for d in range(10)]
    texts += ["How many digits?", "Yes", "No", *COLOUR_NAMES, *map(str, range(10))]
    texts += [f"How many {name}?" for name in COLOUR_NAMES]
    for place in range(grid):
        box = write_box((place, place), grid)
        texts += [f"Digit in {box}?", box]
    return texts
