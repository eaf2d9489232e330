"""Multiple choice: the letter in the answer, else the option whose text it repeats.

An answer that names no single option is wrong. The released evaluation asks a language model about
such answers first and then guesses; its authors call this reading "exact_matching".
"""

import dataclasses
import string

from ivc_jax.evals.benchmarks import metrics, parsers
from ivc_jax.evals.benchmarks.cells import read_text
from ivc_jax.evals.benchmarks.scorers.base import (
    Cells,
    Reader,
    Records,
    Scoring,
    Sizes,
    average_scores,
)
from ivc_jax.evals.schema import Record

_REFUSED = "Z"  # as the released code marks an answer that declines: it is no option
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_BLANKED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# Rotations of the options of one question have indices that differ by multiples of this:
#
#   question    7 as it is   7 rotated once   7 rotated twice
#   index       7            1000007          2000007
_ROTATION = 10**6


def read_options(cells: Cells) -> dict[str, str]:
    """Return the option texts of a row by letter; a missing cell is no option."""
    # A to Z, whichever columns the file has
    found = {letter: read_text(cells, letter) for letter in string.ascii_uppercase}
    return {letter: text for letter, text in found.items() if text}


def _read(text: str, cells: Cells, reader: Reader) -> str:
    """Return the letter of the option that an answer names or repeats, else "Unknown"."""
    options = read_options(cells)
    if letter := _find_letter(text, "".join(options)):
        return letter
    lowered = text.lower()
    repeated = [letter for letter, option in options.items() if option.lower() in lowered]
    return repeated[0] if len(repeated) == 1 else parsers.UNKNOWN


def _find_letter(text: str, letters: str) -> str | None:
    """Return the only one of `letters` that is a word of the answer, "Z" for a refusal, or None."""
    if any(refusal in text for refusal in _REFUSALS):
        return _REFUSED
    words = set(text.translate(_BLANKED).split())  # "(B)." becomes the word B; "Because" is none
    named = [letter for letter in letters if letter in words]
    if len(named) == 1:
        return named[0]
    return _REFUSED if not named and _REFUSED in words else None


def _score(parsed: str, cells: Cells, reader: Reader | None = None) -> float:
    return float(parsed == cells["answer"].strip())


def _check(cells: Cells, sizes: Sizes) -> None:
    answer, options = cells["answer"].strip(), read_options(cells)
    if not options:
        raise ValueError("the row has no option: expected texts in the columns A, B, ...")
    if len(answer) != 1 or answer not in string.ascii_uppercase:
        raise ValueError(f"expected the letter of an option as answer, found {answer!r}")
    if answer not in options:
        raise ValueError(f"the answer {answer} names no option; there are {', '.join(options)}")


def _check_rotation(cells: Cells, sizes: Sizes) -> None:
    _check(cells, sizes)
    if not cells["index"].strip().isdigit():
        raise ValueError(f"expected a whole number as index, found {cells['index']!r}")


def _aggregate(records: Records) -> dict[str, float]:
    unmatched = [float(record.parsed == parsers.UNKNOWN) for record in records]
    return average_scores(records) | {"unmatched_share": metrics.mean(unmatched)}


def _aggregate_rotations(records: Records) -> dict[str, float]:
    """Count a question as right if every rotation of its options that is present is right.

    `accuracy_one_order` asks the first order alone. Questions without their first row, which holds
    their category, do not count.
    """
    hits: dict[int, float] = {}  # question -> 1 if every rotation so far is right
    for record in records:
        question = _find_question(record)
        hits[question] = min(record.score, hits.get(question, 1.0))
    first = [record for record in records if _read_index(record) < _ROTATION]
    # the first rows, with the score of all rotations
    judged = [dataclasses.replace(each, score=hits[_find_question(each)]) for each in first]
    return {
        **_aggregate(records),
        **average_scores(judged),
        "accuracy_one_order": metrics.mean([record.score for record in first]),
        "questions": float(len(first)),
    }


def _find_question(record: Record) -> int:
    """Return the number that the rotations of one question share."""
    return _read_index(record) % _ROTATION


def _read_index(record: Record) -> int:
    # a repeated index has "#" and its row behind it
    return int(float(record.example_id.partition("#")[0]))


CHOICE = Scoring(
    columns=("index", "question", "answer"),
    read=_read,
    score=_score,
    aggregate=_aggregate,
    check=_check,
    optional=("A", "B"),
    cells=("l2-category", "split"),
)
CIRCULAR_CHOICE = dataclasses.replace(
    CHOICE, check=_check_rotation, aggregate=_aggregate_rotations, unit=_find_question
)
