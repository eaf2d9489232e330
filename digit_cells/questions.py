"""Questions about a scene of cells: those of `digit_scenes`, with coordinates of whole cells.

Coordinates in words are thousandths of the picture, as Qwen2-VL prints boxes, and those of borders
between cells: a box in words is that of a cell.
"""

import functools

import numpy as np

from digit_cells.scenes import CELL, Scene, find_cell
from digit_scenes import questions
from digit_scenes.questions import Question, Tasks, choose, list_unique


def to_word(border: int, grid: int) -> int:
    """Name a border between cells, 0 to grid, in thousandths of the picture, rounded half up."""
    return (2000 * border + grid) // (2 * grid)


def write_box(cell: tuple[int, int], grid: int) -> str:
    """Write the box of a cell (row, column) as (x1,y1),(x2,y2)."""
    (y1, x1), (y2, x2) = ([to_word(place + far, grid) for place in cell] for far in (0, 1))
    return f"({x1},{y1}),({x2},{y2})"


def ask_grounding(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the box of a digit."""
    if not (options := list_unique(scene)):
        return None
    digit = choose(random, options)
    text, answer = f"Locate the {digit.name}.", write_box(find_cell(digit), scene.grid)
    return Question("grounding", text, answer, box=digit.box, subject=(digit.box,))


def ask_reading(random: np.random.Generator, scene: Scene) -> Question | None:
    """Ask which digit lies in a box."""
    digit = choose(random, list(scene.digits))
    text = f"Digit in {write_box(find_cell(digit), scene.grid)}?"
    return Question("reading", text, str(digit.label), subject=(digit.box,))


TASKS: Tasks = {
    **questions.TASKS,
    "grounding": ask_grounding,
    "reading": ask_reading,
    # middles of digits in one column are at most 4 pixels apart, in two at least 12
    "relations": functools.partial(questions.ask_relations, clear=CELL / 2),
}
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


def list_texts(grid: int) -> list[str]:
    """Return texts that hold every word of every question and answer on such a grid."""
    texts = questions.list_plain_texts()
    for place in range(grid):
        box = write_box((place, place), grid)
        texts += [f"Digit in {box}?", box]
    return texts
