"""Open-ended questions: scores of a free answer against one or several reference answers."""

import dataclasses
from collections.abc import Callable

from rapidfuzz.distance import Levenshtein

from ivc_jax.evals.benchmarks import metrics, parsers
from ivc_jax.evals.benchmarks.cells import CellError, read_list
from ivc_jax.evals.benchmarks.scorers.base import (
    Cells,
    Reader,
    Records,
    Scoring,
    Sizes,
    average_scores,
    check_category,
)

_AGREEING = 3  # annotators that make an answer fully right (VQA accuracy)
_SMALLEST_SIMILARITY = 0.5  # below it, ANLS counts nothing
_TOLERANCE = 0.05  # relative error that ChartQA allows
_FORMULAS = "Handwritten Mathematical Expression Recognition"
# The ten categories of OCRBench (arXiv 2305.07895) in its five scores.
_RECOGNITION = "Text Recognition"
OCR_CATEGORIES = {
    **dict.fromkeys(
        (
            *("Regular Text Recognition", "Irregular Text Recognition"),
            *("Artistic Text Recognition", "Handwriting Recognition"),
            *("Digit String Recognition", "Non-Semantic Text Recognition"),
        ),
        _RECOGNITION,
    ),
    **{
        name: name
        for name in (
            *("Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction"),
            _FORMULAS,
        )
    },
}
_OCR_ROWS = 1000


def read_references(text: str) -> list[str]:
    """Return the reference answers of a cell: the items of a list, or the cell itself.

    Raises:
        ValueError: the list cannot be read.
    """
    try:
        return read_list(text) or [text]
    except CellError as error:
        raise ValueError(f"the answer cell: {error}") from None


def _check(cells: Cells, sizes: Sizes) -> None:
    read_references(cells["answer"])


def _score_exactly(parsed: str, cells: Cells, reader: Reader | None = None) -> float:
    return float(parsed == parsers.simplify(cells["answer"]))


def _score_vqa(parsed: str, cells: Cells, reader: Reader | None = None) -> float:
    """Return the VQA accuracy of a normalized answer: three agreeing others make it right.

    Each annotator is left out in turn and the mean taken. Fewer than four cannot give 1.
    """
    # [annotators]
    same = [parsers.normalize(target) == parsed for target in read_references(cells["answer"])]
    return metrics.mean([min(1.0, (sum(same) - own) / _AGREEING) for own in same])


def _score_by(match: Callable[[str, str], float], best: bool = True) -> Callable[..., float]:
    """Score an answer against each reference: the best counts, or the mean."""

    def score(parsed: str, cells: Cells, reader: Reader | None = None) -> float:
        found = [float(match(parsed, target)) for target in read_references(cells["answer"])]
        return max(found) if best else metrics.mean(found)

    return score


def _ignore_case(answer: str, target: str) -> bool:
    return answer.strip().lower() == target.strip().lower()


def _relax_to_answer(answer: str, target: str) -> bool:
    """Compare numbers up to 5 % of the answer, other texts without regard to case.

    As in the released code, which swaps its arguments; an answer of 0 is compared as text.
    """
    return _relax(of=answer, other=target)


def _relax_to_reference(answer: str, target: str) -> bool:
    return _relax(of=target, other=answer)


def _relax(of: str, other: str) -> bool:
    base, value = _read_number(of), _read_number(other)
    if base and value is not None:  # a base of 0 has no relative error: texts are compared
        return abs(value - base) / abs(base) <= _TOLERANCE
    return of.lower() == other.lower()


def _read_number(text: str) -> float | None:
    """Read a number; "%" divides it by 100."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _compare_letters(answer: str, target: str) -> float:
    """Return 1 - edit distance / length (ANLS), 0 below a half.

    Neither case nor the number of blanks counts. The length is that of the longer text in capitals
    ("Straße" has 7), blanks included, as in the released code.
    """
    # of the texts as they are, not as compared
    longest = max(len(answer.upper()), len(target.upper()))
    first, second = (" ".join(text.lower().split()) for text in (answer, target))
    value = 1 - Levenshtein.distance(first, second) / longest if longest else 1.0
    return value if value >= _SMALLEST_SIMILARITY else 0.0


def _score_ocr(parsed: str, cells: Cells, reader: Reader | None = None) -> float:
    """Look for a reference in the answer, as OCRBench does.

    Case does not count, except in handwritten formulas, where blanks do not.
    """
    category = cells["category"].strip()

    def flatten(text: str) -> str:
        text = text if category == _FORMULAS else text.lower()
        line = text.strip().replace("\n", " ")
        return line.replace(" ", "") if category == _FORMULAS else line

    targets = read_references(cells["answer"])
    return float(any(flatten(target) in flatten(parsed) for target in targets))


def _check_ocr(cells: Cells, sizes: Sizes) -> None:
    _check(cells, sizes)
    check_category(cells["category"].strip(), OCR_CATEGORIES)


def _aggregate_ocr(records: Records) -> dict[str, float]:
    """Aggregate as OCRBench does: counts of right answers, in five scores and in all.

    `final_score` is a count, of 1000 in the whole set, and `final_score_norm` a tenth of it;
    `accuracy` is the share of the rows that are present.
    """
    counts = dict.fromkeys(OCR_CATEGORIES.values(), 0.0)
    for record in records:
        counts[OCR_CATEGORIES[record.category.strip()]] += record.score
    final = sum(counts.values())  # of 1000 rows
    return {
        **average_scores(records),
        "final_score": final,
        "final_score_norm": final / 10,
        **{f"count/{name}": count for name, count in counts.items()},
    }


def _read_by(rewrite: Callable[[str], str]) -> Callable[[str, Cells, Reader], str]:
    """Parse an answer by a rule that needs nothing but its text."""
    return lambda text, cells, reader: rewrite(text)


EXACT_MATCH = Scoring(
    columns=("index", "question", "answer"),
    read=_read_by(parsers.simplify),
    score=_score_exactly,
    aggregate=average_scores,
    check=_check,
)
VQA_ACCURACY = dataclasses.replace(
    EXACT_MATCH, read=_read_by(parsers.normalize), score=_score_vqa, cells=("split",)
)
RELAXED_ACCURACY = dataclasses.replace(
    EXACT_MATCH, read=_read_by(str.strip), score=_score_by(_relax_to_answer), cells=("split",)
)
RELAXED_ACCURACY_FIXED = dataclasses.replace(RELAXED_ACCURACY, score=_score_by(_relax_to_reference))
# Distances are to the answer as it is, so nothing is stripped from it.
ANLS = dataclasses.replace(
    EXACT_MATCH, read=_read_by(str), score=_score_by(_compare_letters), cells=("split",)
)
SAME_ON_AVERAGE = dataclasses.replace(
    EXACT_MATCH,
    read=_read_by(str.strip),
    score=_score_by(_ignore_case, best=False),
    cells=("split",),
)
SAME_AS_ANY = dataclasses.replace(SAME_ON_AVERAGE, score=_score_by(_ignore_case))
OCR = dataclasses.replace(
    EXACT_MATCH,
    columns=(*EXACT_MATCH.columns, "category"),
    read=_read_by(str),
    score=_score_ocr,
    check=_check_ocr,
    aggregate=_aggregate_ocr,
    points=_OCR_ROWS,
)
