"""Write the test sets as TSV files, one a task, in the format of real benchmarks.

    python -m digit_cells.tsv FOLDER [--scenes 80] [--seeds 0] [--split test] [--grid 16]

The same seeds give the same bytes. Several questions share a picture: later rows hold the index of
the row that carries it. The column `split` names digits and seed, such as "test-0"; `objects` holds
the boxes of all digits in pixels.
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

from digit_cells.questions import NEGATIVES, TASKS, Question, ask, ask_existence
from digit_cells.scenes import Scene, render
from digit_scenes import digits

_PLAIN = ("index", "image", "question", "answer", "objects", "split")
COLUMNS = {
    "grounding": ("index", "image", "question", "height", "width", "answer", "objects", "split"),
    "existence": ("index", "image", "question", "answer", "category", "objects", "split"),
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


def draw_scene(split: str, seed: int, number: int, grid: int) -> tuple[Scene, np.ndarray, object]:
    """Draw a scene of a test set: the scene, its pixels, and the generator for its questions."""
    kind, first = SPLITS[split]
    # A generator a scene: more scenes leave the first ones as they are.
    random = np.random.default_rng((first, seed, number))
    return *render(random, digits.load(kind), 3 + number % 7, grid), random


def write(
    folder: pathlib.Path | str,
    num_scenes: int = 80,
    seeds: Sequence[int] = (0,),
    split: str = "test",
    grid: int = 16,
) -> list[pathlib.Path]:
    """Write DigitScenes_TASK.tsv for every task; return the files.

    Args:
        num_scenes: scenes of each seed. Seeds take turns, so that the first rows of a file hold
            scenes of all of them.
        split: "test" digits, or "calibration": digits that the model was trained on, in scenes
            that it was not, for choosing settings.
        grid: cells along a side of the pictures; the benchmark has 16.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = collections.defaultdict(list)
    for number, seed in itertools.product(range(num_scenes), seeds):
        scene, pixels, random = draw_scene(split, seed, number, grid)
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
    return [_save(folder / f"DigitScenes_{task}.tsv", task, rows[task]) for task in TASKS]


def _make_row(index: int, image: str, question: Question, scene: Scene) -> dict:
    write_box = lambda box: " ".join(map(str, box))  # noqa: E731
    return {
        "index": index,
        "image": image,
        "question": question.text,
        "height": scene.size,
        "width": scene.size,
        "answer": question.answer if question.box is None else write_box(question.box),
        "category": question.category,
        "objects": ";".join(write_box(digit.box) for digit in scene.digits),
    }


def _encode_png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _save(path: pathlib.Path, task: str, rows: list[dict]) -> pathlib.Path:
    with path.open("w", newline="") as file:
        columns = COLUMNS.get(task, _PLAIN)
        writer = csv.DictWriter(
            file, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def main(argv: list[str] | None = None) -> None:
    """Write the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))
    parser.add_argument("--split", choices=tuple(SPLITS), default="test")
    parser.add_argument("--grid", type=int, default=16)
    options = parser.parse_args(argv)
    for path in write(options.folder, options.scenes, options.seeds, options.split, options.grid):
        print(path)


if __name__ == "__main__":
    main()
