"""Open-ended questions: scores of a free answer against one or several reference answers."""

import ast
import dataclasses
from collections.abc import Callable

from rapidfuzz.distance import Levenshtein

from ivc_jax.evals.benchmarks import metrics, parsers
from ivc_jax.evals.benchmarks.scoring import Cells, Records, Scoring, accuracies
from ivc_jax.evals.benchmarks.vqa_words import normalized

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


def references(text: str) -> list[str]:
    """Return the reference answers of a cell: the items of a literal list, or the cell itself."""
    if text.lstrip().startswith("["):
        try:
            items = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            return [text]
        if items:
            return [str(item) for item in items]
    return [text]


def vqa_accuracy(answer: str, targets: list[str]) -> float:
    """Return the VQA accuracy of a normalized answer: three agreeing others make it right.

    Each annotator is left out in turn and the mean taken. Fewer than four cannot give 1.
    """
    same = [normalized(target) == answer for target in targets]
    return metrics.mean([min(1.0, (sum(same) - own) / _AGREEING) for own in same])


def relaxed_match(answer: str, target: str, *, of_answer: bool = True) -> bool:
    """Compare numbers up to 5 %, other texts without regard to case.

    Args:
        of_answer: the error is relative to the answer, as in the released code, which swaps its
            arguments, and an answer of 0 is compared as text. False: relative to the reference.
    """
    error_of, other = (answer, target) if of_answer else (target, answer)
    base, value = _number(error_of), _number(other)
    if base and value is not None:
        return abs(value - base) / abs(base) <= _TOLERANCE
    return answer.lower() == target.lower()


def _number(text: str) -> float | None:
    """Read a number; "%" divides it by 100."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def similarity(answer: str, target: str) -> float:
    """Return 1 - edit distance / length, without regard to case and to the number of blanks.

    The length is that of the longer text as it is, blanks included, as in the released code.
    """
    longest = max(len(answer), len(target))
    first, second = (" ".join(text.lower().split()) for text in (answer, target))
    return 1 - Levenshtein.distance(first, second) / longest if longest else 1.0


def contains(answer: str, target: str, category: str) -> bool:
    """Tell whether the answer contains the target, as OCRBench compares.

    Case does not count, except in handwritten formulas, where blanks do not.
    """
    if category == _FORMULAS:
        return "".join(_one_line(target).split(" ")) in "".join(_one_line(answer).split(" "))
    return _one_line(target.lower()) in _one_line(answer.lower())


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _scored_by(match: Callable[[str, str], float], best: bool) -> Callable[..., float]:
    """Score an answer against each reference: the best counts, or the mean."""

    def score(parsed: str, cells: Cells, family: str = "") -> float:
        found = [float(match(parsed, target)) for target in references(cells["answer"])]
        return max(found) if best else metrics.mean(found)

    return score


def _score_vqa(parsed: str, cells: Cells, family: str = "") -> float:
    return vqa_accuracy(parsed, references(cells["answer"]))


def _anls(answer: str, target: str) -> float:
    value = similarity(answer, target)
    return value if value >= _SMALLEST_SIMILARITY else 0.0


def _same(answer: str, target: str) -> bool:
    return answer.strip().lower() == target.strip().lower()


def _relaxed_to_reference(answer: str, target: str) -> bool:
    return relaxed_match(answer, target, of_answer=False)


def _score_ocr(parsed: str, cells: Cells, family: str = "") -> float:
    category = cells["category"].strip()
    if category not in OCR_CATEGORIES:
        raise ValueError(f"unknown category {category!r}; known: {', '.join(OCR_CATEGORIES)}")
    targets = references(cells["answer"])
    return float(any(contains(parsed, target, category) for target in targets))


def _aggregate_ocr(records: Records) -> dict[str, float]:
    """Aggregate as OCRBench does: counts of right answers, in five scores and in all.

    `final_score` is a count, of 1000 in the whole set, and `final_score_norm` a tenth of it;
    `accuracy` is the share of the rows that are present.
    """
    counts = dict.fromkeys(OCR_CATEGORIES.values(), 0.0)
    for record in records:
        counts[OCR_CATEGORIES[record["category"].strip()]] += record["score"]
    final = sum(counts.values())
    return {
        **accuracies(records),
        "final_score": final,
        "final_score_norm": final / 10,
        **{f"count/{name}": count for name, count in counts.items()},
    }


def _verbatim(text: str, cells: Cells, family: str) -> str:
    return text


def _parse_stripped(text: str, cells: Cells, family: str) -> str:
    return text.strip()


def _parse_vqa(text: str, cells: Cells, family: str) -> str:
    return normalized(text)


def _parse_plain(text: str, cells: Cells, family: str) -> str:
    return parsers.plain_answer(text)


def _score_plain(parsed: str, cells: Cells, family: str = "") -> float:
    return float(parsed == parsers.plain_answer(cells["answer"]))


EXACT_MATCH = Scoring(
    columns=("index", "question", "answer"),
    parse=_parse_plain,
    score=_score_plain,
    aggregate=accuracies,
)
VQA_ACCURACY = dataclasses.replace(
    EXACT_MATCH, parse=_parse_vqa, score=_score_vqa, cells=("split",)
)
RELAXED_ACCURACY = dataclasses.replace(
    EXACT_MATCH,
    parse=_parse_stripped,
    score=_scored_by(relaxed_match, best=True),
    cells=("split",),
)
RELAXED_ACCURACY_FIXED = dataclasses.replace(
    RELAXED_ACCURACY, score=_scored_by(_relaxed_to_reference, best=True)
)
# Distances are to the answer as it is, so nothing is stripped from it.
ANLS = dataclasses.replace(
    EXACT_MATCH, parse=_verbatim, score=_scored_by(_anls, best=True), cells=("split",)
)
SAME_ON_AVERAGE = dataclasses.replace(
    EXACT_MATCH, parse=_parse_stripped, score=_scored_by(_same, best=False), cells=("split",)
)
SAME_AS_ANY = dataclasses.replace(SAME_ON_AVERAGE, score=_scored_by(_same, best=True))
OCR = dataclasses.replace(
    EXACT_MATCH,
    columns=(*EXACT_MATCH.columns, "category"),
    parse=_verbatim,
    score=_score_ocr,
    aggregate=_aggregate_ocr,
    points=_OCR_ROWS,
)
