"""Write the test sets as TSV files, one a task, in the format of real benchmarks.

    python -m digit_scenes.tsv FOLDER [--scenes 80] [--seeds 0] [--split test] [--grid 16]

The same seeds give the same bytes. Several questions share a picture: later rows hold the index of
the row that carries it. The column `split` names digits and seed, such as "test-0", the column
`objects` holds the boxes of all digits in pixels.
"""

import argparse
import base64
import collections
import csv
import io
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from digit_scenes import digits
from digit_scenes.glyphs import Box
from digit_scenes.questions import NEGATIVES, TASKS, Question, ask, ask_existence
from digit_scenes.scenes import GRID, Scene, render

_FIRST, _LAST = ("index", "image", "question"), ("split", "objects")
COLUMNS = {
    **dict.fromkeys(TASKS, (*_FIRST, "answer", *_LAST)),
    "grounding": (*_FIRST, "height", "width", "answer", *_LAST),
    "existence": (*_FIRST, "answer", "category", *_LAST),
}
# Digits and first number of the generators; none of the training starts with these numbers.
SPLITS = {"test": ("test", 0x7E57), "calibration": ("train", 0xCA11)}
_PER_SCENE = {"grounding": 3, "reading": 3, "relations": 3, "colour": 2, "counting": 2}


def draw_questions(random: np.random.Generator, scene: Scene, task: str) -> list[Question]:
    """Draw the test questions of a scene, none twice.

    Existence comes in pairs, one yes and one no a category, so that every category is balanced.
    """
    drawn: list[Question] = []
    if task == "existence":
        for category in NEGATIVES:
            pair = [ask_existence(random, scene, want, category) for want in (True, False)]
            if None not in pair:
                drawn += pair
        return drawn
    for _ in range(_PER_SCENE[task]):
        question = ask(random, scene, task)
        if question is not None and question.text not in {other.text for other in drawn}:
            drawn.append(question)
    return drawn


def write(
    folder: pathlib.Path | str,
    num_scenes: int = 80,
    seeds: Sequence[int] = (0,),
    split: str = "test",
    grid: int = GRID,
) -> list[pathlib.Path]:
    """Write DigitScenes_TASK.tsv for every task; return the files.

    Args:
        num_scenes: scenes of each seed. Seeds take turns, so that the first rows of a file hold
            scenes of all of them.
        split: "test" digits, or "calibration": digits that the model was trained on, in scenes
            that it was not, for choosing settings.
        grid: cells along a side of the pictures.

    Raises:
        ValueError: unknown split, or a grid with fewer cells than digits.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    kind, first = SPLITS[split]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = digits.load(kind)
    rows: dict[str, list[dict]] = collections.defaultdict(list)
    for number, seed in itertools.product(range(num_scenes), seeds):
        # A generator a scene: more scenes leave the first ones as they are.
        random = np.random.default_rng((first, seed, number))
        scene, pixels = render(random, source, 3 + number % 7, grid)
        picture = _encode_png(pixels)
        for task in TASKS:
            carrier = None
            for question in draw_questions(random, scene, task):
                index = len(rows[task])
                row = _make_row(
                    index, picture if carrier is None else str(carrier), question, scene
                )
                rows[task].append(row | {"split": f"{split}-{seed}"})
                carrier = index if carrier is None else carrier
    return [
        save_rows(folder / f"DigitScenes_{task}.tsv", COLUMNS[task], rows[task]) for task in TASKS
    ]


def _make_row(index: int, image: str, question: Question, scene: Scene) -> dict:
    return {
        "index": index,
        "image": image,
        "question": question.text,
        "height": scene.size,
        "width": scene.size,
        "answer": question.answer if question.box is None else _write_box(question.box),
        "category": question.category,
        "objects": ";".join(_write_box(digit.box) for digit in scene.digits),
    }


def _write_box(box: Box) -> str:
    return " ".join(map(str, box))


def _encode_png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def save_rows(path: pathlib.Path, columns: Sequence[str], rows: list[dict]) -> pathlib.Path:
    """Write the columns of rows as a TSV file; return it."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_arguments(about: str) -> argparse.ArgumentParser:
    """Describe what the command lines have in common."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))
    parser.add_argument("--split", choices=tuple(SPLITS), default="test")
    parser.add_argument("--grid", type=int, default=GRID, help="cells along a side")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the files named on the command line."""
    options = read_arguments(__doc__.splitlines()[0]).parse_args(argv)
    for path in write(options.folder, options.scenes, options.seeds, options.split, options.grid):
        print(path)


if __name__ == "__main__":
    main()
