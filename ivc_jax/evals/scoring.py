"""Kinds of tasks: how an answer is parsed, scored and aggregated.

A kind is a `Scoring`; benchmarks of the same kind differ in file, prompt and group only, which is
what `tasks.py` lists.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ivc_jax.evals import metrics, parsers

Cells = Mapping[str, str]
Records = Sequence[Mapping[str, Any]]

# How each model family writes a box; a value is a function text -> fractions or pixels.
BOX_PARSERS: dict[str, Callable[[str], parsers.Box]] = {
    "qwen2_vl": parsers.qwen2_box,
    "internvl": parsers.bracketed_box,
    "deepseek_vl": parsers.bracketed_box,
}


@dataclasses.dataclass(frozen=True)
class Scoring:
    """One kind of task.

    Attributes:
        columns: TSV columns that the kind reads.
        parse: (answer, cells, family) -> a JSON value, stored in the record.
        score: (parsed, cells) -> the score of the row, at least 0.
        aggregate: records -> metrics by name.
        headline: the metric that is the score of the task.
    """

    columns: tuple[str, ...]
    parse: Callable[[str, Cells, str], Any]
    score: Callable[[Any, Cells], float]
    aggregate: Callable[[Records], dict[str, float]]
    headline: str = "accuracy"


def _parse_box(text: str, cells: Cells, family: str) -> list[float]:
    box = BOX_PARSERS[family](text)
    pixels = parsers.box_in_pixels(box, float(cells["width"]), float(cells["height"]))
    return [round(value, 3) for value in pixels]


def _score_box(parsed: list[float], cells: Cells) -> float:
    overlap = metrics.box_iou(tuple(parsed), parsers.target_box(cells["answer"]))
    return float(overlap >= metrics.HIT_IOU)


def _aggregate_boxes(records: Records) -> dict[str, float]:
    overlaps = [
        metrics.box_iou(tuple(record["parsed"]), parsers.target_box(record["target"]))
        for record in records
    ]
    return {
        "accuracy": metrics.mean([record["score"] for record in records]),
        "mean_iou": metrics.mean(overlaps),
        "box_share": metrics.mean([float(any(record["parsed"])) for record in records]),
    }


def _parse_words(text: str, cells: Cells, family: str) -> str:
    return parsers.plain_answer(text)


def _score_words(parsed: str, cells: Cells) -> float:
    return float(parsed == parsers.plain_answer(cells["answer"]))


def _aggregate_hits(records: Records) -> dict[str, float]:
    return {"accuracy": metrics.mean([record["score"] for record in records])}


def _parse_yes_no(text: str, cells: Cells, family: str) -> str:
    return parsers.yes_or_no(text)


def _score_yes_no(parsed: str, cells: Cells) -> float:
    return float(parsed.lower() == cells["answer"].strip().lower())


def _aggregate_yes_no(records: Records) -> dict[str, float]:
    """Aggregate overall, and the accuracy of each category; a row may belong to several."""
    result = metrics.yes_no_metrics(
        [record["target"] for record in records], [record["parsed"] for record in records]
    )
    by_category: dict[str, list[float]] = {}
    for record in records:
        for category in record["category"].split(","):
            if category.strip():
                by_category.setdefault(category.strip(), []).append(record["score"])
    for category, scores in sorted(by_category.items()):
        result[f"accuracy/{category}"] = metrics.mean(scores)
    return result


GROUNDING = Scoring(
    columns=("index", "question", "answer", "height", "width"),
    parse=_parse_box,
    score=_score_box,
    aggregate=_aggregate_boxes,
)
EXACT_MATCH = Scoring(
    columns=("index", "question", "answer"),
    parse=_parse_words,
    score=_score_words,
    aggregate=_aggregate_hits,
)
YES_NO = Scoring(
    columns=("index", "question", "answer"),
    parse=_parse_yes_no,
    score=_score_yes_no,
    aggregate=_aggregate_yes_no,
)
