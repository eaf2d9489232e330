"""Multiple choice: the letter in the answer, else the option whose text it repeats.

An answer that names no single option is wrong. The released evaluation asks a language model about
such answers first and then guesses; its authors call this reading "exact_matching".
"""

import dataclasses
import string

from ivc_jax.evals.benchmarks import metrics, parsers
from ivc_jax.evals.benchmarks.scoring import Cells, Record, Records, Scoring, accuracies

REFUSED = "Z"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_BLANKED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ROTATION = 10**6  # rotations of one question have indices that differ by multiples of this


def options(cells: Cells) -> dict[str, str]:
    """Return the option texts of a row by letter; an empty cell is no option."""
    return {
        letter: cells[letter]
        for letter in string.ascii_uppercase
        if letter in cells and cells[letter].strip()
    }


def chosen_letter(text: str, letters: str) -> str | None:
    """Return the only one of `letters` that is a word of the answer, "Z" for a refusal, or None."""
    if any(refusal in text for refusal in _REFUSALS):
        return REFUSED
    words = set(text.translate(_BLANKED).split())
    named = [letter for letter in letters if letter in words]
    if len(named) == 1:
        return named[0]
    return REFUSED if not named and REFUSED in words else None


def repeated_option(text: str, choices: dict[str, str]) -> str | None:
    """Return the letter of the only option whose text is part of the answer, or None."""
    lowered = text.lower()
    named = [letter for letter, choice in choices.items() if choice.lower() in lowered]
    return named[0] if len(named) == 1 else None


def _parse(text: str, cells: Cells, family: str) -> str:
    choices = options(cells)
    letter = chosen_letter(text, "".join(choices))
    return letter or repeated_option(text, choices) or parsers.UNKNOWN


def _score(parsed: str, cells: Cells, family: str = "") -> float:
    answer = cells["answer"].strip()
    if not options(cells):
        raise ValueError("the row has no option: expected texts in the columns A, B, ...")
    if len(answer) != 1 or answer not in string.ascii_uppercase:
        raise ValueError(f"expected the letter of an option as answer, found {answer!r}")
    return float(parsed == answer)


def _aggregate(records: Records) -> dict[str, float]:
    unmatched = [float(record["parsed"] == parsers.UNKNOWN) for record in records]
    return accuracies(records) | {"unmatched_share": metrics.mean(unmatched)}


def question_of(record: Record) -> int:
    """Return the number that the rotations of one question share."""
    return _index(record) % _ROTATION


def _index(record: Record) -> int:
    # a repeated index has "#" and its row behind it
    return int(float(record["example_id"].partition("#")[0]))


def _score_rotation(parsed: str, cells: Cells, family: str = "") -> float:
    if not cells["index"].strip().isdigit():
        raise ValueError(f"expected a whole number as index, found {cells['index']!r}")
    return _score(parsed, cells, family)


def _aggregate_circular(records: Records) -> dict[str, float]:
    """Count a question as right if every rotation of its options that is present is right.

    `accuracy_one_order` asks the first order alone. Questions without their first row, which holds
    their category, do not count.
    """
    hits: dict[int, float] = {}
    for record in records:
        question = question_of(record)
        hits[question] = min(record["score"], hits.get(question, 1.0))
    first = [record for record in records if _index(record) < _ROTATION]
    judged = [{**record, "score": hits[question_of(record)]} for record in first]
    return {
        **_aggregate(records),
        **accuracies(judged),
        "accuracy_one_order": metrics.mean([record["score"] for record in first]),
        "questions": float(len(first)),
    }


CHOICE = Scoring(
    columns=("index", "question", "answer"),
    parse=_parse,
    score=_score,
    aggregate=_aggregate,
    cells=("l2-category", "split"),
)
CIRCULAR_CHOICE = dataclasses.replace(
    CHOICE, score=_score_rotation, aggregate=_aggregate_circular, unit=question_of
)
