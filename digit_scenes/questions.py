"""Questions about a scene, with answers that are right by construction.

Coordinates in words are thousandths of the canvas, as Qwen2-VL prints boxes, in multiples of ten.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from digit_scenes.scenes import COLOUR_NAMES, Digit, Scene

STEP = 10  # distance between neighbouring coordinate words, in thousandths of the canvas
DIRECTIONS = ("left of", "right of", "above", "below")
NEGATIVES = ("random", "popular", "adversarial")
_CLEAR = 20  # two digits count as beside each other when their middles are this far apart

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the answer the model is taught, and what scoring needs.

    `box` is the true box in pixels (grounding), `category` the kind of question (existence).
    `subject` and `other` hold the boxes of the digits that the answer depends on, `other` those of
    the second digit of a relation; training points attention at them.
    """

    task: str
    text: str
    answer: str
    box: Box | None = None
    category: str = ""
    subject: tuple[Box, ...] = ()
    other: tuple[Box, ...] = ()


def to_word(pixel: float, size: int) -> int:
    """Round a pixel coordinate to a coordinate word, 0 to 1000 in steps of ten."""
    return int(pixel * 1000 / size / STEP + 0.5) * STEP


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
    x1, y1, x2, y2 = (to_word(value, scene.size) for value in digit.box)
    answer = f"({x1},{y1}),({x2},{y2})"
    text = f"Locate the {digit.name}."
    return Question("grounding", text, answer, box=digit.box, subject=(digit.box,))


def ask_reading(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask which digit lies at a point, somewhere in the middle half of its box."""
    digit = choose(random, list(scene.digits))
    side = digit.box[2] - digit.box[0]
    shift = (random.random(2) - 0.5) * side / 2
    x, y = (to_word(c + d, scene.size) for c, d in zip(digit.centre, shift, strict=True))
    text = f"Digit at ({x},{y})?"
    return Question("reading", text, str(digit.label), subject=(digit.box,))


def ask_relations(
    random: np.random.Generator, scene: Scene, clear: float = _CLEAR
) -> Question | None:
    """Ask whether one digit is left of, right of, above or below another.

    Args:
        clear: least distance of their middles along that axis in pixels.
    """
    options = list_unique(scene)
    if len(options) < 2:
        return None
    a, b = (options[i] for i in random.permutation(len(options))[:2])
    axis = int(random.integers(2))
    apart = b.centre[axis] - a.centre[axis]
    if abs(apart) < clear:
        return None
    want = bool(random.integers(2))
    direction = DIRECTIONS[2 * axis + int((apart > 0) != want)]
    text = write_relation(a.name, direction, b.name)
    answer = "Yes" if want else "No"
    return Question("relations", text, answer, subject=(a.box,), other=(b.box,))


def write_relation(first: str, direction: str, second: str) -> str:
    """Write the question; all four directions take eight tokens, which packing relies on."""
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
    boxes = tuple(d.box for d in scene.digits if (d.colour, d.label) == pair)
    text, answer = _write_existence(f"{COLOUR_NAMES[pair[0]]} {pair[1]}"), "Yes" if want else "No"
    return Question("existence", text, answer, category=category, subject=boxes)


def _write_existence(name: str) -> str:
    return f"Is there {'an' if name.startswith('o') else 'a'} {name}?"


def ask_colour(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the colour of the only digit of its class."""
    count = Counter(digit.label for digit in scene.digits)
    options = [digit for digit in scene.digits if count[digit.label] == 1]
    if not options:
        return None
    digit = choose(random, options)
    text = f"What colour is the {digit.label}?"
    return Question("colour", text, COLOUR_NAMES[digit.colour], subject=(digit.box,))


def ask_counting(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask how many digits there are, of a colour or at all."""
    if len(scene.digits) > 9:
        return None
    if random.random() < 0.4:
        boxes = tuple(digit.box for digit in scene.digits)
        return Question("counting", "How many digits?", str(len(boxes)), subject=boxes)
    there = [digit.colour for digit in scene.digits]
    pick = choose(random, there) if random.random() < 0.8 else int(random.integers(8))
    text = f"How many {COLOUR_NAMES[pick]}?"
    boxes = tuple(digit.box for digit in scene.digits if digit.colour == pick)
    return Question("counting", text, str(len(boxes)), subject=boxes)


Tasks = Mapping[str, Callable[[np.random.Generator, Scene], Question | None]]
TASKS: Tasks = {
    "grounding": ask_grounding,
    "reading": ask_reading,
    "relations": ask_relations,
    "existence": ask_existence,
    "colour": ask_colour,
    "counting": ask_counting,
}


def ask(
    random: np.random.Generator, scene: Scene, task: str, tasks: Tasks = TASKS, attempts: int = 6
) -> Question | None:
    """Draw a question of a task of `tasks`; None where the scene allows none."""
    for _ in range(attempts):
        question = tasks[task](random, scene)
        if question is not None:
            return question
    return None


def list_texts() -> list[str]:
    """Return texts that hold every word of every question and answer."""
    texts = list_plain_texts()
    for value in range(0, 1001, STEP):
        texts += [f"Digit at ({value},{value})?", f"({value},{value}),({value},{value})"]
    return texts


def list_plain_texts() -> list[str]:
    """Return texts that hold every word but coordinates, and the texts around these."""
    names = [f"{c} {d}" for c in COLOUR_NAMES for d in range(10)]
    texts = [f"Locate the {name}." for name in names]
    texts += [write_relation(name, way, name) for name in names for way in DIRECTIONS]
    texts += [_write_existence(name) for name in names]
    texts += [f"What colour is the {d}?" for d in range(10)]
    texts += ["How many digits?", "Yes", "No", *COLOUR_NAMES, *map(str, range(10))]
    texts += [f"How many {name}?" for name in COLOUR_NAMES]
    return texts
