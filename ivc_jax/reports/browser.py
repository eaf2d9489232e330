"""The answers of a run as data of its page: every example, and what each method kept and said.

The page draws kept cells itself, so a kept set is one bit a visual token, and a picture is there
once for all examples that ask about it.
"""

import base64
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.schema import Record
from ivc_jax.reports.labels import label_methods, read_size, shorten_task
from ivc_jax.reports.results import Results
from ivc_jax.reports.thumbnails import Thumbnail, name_picture

MOST_EXAMPLES = 2000  # of one page
MOST_BYTES = 24 << 20  # of its data, about
_LONGEST = 4000  # letters of a text
# Inside of a script element nothing may look like the end of one or the start of a comment.
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


@dataclasses.dataclass(frozen=True)
class Page:
    """A part of a run's examples, for one HTML file.

    Attributes:
        number: from 1; the first one is part of the report.
        first: number of its first example, from 1.
        last: number of its last one.
        data: JSON, safe inside of a script element.
    """

    number: int
    first: int
    last: int
    data: str

    @property
    def file(self) -> str:
        """Name of its file in the result folder."""
        return "report.html" if self.number == 1 else f"answers-{self.number}.html"

    @property
    def size(self) -> str:
        """How much it holds, in words."""
        return f"{len(self.data) / 1e6:.1f} MB"


def make_pages(
    results: Results,
    pictures: Mapping[str, Sequence[Thumbnail]],
    most_examples: int = MOST_EXAMPLES,
    most_bytes: int = MOST_BYTES,
) -> list[Page]:
    """Put the examples of a run on as few pages as they fit on, in order of task and row.

    Args:
        pictures: thumbnails by `name_picture`; examples without one are shown without.
    """
    head = {
        "tasks": [shorten_task(task) for task in results.meta.tasks],
        "methods": describe_methods(results),
    }
    pages: list[Page] = []
    start, count = 1, 0
    for examples, shown in _fill(results, pictures, most_examples, most_bytes):
        count += len(examples)
        data = write_json(head | {"examples": examples, "pictures": shown})
        pages.append(Page(len(pages) + 1, start, count, data))
        start = count + 1
    return pages


def describe_methods(results: Results) -> list[dict[str, str]]:
    """Name the methods of a run, no two alike: `ivc, 0.5` and the whole specification."""
    labels = label_methods(results.meta.methods)
    ratios = {record.method: record.keep_ratio for record in (*results.records, *results.failed)}
    found = []
    for method in results.meta.methods:
        name = labels[method]
        if method != "dense" and method in ratios:
            name = f"{name}, {read_size(method, ratios[method])[1]:.3g}"
        found.append({"name": name, "spec": method})
    return found


def describe_example(
    records: Mapping[str, Record], results: Results, sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Describe one example for the page.

    Args:
        records: by method.
        sizes: width and height of each of its pictures, if they are known.
    """
    # one that failed may lack the question
    first = min(records.values(), key=lambda record: record.failed)
    grids = max((record.grids for record in records.values()), key=len)
    size = _find_size(first, sizes)
    return {
        "task": results.meta.tasks.index(first.task),
        "id": first.example_id,
        "picture": name_picture(first) if sizes else None,
        "question": _cut(first.question or ""),
        "target": _cut(first.target or ""),
        "category": first.category,
        "grids": grids,
        "tokens": first.visual_tokens,
        "size": size,
        "box": _read_target(first) if size else None,
        "answers": [
            _describe_answer(records[method]) if method in records else None
            for method in results.meta.methods
        ],
    }


def pack_bits(kept: Sequence[int], count: int) -> str:
    """Write a set of tokens as base64 of one bit a token, the first one lowest; "" is all.

    Args:
        kept: tokens, from 0.
        count: how many there are.
    """
    if len(kept) == count:
        return ""
    bits = np.zeros(count, bool)  # [V]
    bits[list(kept)] = True
    return base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode()


def write_json(content: object) -> str:
    """Write JSON that can stand inside of a script element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _fill(
    results: Results,
    pictures: Mapping[str, Sequence[Thumbnail]],
    most_examples: int,
    most_bytes: int,
) -> Iterator[tuple[list[dict[str, Any]], dict[str, list[str]]]]:
    """Yield the examples and pictures of one page after the other."""
    examples: list[dict[str, Any]] = []
    shown: dict[str, list[str]] = {}
    used = 0
    for records in _group(results):
        name = name_picture(next(iter(records.values())))
        held = pictures.get(name, ())
        example = describe_example(records, results, [picture.size for picture in held])
        encoded = [base64.b64encode(picture.content).decode() for picture in held]
        # a picture that the page has already costs nothing more
        size = len(json.dumps(example)) + (0 if name in shown else sum(map(len, encoded)))
        if examples and (len(examples) == most_examples or used + size > most_bytes):
            yield examples, shown
            examples, shown, used = [], {}, 0
            size = len(json.dumps(example)) + sum(map(len, encoded))
        examples.append(example)
        used += size
        if encoded:
            shown[name] = encoded
    if examples:
        yield examples, shown


def _group(results: Results) -> Iterator[dict[str, Record]]:
    """Yield the records of each example by method, in order of task and row."""
    tasks = {task: place for place, task in enumerate(results.meta.tasks)}
    found: dict[tuple[int, int, str], dict[str, Record]] = {}
    for record in (*results.records, *results.failed):
        key = tasks[record.task], record.row, record.example_id
        found.setdefault(key, {})[record.method] = record
    for key in sorted(found):
        yield found[key]


def _describe_answer(record: Record) -> dict[str, Any]:
    if record.failed:
        return {"error": _cut(record.error or "failed"), "score": None}
    found = {
        "text": _cut(record.prediction or ""),
        "score": record.score,
        "kept": record.kept_tokens,
        "bits": pack_bits(record.kept, record.visual_tokens),
    }
    if _is_grounding(record) and _is_box(record.parsed):
        found["box"] = record.parsed
    return found


def _find_size(record: Record, sizes: Sequence[tuple[int, int]]) -> list[float] | None:
    """Return width and height of the picture that boxes are measured in."""
    try:
        return [float(record.cells["width"]), float(record.cells["height"])]
    except (KeyError, ValueError):
        return list(sizes[0]) if sizes else None


def _read_target(record: Record) -> list[float] | None:
    if not _is_grounding(record):
        return None
    try:
        box = [float(word) for word in (record.target or "").split()[:4]]
    except ValueError:
        return None
    return box if _is_box(box) else None


def _is_grounding(record: Record) -> bool:
    return record.task in TASKS and TASKS[record.task].group == "grounding"


def _is_box(value: Any) -> bool:
    """Say whether a value is four numbers that enclose something."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    x1, y1, x2, y2 = value
    return x2 > x1 and y2 > y1


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
