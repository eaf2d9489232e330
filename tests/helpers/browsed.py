"""A finished run without a model: pictures, three methods, a failed row, hostile text."""

import base64
import dataclasses
import io
import json
import pathlib

import numpy as np
from helpers.records import make_meta, make_record
from PIL import Image

from ivc_jax.evals.running.tsv import TsvFile
from ivc_jax.reports import results as results_module

HOSTILE = "</script><script>document.title = 'taken'</script><!-- & \u2028 `x` {{ 7 * 7 }}"
METHODS = ["dense", "ivc:budget=0.5", "fastv:budget=0.5"]
TASKS = ["DigitScenes_grounding", "DigitScenes_colour"]
ROWS = 25  # of each task: with PER_PAGE of 20 the browser has three pages
SIDE = 96
CELLS = 6  # rows and columns of cells
FAILED = 7  # row of the colour task that has no picture
_COUNT = CELLS * CELLS


def keep(task: int, row: int, method: int) -> list[int]:
    """The kept set of an example, its own for each method."""
    if method == 0:
        return list(range(_COUNT))
    random = np.random.default_rng((task, row, method))
    return sorted(random.choice(_COUNT, 12 + method, replace=False).tolist())


def score(row: int, method: int) -> float:
    """Dense is always right; ivc is wrong in every fifth row, fastv in every third."""
    return float(method == 0 or row % (5 if method == 1 else 3) != 0)


def write_run(folder: pathlib.Path, with_file: bool = True) -> pathlib.Path:
    """Write records, results.json and the benchmark files of a run; `report` makes the rest."""
    (folder / "records").mkdir(parents=True)
    files = {task: str(_write_tsv(folder, number)) for number, task in enumerate(TASKS)}
    records = [
        record
        for number, task in enumerate(TASKS)
        for row in range(1, ROWS + 1)
        for record in _make_records(number, task, row, files[task])
    ]
    for task in TASKS:
        lines = [json.dumps(vars(record)) + "\n" for record in records if record.task == task]
        (folder / "records" / f"{task}.jsonl").write_text("".join(lines))
    if not with_file:
        for path in files.values():
            pathlib.Path(path).unlink()
    meta = make_meta(tasks=TASKS, methods=METHODS, files=files, model="tiny")
    results_module.summarize(folder, meta)
    return folder


def read_results(folder: pathlib.Path) -> results_module.Results:
    """Return the results of such a run."""
    return results_module.summarize(folder, results_module.read_meta(folder))


def _write_tsv(folder: pathlib.Path, task: int) -> pathlib.Path:
    """Both tasks ask about the same pictures, bright everywhere so that shading shows."""
    lines = ["index\timage\tquestion\tanswer"]
    for row in range(1, ROWS + 1):
        pixels = np.random.default_rng(row).integers(180, 256, (SIDE, SIDE, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        lines.append(f"{row}\t{base64.b64encode(file.getvalue()).decode()}\tq\ta")
    path = folder / f"{TASKS[task]}.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def _make_records(number: int, task: str, row: int, path: str) -> list:
    file = TsvFile(path)
    picture = file.read(row - 1).picture
    file.close()
    grounding = number == 0
    made = []
    for place, method in enumerate(METHODS):
        kept, right = keep(number, row, place), score(row, place)
        record = make_record(
            task=task, example_id=f"e{row}", method=method, row=row, model="tiny",
            keep_ratio=len(kept) / _COUNT, prediction=HOSTILE if row == 2 else f"{method} {row}",
            parsed=[16.0, 16.0, 48.0, 48.0] if grounding else "red", score=right,
            target="20 20 50 50" if grounding else "red",
            question=HOSTILE if row == 2 else f"Question {row}?", visual_tokens=_COUNT,
            kept_tokens=len(kept), kept=kept, grids=[[1, CELLS, CELLS]], picture=picture,
        )  # fmt: skip
        if row == FAILED and not grounding:
            record = dataclasses.replace(
                record, failed=True, error="row 7: broken", score=None, prediction=None,
                parsed=None, question=None, target=None, kept=[], grids=[], visual_tokens=0,
                kept_tokens=0, picture="",
            )  # fmt: skip
        made.append(record)
    return made
