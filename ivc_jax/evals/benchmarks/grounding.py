"""Grounding: boxes in the answer, scored by their overlap with the reference.

Qwen2.5-VL answers in pixels of its resized image, and the official score is taken there; the other
families answer in fractions of the image.
"""

import dataclasses
from collections.abc import Callable, Sequence

from ivc_jax.evals.benchmarks import metrics, parsers
from ivc_jax.evals.benchmarks.scoring import Cells, Records, Scoring

# How each model family writes a box; a value is a function text -> fractions or pixels.
BOX_PARSERS: dict[str, Callable[[str], parsers.Box]] = {
    "qwen2_vl": parsers.qwen2_box,
    "qwen2_5_vl": parsers.qwen2_5_box,
    "internvl": parsers.bracketed_box,
    "deepseek_vl": parsers.bracketed_box,
}
# Families that answer in pixels of the resized image; the official score is taken there.
_RESIZED_FRAME = ("qwen2_5_vl",)


def _parse_box(text: str, cells: Cells, family: str) -> list[float]:
    """Read a box in pixels of the original image."""
    box, size = BOX_PARSERS[family](text), _size(cells)
    if family in _RESIZED_FRAME:
        box = parsers.rescaled_box(box, parsers.resized_frame(*size), size)
    else:
        box = parsers.box_in_pixels(box, *size)
    return [round(value, 3) for value in box]


def _size(cells: Cells) -> tuple[float, float]:
    width, height = float(cells["width"]), float(cells["height"])
    if not (width > 0 and height > 0):
        raise ValueError(f"expected positive width and height, found {width:g} x {height:g}")
    return width, height


def _in_resized_frame(box: Sequence[float], cells: Cells) -> parsers.Box:
    """Move a box to the frame of Qwen2.5-VL, where coordinates are integers."""
    size = _size(cells)
    moved = parsers.rescaled_box(tuple(box), size, parsers.resized_frame(*size))
    return parsers.rounded_box(moved)


def _score_box(parsed: list[float], cells: Cells, family: str = "") -> float:
    answer, target = tuple(parsed), parsers.target_box(cells["answer"])
    if family in _RESIZED_FRAME:
        answer, target = _in_resized_frame(answer, cells), _in_resized_frame(target, cells)
    return float(metrics.box_iou(answer, target) >= metrics.HIT_IOU)


def _score_resized_box(parsed: list[float], cells: Cells, family: str = "") -> float:
    """Score against a reference that the file holds in the resized frame already."""
    target = parsers.target_box(cells["answer"])
    return float(metrics.box_iou(_in_resized_frame(parsed, cells), target) >= metrics.HIT_IOU)


def _aggregate_boxes(records: Records) -> dict[str, float]:
    """Aggregate; `accuracy_original_frame` leaves boxes in pixels of the original image."""
    overlaps = [
        metrics.box_iou(tuple(record["parsed"]), parsers.target_box(record["target"]))
        for record in records
    ]
    return {
        **_aggregate_resized_boxes(records),
        "accuracy_original_frame": metrics.mean([x >= metrics.HIT_IOU for x in overlaps]),
        "mean_iou": metrics.mean(overlaps),
    }


def _aggregate_resized_boxes(records: Records) -> dict[str, float]:
    return {
        "accuracy": metrics.mean([record["score"] for record in records]),
        "box_share": metrics.mean([float(any(record["parsed"])) for record in records]),
    }


GROUNDING = Scoring(
    columns=("index", "question", "answer", "height", "width"),
    parse=_parse_box,
    score=_score_box,
    aggregate=_aggregate_boxes,
)
GROUNDING_RESIZED = dataclasses.replace(
    GROUNDING, score=_score_resized_box, aggregate=_aggregate_resized_boxes
)
