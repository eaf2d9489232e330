"""What a kind of task is: how an answer is parsed, scored and aggregated.

Benchmarks of the same kind differ in file, prompt and group only, which is what `tasks.py` lists.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from ivc_jax.evals.benchmarks import metrics
from ivc_jax.evals.benchmarks.parsers import Box
from ivc_jax.evals.schema import Record
from ivc_jax.inputs.resize import PictureRule

Cells = Mapping[str, str]
Records = Sequence[Record]
Sizes = Sequence[tuple[int, int]]  # (width, height) of each picture of a row, in pixels


@dataclasses.dataclass(frozen=True)
class Reader:
    """What reading an answer takes to know of the model that gave it.

    Attributes:
        family: `ModelConfig.family`.
        pictures: how its processor, as loaded, resizes pictures.
    """

    family: str
    pictures: PictureRule

    def find_frame(self, width: float, height: float) -> tuple[int, int]:
        """Return the (width, height) in pixels at which the model sees a picture of this size.

        Raises:
            InputError: a size that the processor cannot use.
        """
        _, rows, columns = self.pictures.find_grid(width, height)
        return columns * self.pictures.patch_size, rows * self.pictures.patch_size

    def tidy(self, text: str) -> str:
        """Cut off what the released model of the family cuts off its answers."""
        return _TIDY.get(self.family, str)(text)


_TIDY: Mapping[str, Callable[[str], str]] = {
    "deepseek_vl": lambda text: text.rstrip("."),
    "internvl": str.strip,
    "llava": str.strip,
}


@dataclasses.dataclass(frozen=True)
class Scoring:
    """One kind of task.

    Attributes:
        columns: TSV columns that the kind cannot do without, in any row.
        check: (cells, sizes of the pictures) -> None; ValueError if the row cannot be scored.
        read: (tidy answer, cells, reader) -> a JSON value.
        score: (parsed, cells, reader) -> the score of the row, from 0 to 1.
        aggregate: records -> metrics by name; rows may be missing. A metric of a part of the rows
            is named "measure/part", a part of another level "measure/level/part" (see
            `summary.collect_categories`).
        optional: columns that the file must have and a row may leave empty.
        headline: the metric that is the score of the task, from 0 to 1.
        cells: TSV columns that `aggregate` reads from `Record.cells`; they may be missing.
        points: what a headline of 1 is called in publications: percent, or the benchmark's points.
        find_target: (cells) -> the box of the reference in pixels of the original picture; None
            where references are no boxes.
        unit: (record) -> a name shared by records that belong together, where the headline is no
            mean of the scores of rows; None where it is.
    """

    columns: tuple[str, ...]
    read: Callable[[str, Cells, Reader], Any]
    score: Callable[..., float]
    aggregate: Callable[[Records], dict[str, float]]
    check: Callable[[Cells, Sizes], None]
    optional: tuple[str, ...] = ()
    headline: str = "accuracy"
    cells: tuple[str, ...] = ()
    points: float = 100.0
    find_target: Callable[[Cells], Box] | None = None
    unit: Callable[[Record], Hashable] | None = None

    def parse(self, text: str, cells: Cells, reader: Reader) -> Any:
        """Return what an answer says, a JSON value that the record keeps."""
        return self.read(reader.tidy(text), cells, reader)


def check_category(name: str, known: Iterable[str]) -> None:
    """Refuse a category that the score of a benchmark does not count.

    Raises:
        ValueError: names the known ones.
    """
    if name not in known:
        raise ValueError(f"unknown category {name!r}; known: {', '.join(known)}")


def read_cell(record: Record, name: str) -> str:
    """Return a further cell of the row of a record, stripped; "" if it has none."""
    return record.cells.get(name, "").strip()


def group(pairs: Iterable[tuple[Hashable, Any]]) -> dict[Any, list[Any]]:
    """Collect values by key, keys in order; an empty key is none."""
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        if key:
            groups.setdefault(key, []).append(value)
    return dict(sorted(groups.items()))


def average_scores(records: Records) -> dict[str, float]:
    """Return mean scores: `accuracy`, and those of each category, l2-category and split.

    They are named "accuracy/X", "accuracy/l2/X" and "accuracy/split/X".
    """
    # prefix in the name of the metric -> where the name of the part stands
    levels: dict[str, Callable[[Record], str]] = {
        "": lambda record: record.category.strip(),
        "l2/": lambda record: read_cell(record, "l2-category"),
        "split/": lambda record: read_cell(record, "split"),
    }
    result = {"accuracy": metrics.mean([record.score for record in records])}
    for level, read_name in levels.items():
        parts = group((read_name(record), record.score) for record in records)
        result |= {f"accuracy/{level}{part}": metrics.mean(hits) for part, hits in parts.items()}
    return result
