"""Yes/no questions: plain ones, and the sets POPE, MME and HallusionBench with their own scores.

An answer with both words or neither is Unknown and wrong.
"""

import dataclasses
from collections.abc import Hashable

from ivc_jax.evals.benchmarks import metrics, parsers
from ivc_jax.evals.benchmarks.scorers.base import (
    Cells,
    Reader,
    Records,
    Scoring,
    Sizes,
    average_scores,
    check_category,
    group,
    read_cell,
)
from ivc_jax.evals.schema import Record

# The categories of MME (arXiv 2306.13394).
MME_PERCEPTION = (
    *("OCR", "artwork", "celebrity", "color", "count", "existence"),
    *("landmark", "position", "posters", "scene"),
)
MME_REASONING = (
    *("code_reasoning", "commonsense_reasoning"),
    *("numerical_calculation", "text_translation"),
)
POPE_CATEGORIES = ("random", "popular", "adversarial")
_CATEGORY_POINTS = 200  # of MME: 100 for single questions and 100 for pairs
_LEFT_OUT = {"yes_share", "unknown_share"}  # by category, they would say little


def _read(text: str, cells: Cells, reader: Reader) -> str:
    return parsers.read_yes_or_no(text)


def _score(parsed: str, cells: Cells, reader: Reader | None = None) -> float:
    return float(parsed.lower() == cells["answer"].strip().lower())


def _check(cells: Cells, sizes: Sizes) -> None:
    if cells["answer"].strip().lower() not in ("yes", "no"):
        raise ValueError(f"expected Yes or No as answer, found {cells['answer']!r}")


def _check_pope(cells: Cells, sizes: Sizes) -> None:
    _check(cells, sizes)
    for category in cells["category"].split(","):
        check_category(category.strip(), POPE_CATEGORIES)


def _check_mme(cells: Cells, sizes: Sizes) -> None:
    _check(cells, sizes)
    check_category(cells["category"].strip(), MME_PERCEPTION + MME_REASONING)


def _measure(records: Records) -> dict[str, float]:
    return metrics.measure_yes_no(
        [record.target for record in records], [record.parsed for record in records]
    )


def _group_by_category(records: Records) -> dict[str, Records]:
    """Group rows by category; a row may belong to several, joined by commas."""
    return group(
        (category.strip(), record) for record in records for category in record.category.split(",")
    )


def _aggregate(records: Records) -> dict[str, float]:
    """Aggregate overall, and the accuracy of each category; a row may belong to several."""
    return _measure(records) | {
        f"accuracy/{category}": metrics.mean([record.score for record in members])
        for category, members in _group_by_category(records).items()
    }


def _aggregate_pope(records: Records) -> dict[str, float]:
    """Aggregate as POPE does: a row counts once in each of its categories."""
    groups = _group_by_category(records)
    result = _measure([record for members in groups.values() for record in members])
    for category, members in groups.items():
        values = _measure(members)
        result |= {f"{k}/{category}": v for k, v in values.items() if k not in _LEFT_OUT}
    return result


def _name_picture(record: Record) -> Hashable:
    """Name the picture of an MME question; two questions ask about each."""
    # categories reuse the names of files
    return record.category.strip(), read_cell(record, "image_path")


def _count_points(records: Records) -> float:
    """Return points of one category, up to 200: right answers, and pictures with both right.

    Pictures of which one question only is present do not enter the second part.
    """
    # picture -> scores of its two questions
    pictures = group((_name_picture(record), record.score) for record in records)
    # 1 where both are right
    pairs = [min(scores[:2]) for scores in pictures.values() if len(scores) >= 2]
    hits = [record.score for record in records]
    return _CATEGORY_POINTS / 2 * (metrics.mean(hits) + metrics.mean(pairs))


def _aggregate_mme(records: Records) -> dict[str, float]:
    """Aggregate as MME does: points by category, sums over perception and reasoning.

    `score` is the mean share of its points that a category reaches. With all categories present it
    is `total` / 2800; with some of them `total` is the sum over these.
    """
    points = {name: _count_points(members) for name, members in _group_by_category(records).items()}
    perception = [points[name] for name in MME_PERCEPTION if name in points]
    reasoning = [points[name] for name in MME_REASONING if name in points]
    return {
        **average_scores(records),
        "score": metrics.mean(perception + reasoning) / _CATEGORY_POINTS,
        "perception": float(sum(perception)),
        "reasoning": float(sum(reasoning)),
        "total": float(sum(perception + reasoning)),
        **{f"points/{category}": value for category, value in points.items()},
    }


def _name_set(record: Record) -> tuple[str, str]:
    # sets of different l2-categories have the same numbers
    return read_cell(record, "l2-category"), _read_ids(record.example_id)[0]


def _read_ids(index: str) -> tuple[str, str, str]:
    """Return the ids of set, figure and question that an index of HallusionBench holds.

    VD_chart_1_0_2_1 is question 1 about figure 2 of set 0; what follows "#" is not part of it.
    """
    fields = index.partition("#")[0].split("_")
    if len(fields) < 6:
        raise ValueError(f"expected an index like VD_x_y_set_figure_question, found {index!r}")
    return fields[3], fields[4], fields[5]  # of VD_chart_1_0_2_1: "0", "2", "1"


def _check_hallusion(cells: Cells, sizes: Sizes) -> None:
    _check(cells, sizes)
    _read_ids(cells["index"].strip())


def _aggregate_hallusion(records: Records) -> dict[str, float]:
    """Aggregate as HallusionBench does: shares of questions, figures and question pairs.

    `accuracy_figures` (fAcc) counts figures with every question right, `accuracy_pairs` (qAcc)
    questions that are right on every figure; `score` is their mean with `accuracy` (aAcc).
    """
    figures, questions = [], []  # (key, score) pairs, to be grouped
    for record in records:
        _, figure, question = _read_ids(record.example_id)
        figures.append(((*_name_set(record), figure), record.score))
        questions.append(((*_name_set(record), question), record.score))
    result = average_scores(records)
    result["accuracy_figures"] = _share_all_right(figures)
    result["accuracy_pairs"] = _share_all_right(questions)
    parts = ("accuracy", "accuracy_figures", "accuracy_pairs")
    return result | {"score": metrics.mean([result[name] for name in parts])}


def _share_all_right(pairs: list[tuple[Hashable, float]]) -> float:
    return metrics.mean([min(scores) for scores in group(pairs).values()])


YES_NO = Scoring(
    columns=("index", "question", "answer"),
    read=_read,
    score=_score,
    aggregate=_aggregate,
    check=_check,
)
POPE = dataclasses.replace(
    YES_NO,
    columns=(*YES_NO.columns, "category"),
    check=_check_pope,
    aggregate=_aggregate_pope,
    headline="f1",
    unit=lambda record: record.example_id,
)
MME = dataclasses.replace(
    YES_NO,
    columns=(*YES_NO.columns, "category", "image_path"),
    check=_check_mme,
    aggregate=_aggregate_mme,
    headline="score",
    cells=("image_path",),
    points=_CATEGORY_POINTS * len(MME_PERCEPTION + MME_REASONING),
    unit=_name_picture,
)
HALLUSION = dataclasses.replace(
    YES_NO,
    columns=(*YES_NO.columns, "l2-category"),
    check=_check_hallusion,
    aggregate=_aggregate_hallusion,
    headline="score",
    cells=("l2-category", "split"),
    unit=_name_set,
)
