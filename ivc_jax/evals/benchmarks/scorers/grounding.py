"""Grounding: boxes in the answer, scored by their overlap with the reference.

Qwen2.5-VL answers in pixels of the picture as it sees it, its frame, which follows from the size of
the picture and the bounds of the loaded processor. The official score is taken there; the other
families answer in fractions of the picture:

    answer (frame)     -> stored as `parsed` (original size) -> scored (frame)
    answer (fractions) -> stored as `parsed` (original size) -> scored (original size)
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from ivc_jax.evals.benchmarks import metrics, parsers
from ivc_jax.evals.benchmarks.cells import read_text
from ivc_jax.evals.benchmarks.released import QWEN2_5_PICTURES
from ivc_jax.evals.benchmarks.scorers.base import Cells, Reader, Records, Scoring, Sizes

# How each model family writes a box; a value is a function text -> fractions or pixels.
BOX_PARSERS: dict[str, Callable[[str], parsers.Box]] = {
    "qwen2_vl": parsers.read_qwen2_box,
    "qwen2_5_vl": parsers.read_qwen2_5_box,
    "qwen3_vl": parsers.read_qwen3_box,
    "internvl": parsers.read_bracketed_box,
    "deepseek_vl": parsers.read_bracketed_box,
}
# Columns of a file whose boxes are in another frame than the released one: its sides in pixels.
FRAME_COLUMNS = ("frame_height", "frame_width")
_ANSWERS_IN_FRAME = ("qwen2_5_vl",)  # families that write pixels of the picture as they see it

_Size = tuple[float, float]  # width, height


def _read(text: str, cells: Cells, reader: Reader) -> list[float]:
    """Read a box in pixels of the original picture."""
    size = _read_size(cells)
    frame = reader.find_frame(*size) if reader.family in _ANSWERS_IN_FRAME else size
    box = parsers.scale_to_pixels(BOX_PARSERS[reader.family](text), *frame)
    # [x1, y1, x2, y2] in pixels of the original picture
    return [round(value, 3) for value in parsers.rescale_box(box, frame, size)]


def _read_of_scenes(text: str, cells: Cells, reader: Reader) -> list[float]:
    """Read a box of the bundled benchmark in pixels of the picture.

    Its own models write thousandths in round brackets whatever their format; others are read as
    their family writes.
    """
    box = parsers.read_qwen2_box(text)
    if box == parsers.NO_BOX and reader.family in BOX_PARSERS:
        return _read(text, cells, reader)
    return [round(value, 3) for value in parsers.scale_to_pixels(box, *_read_size(cells))]


def _read_size(cells: Cells) -> _Size:
    return float(cells["width"]), float(cells["height"])


def _find_target(cells: Cells) -> parsers.Box:
    return parsers.read_target_box(cells["answer"])


def _check(cells: Cells, sizes: Sizes) -> None:
    width, height = _read_size(cells)
    if not (width > 0 and height > 0):
        raise ValueError(f"expected positive width and height, found {width:g} x {height:g}")
    if sizes and sizes[0] != (width, height):
        found = "{}x{}".format(*sizes[0])
        raise ValueError(f"picture is {found}, cells say {width:g}x{height:g}")
    x1, y1, x2, y2 = box = _find_target(cells)
    if not (all(map(math.isfinite, box)) and x1 < x2 and y1 < y2):
        raise ValueError(
            f"the reference box {x1:g} {y1:g} {x2:g} {y2:g} has no area: expected x1 y1 x2 y2 with"
            " x1 < x2 and y1 < y2"
        )


def _check_resized(cells: Cells, sizes: Sizes) -> None:
    _check(cells, sizes)
    width, height = _read_frame(cells)
    if not (width > 0 and height > 0):
        raise ValueError(
            f"expected positive frame_width and frame_height, found {width:g} x {height:g}"
        )


def _read_frame(cells: Cells) -> _Size:
    """Return the frame that the boxes of a file refer to; if it names none, the released one."""
    if any(read_text(cells, name) for name in FRAME_COLUMNS):
        height, width = (float(read_text(cells, name) or "nan") for name in FRAME_COLUMNS)
        return width, height
    rows, columns = QWEN2_5_PICTURES.find_size(*_read_size(cells))  # (height, width) in pixels
    return columns, rows


def _move_to_frame(box: Sequence[float], cells: Cells, frame: _Size) -> parsers.Box:
    """Move a box to a frame, where coordinates are integers (half to even)."""
    moved = parsers.rescale_box(tuple(box), _read_size(cells), frame)
    x1, y1, x2, y2 = (float(round(value)) for value in moved)
    return x1, y1, x2, y2


def _score(parsed: list[float], cells: Cells, reader: Reader | None = None) -> float:
    answer, target = tuple(parsed), _find_target(cells)
    if reader is not None and reader.family in _ANSWERS_IN_FRAME:
        frame = reader.find_frame(*_read_size(cells))
        answer, target = (_move_to_frame(box, cells, frame) for box in (answer, target))
    return float(metrics.measure_iou(answer, target) >= metrics.HIT_IOU)


def _score_resized(parsed: list[float], cells: Cells, reader: Reader | None = None) -> float:
    """Score against a reference that is in a frame already: that of the file, not the model's."""
    answer = _move_to_frame(parsed, cells, _read_frame(cells))
    target = _find_target(cells)
    return float(metrics.measure_iou(answer, target) >= metrics.HIT_IOU)


def _aggregate(records: Records) -> dict[str, float]:
    """Aggregate; `accuracy_original_frame` leaves boxes in pixels of the original picture."""
    overlaps = [  # IoU of each record, in the original frame
        metrics.measure_iou(tuple(record.parsed), parsers.read_target_box(record.target))
        for record in records
    ]
    return {
        **_aggregate_resized(records),
        "accuracy_original_frame": metrics.mean([x >= metrics.HIT_IOU for x in overlaps]),
        "mean_iou": metrics.mean(overlaps),
    }


def _aggregate_resized(records: Records) -> dict[str, float]:
    # references are in a frame and `parsed` is not: no overlap can be told from a record
    return {
        "accuracy": metrics.mean([record.score for record in records]),
        "box_share": metrics.mean([float(any(record.parsed)) for record in records]),
    }


def _find_resized_target(cells: Cells) -> parsers.Box:
    return parsers.rescale_box(_find_target(cells), _read_frame(cells), _read_size(cells))


GROUNDING = Scoring(
    columns=("index", "question", "answer", "height", "width"),
    read=_read,
    score=_score,
    aggregate=_aggregate,
    check=_check,
    find_target=_find_target,
)
GROUNDING_OF_SCENES = dataclasses.replace(GROUNDING, read=_read_of_scenes)
GROUNDING_RESIZED = dataclasses.replace(
    GROUNDING,
    score=_score_resized,
    aggregate=_aggregate_resized,
    check=_check_resized,
    find_target=_find_resized_target,
)
