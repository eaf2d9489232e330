"""Write the test sets as TSV files, one a task, in the format of real benchmarks.

    python -m digit_cells.tsv FOLDER [--scenes 80] [--seeds 0] [--split test] [--grid 16]

The files are those of `digit_scenes.tsv`, with a column `objects`: the boxes of all digits in
pixels.
"""

import functools
import pathlib
from collections.abc import Sequence

from digit_cells.questions import TASKS
from digit_cells.scenes import render
from digit_scenes import tsv

COLUMNS = {task: (*columns, "objects") for task, columns in tsv.COLUMNS.items()}


def write(
    folder: pathlib.Path | str,
    num_scenes: int = 80,
    seeds: Sequence[int] = (0,),
    split: str = "test",
    grid: int = 16,
) -> list[pathlib.Path]:
    """Write DigitScenes_TASK.tsv for every task; return the files.

    Args:
        num_scenes: scenes of each seed; they take turns.
        split: "test" or "calibration" (see `digit_scenes.tsv.write`).
        grid: cells along a side of the pictures; the benchmark has 16.

    Raises:
        ValueError: unknown split.
    """
    draw = functools.partial(render, grid=grid)
    return tsv.write_rows(folder, draw, TASKS, COLUMNS, num_scenes, seeds, split)


def main(argv: list[str] | None = None) -> None:
    """Write the files named on the command line."""
    parser = tsv.read_arguments(__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=16)
    options = parser.parse_args(argv)
    for path in write(options.folder, options.scenes, options.seeds, options.split, options.grid):
        print(path)


if __name__ == "__main__":
    main()
