"""Grounding: boxes in the answer, scored by their overlap with the reference.

Qwen2.5-VL answers in pixels of its resized image, and the official score is taken there; the other
families answer in fractions of the image:

    answer (resized frame) -> stored as `parsed` (original frame) -> scored (resized frame)
    answer (fractions)     -> stored as `parsed` (original frame) -> scored (original frame)
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from ivc_jax.evals.benchmarks import metrics, parsers
from ivc_jax.evals.benchmarks.scorers.base import Cells, Records, Scoring, Sizes

# How each model family writes a box; a value is a function text -> fractions or pixels.
BOX_PARSERS: dict[str, Callable[[str], parsers.Box]] = {
    "qwen2_vl": parsers.read_qwen2_box,
    "qwen2_5_vl": parsers.read_qwen2_5_box,
    "internvl": parsers.read_bracketed_box,
    "deepseek_vl": parsers.read_bracketed_box,
}
# Families that answer in pixels of the resized image; the official score is taken there.
_RESIZED_FRAME = ("qwen2_5_vl",)


def _parse(text: str, cells: Cells, family: str) -> list[float]:
    """Read a box in pixels of the original image."""
    box, size = BOX_PARSERS[family](text), _read_size(cells)
    if family in _RESIZED_FRAME:
        box = parsers.rescale_box(box, parsers.find_resized_frame(*size), size)
    else:
        box = parsers.scale_to_pixels(box, *size)
    return [round(value, 3) for value in box]


def _read_size(cells: Cells) -> tuple[float, float]:
    return float(cells["width"]), float(cells["height"])


def _check(cells: Cells, sizes: Sizes) -> None:
    width, height = _read_size(cells)
    if not (width > 0 and height > 0):
        raise ValueError(f"expected positive width and height, found {width:g} x {height:g}")
    if sizes and sizes[0] != (width, height):
        found = "{}x{}".format(*sizes[0])
        raise ValueError(f"picture is {found}, cells say {width:g}x{height:g}")
    x1, y1, x2, y2 = box = parsers.read_target_box(cells["answer"])
    if not (all(map(math.isfinite, box)) and x1 < x2 and y1 < y2):
        raise ValueError(
            f"the reference box {x1:g} {y1:g} {x2:g} {y2:g} has no area: expected x1 y1 x2 y2 with"
            " x1 < x2 and y1 < y2"
        )


def _move_to_resized_frame(box: Sequence[float], cells: Cells) -> parsers.Box:
    """Move a box to the frame of Qwen2.5-VL, where coordinates are integers (half to even)."""
    size = _read_size(cells)
    moved = parsers.rescale_box(tuple(box), size, parsers.find_resized_frame(*size))
    x1, y1, x2, y2 = (float(round(value)) for value in moved)
    return x1, y1, x2, y2


def _score(parsed: list[float], cells: Cells, family: str = "") -> float:
    answer, target = tuple(parsed), parsers.read_target_box(cells["answer"])
    if family in _RESIZED_FRAME:
        answer = _move_to_resized_frame(answer, cells)
        target = _move_to_resized_frame(target, cells)
    return float(metrics.measure_iou(answer, target) >= metrics.HIT_IOU)


def _score_resized(parsed: list[float], cells: Cells, family: str = "") -> float:
    """Score against a reference that the file holds in the resized frame already."""
    answer, target = _move_to_resized_frame(parsed, cells), parsers.read_target_box(cells["answer"])
    return float(metrics.measure_iou(answer, target) >= metrics.HIT_IOU)


def _aggregate(records: Records) -> dict[str, float]:
    """Aggregate; `accuracy_original_frame` leaves boxes in pixels of the original image."""
    overlaps = [
        metrics.measure_iou(tuple(record.parsed), parsers.read_target_box(record.target))
        for record in records
    ]
    return {
        **_aggregate_resized(records),
        "accuracy_original_frame": metrics.mean([x >= metrics.HIT_IOU for x in overlaps]),
        "mean_iou": metrics.mean(overlaps),
    }


def _aggregate_resized(records: Records) -> dict[str, float]:
    # references are in the resized frame and `parsed` is not: no overlap can be told from a record
    return {
        "accuracy": metrics.mean([record.score for record in records]),
        "box_share": metrics.mean([float(any(record.parsed)) for record in records]),
    }


GROUNDING = Scoring(
    columns=("index", "question", "answer", "height", "width"),
    parse=_parse,
    score=_score,
    aggregate=_aggregate,
    check=_check,
)
GROUNDING_RESIZED = dataclasses.replace(
    GROUNDING, score=_score_resized, aggregate=_aggregate_resized
)
