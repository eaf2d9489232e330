"""One pass over the rows before the model runs: what each takes up, and which are broken."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ivc_jax.evals.benchmarks.cells import is_missing, read_objects, read_text
from ivc_jax.evals.benchmarks.parsers import Box
from ivc_jax.evals.benchmarks.prompts import SYSTEM
from ivc_jax.evals.benchmarks.released import Bounds, drop_missing, save_as_jpeg
from ivc_jax.evals.benchmarks.tasks import Task
from ivc_jax.evals.running.batching import Example
from ivc_jax.evals.running.tsv import Row, RowError, TsvFile
from ivc_jax.evals.running.video_cells import VIDEO
from ivc_jax.inputs.bucket import Size
from ivc_jax.inputs.messages import Messages, quote

OBJECTS = "objects"  # the column that says where they are
_THREADS = 4  # decoding base64 lets go of the interpreter
_REPORT_EVERY = 200


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """A task and its open file.

    Attributes:
        released: treat pictures and cells as the released evaluation does.
        bounds: on pictures, instead of those of the checkpoint.
        objects: read where the objects of its pictures are.
    """

    task: Task
    file: TsvFile
    released: bool = False
    bounds: Bounds | None = None
    objects: bool = False

    @classmethod
    def open(cls, task: Task, path: str | os.PathLike) -> "TaskEntry":
        """Open the file of a task; see `TsvFile`."""
        return cls(task, TsvFile(path, task.scoring.columns, task.scoring.optional))

    def read(self, position: int, decode: bool = True) -> Row:
        """Read a row as `TsvFile.read` does, check its cells, and treat it by the protocol.

        Raises:
            RowError: a cell of the row is broken.
        """
        row = self.file.read(position, decode)
        try:
            self.task.check_cells(row.cells, [image.size for image in row.images])
            if self.released:
                # afterwards: a question whose right option vanishes is asked there, and lost
                row = dataclasses.replace(row, cells=drop_missing(row.cells))
                if decode and read_text(row.cells, "image"):  # files of a path stay as they are
                    row = dataclasses.replace(row, images=tuple(map(save_as_jpeg, row.images)))
        except ValueError as error:
            raise RowError(f"{self.locate(row)}: {error}") from None
        return row

    @property
    def knows_objects(self) -> bool:
        """Whether the rows say where objects are: in a column, or by a box for an answer."""
        return OBJECTS in self.file.header or self.task.scoring.find_target is not None

    def find_objects(self, row: Row) -> list[list[Box]] | None:
        """Return the boxes of the objects of each picture of a row, if the run asks for them.

        The column `objects` lists them, "x1 y1 x2 y2;x1 y1 x2 y2" in pixels of the original
        picture, several pictures as a list of such texts; without it the box of the reference is
        the only object, of the first picture.

        Raises:
            ValueError: a cell that says something else.
        """
        if not self.objects:
            return None
        if OBJECTS in self.file.header:
            return read_objects(read_text(row.cells, OBJECTS), len(row.images))
        return [[self.task.scoring.find_target(row.cells)], *([] for _ in row.images[1:])]

    def write_messages(self, row: Row, family: str) -> Messages:
        """Return what a model is asked about a row; special tokens in its cells are words.

        Those of a released prompt (`<|object_ref_start|>`) stay what they are. In front is what
        the released evaluation tells the family (`prompts.SYSTEM`), where its protocol is followed.

        Raises:
            TaskError: the family is unknown to the task.
        """
        cells = {
            name: text if is_missing(text) else quote(text)
            for name, text in row.cells.items()
            if name not in ("image", VIDEO)  # long, and no words
        }
        asked = self.task.write_messages(cells, family, row.images, row.videos)
        told = SYSTEM.get(family) if self.released else None
        if told is None:
            return asked
        return [{"role": "system", "content": [{"type": "text", "text": told}]}, *asked]

    def locate(self, row: Row) -> str:
        """Name a row in messages."""
        return f"{self.file.path.name} row {row.number} (index {row.example_id})"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A row that cannot be used or answered, and why."""

    task: int
    position: int
    error: str


def survey(
    entries: Sequence[TaskEntry],
    limit: int | None,
    family: str,
    measure: Callable[[Messages, Bounds | None], Size],
    report: Callable[[int], None],
) -> tuple[list[Example], list[Failure]]:
    """Measure every row from its messages and the headers of its images.

    Args:
        entries: the tasks.
        limit: rows of each, None for all.
        family: of the model.
        measure: (messages with images and videos whose pixels are not decoded, bounds on images)
            -> size; ValueError if unusable.
        report: called now and then with the number of rows seen.

    Returns:
        What can be run and what cannot, both in order of task and row.
    """
    rows = [  # (task, position in its file), all of them
        (number, position)
        for number, entry in enumerate(entries)
        for position in range(len(entry.file.list_ids(limit)))
    ]

    def look(place: tuple[int, int]) -> Example | Failure:
        number, position = place
        entry = entries[number]
        try:
            row = entry.read(position, decode=False)
        except RowError as error:
            return Failure(number, position, str(error))
        try:
            entry.find_objects(row)  # a wrong cell shows before the model runs
            messages = entry.write_messages(row, family)
            size = measure(messages, entry.bounds)
        except ValueError as error:
            return Failure(number, position, f"{entry.locate(row)}: {error}")
        return Example(number, position, size, row.holder)

    found = []
    with ThreadPoolExecutor(_THREADS) as pool:
        # in parts, so that progress shows in between
        for start in range(0, len(rows), _REPORT_EVERY):
            report(start)
            # in order, so examples and failures are too
            found += pool.map(look, rows[start : start + _REPORT_EVERY])
    report(len(rows))
    examples = [each for each in found if isinstance(each, Example)]
    return examples, [each for each in found if isinstance(each, Failure)]
