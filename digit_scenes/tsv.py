"""Write the test sets as TSV files, one a task, in the format of real benchmarks.

    python -m digit_scenes.tsv FOLDER [--scenes 80] [--seed 0]

The same seed gives the same bytes. Several questions share a picture: later rows hold the index of
the row that carries it.
"""

import argparse
import base64
import collections
import csv
import io
import pathlib

import numpy as np
from PIL import Image

from digit_scenes import digits
from digit_scenes.questions import NEGATIVES, TASKS, Question, ask, existence
from digit_scenes.scenes import Scene, render

COLUMNS = {
    "grounding": ("index", "image", "question", "height", "width", "answer"),
    "existence": ("index", "image", "question", "answer", "category"),
}
_PLAIN = ("index", "image", "question", "answer")
_TEST = 0x7E57  # no generator of the training starts with this number
_PER_SCENE = {"grounding": 3, "reading": 3, "relations": 3, "colour": 2, "counting": 2}


def questions_about(random: np.random.Generator, scene: Scene, task: str) -> list[Question]:
    """Draw the test questions of a scene, none twice.

    Existence comes in pairs, one yes and one no a category, so that every category is balanced.
    """
    drawn: list[Question] = []
    if task == "existence":
        for category in NEGATIVES:
            pair = [existence(random, scene, want, category) for want in (True, False)]
            if None not in pair:
                drawn += pair
        return drawn
    for _ in range(_PER_SCENE[task]):
        question = ask(random, scene, task)
        if question is not None and question.text not in {other.text for other in drawn}:
            drawn.append(question)
    return drawn


def write(folder: pathlib.Path | str, num_scenes: int = 80, seed: int = 0) -> list[pathlib.Path]:
    """Write DigitScenes_TASK.tsv for every task; return the files."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = digits.load("test")
    rows: dict[str, list[dict]] = collections.defaultdict(list)
    for number in range(num_scenes):
        # A generator a scene: more scenes leave the first ones as they are.
        random = np.random.default_rng((_TEST, seed, number))
        scene = render(random, source, 3 + number % 7)
        picture = _png(scene)
        for task in TASKS:
            carrier = None
            for question in questions_about(random, scene, task):
                index = len(rows[task])
                row = _row(index, picture if carrier is None else str(carrier), question, scene)
                rows[task].append(row)
                carrier = index if carrier is None else carrier
    return [_save(folder / f"DigitScenes_{task}.tsv", task, rows[task]) for task in TASKS]


def _row(index: int, image: str, question: Question, scene: Scene) -> dict:
    answer = question.answer
    if question.box is not None:
        answer = " ".join(map(str, question.box))
    return {
        "index": index,
        "image": image,
        "question": question.text,
        "height": scene.size,
        "width": scene.size,
        "answer": answer,
        "category": question.category,
    }


def _png(scene: Scene) -> str:
    buffer = io.BytesIO()
    Image.fromarray(scene.pixels).save(buffer, format="PNG")
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
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for path in write(options.folder, options.scenes, options.seed):
        print(path)


if __name__ == "__main__":
    main()
