"""Multiple choice: which option an answer names, and circular accuracy worked out by hand."""

import pytest
from helpers.readers import read_as
from helpers.records import make_record

from ivc_jax.evals.benchmarks.scorers.choice import read_options
from ivc_jax.evals.benchmarks.tasks import TASKS

CELLS = {
    "index": "7",
    "question": "q",
    "answer": "B",
    "A": "a red car",
    "B": "Blue bus",
    "C": "bus",
    "D": "",
}


def parsed(text, cells=CELLS):
    return TASKS["MMStar"].scoring.parse(text, cells, read_as("qwen2_vl"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("Answer: B.", "B"),
        ("{C}!", "C"),
        ("The answer is A", "A"),  # an article would count as well, as in the released scorer
        ("B B B", "B"),  # one letter, named often
        ("b", "Unknown"),  # letters are upper case
        ("A or B", "Unknown"),
        ("B-", "Unknown"),  # a dash is no blank
        ("D", "Unknown"),  # no such option
        ("A RED CAR, surely", "A"),  # text of an option; "A" is the letter anyway
        ("It is a red car", "A"),
        ("a blue bus", "Unknown"),  # holds the texts of both B and C
        ("the bus", "C"),
        ("Z", "Z"),
        ("Z B", "B"),
        ("A, B or Z", "Unknown"),
        ("Sorry, I can't help with images of people yet. B", "Z"),
        ("Cannot determine the answer", "Z"),
        ("", "Unknown"),
    ],
)
def test_letter_else_text(text, expected):
    assert parsed(text) == expected


def test_unmatched_and_refused_are_wrong():
    scoring = TASKS["MMStar"].scoring
    assert scoring.score("B", CELLS) == 1
    assert [scoring.score(value, CELLS) for value in ("A", "Z", "Unknown")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "Blue bus"}, "letter of an option"),
        ({"answer": "b"}, "letter of an option"),
        ({"A": "", "B": "", "C": ""}, "no option"),
        ({"answer": "D"}, "the answer D names no option; there are A, B, C"),
        ({"answer": "C", "C": "nan"}, "the answer C names no option; there are A, B"),
    ],
)
def test_broken_rows_show_before_the_model_runs(change, message):
    with pytest.raises(ValueError, match=message):
        TASKS["MMStar"].check_cells(CELLS | change)
    TASKS["MMStar"].check_cells(CELLS)


def test_missing_values_are_no_options():
    """As pandas writes them; "None" and "N/A" may be options."""
    cells = {**CELLS, "A": "None", "B": "banana", "C": "nan", "D": "N/A", "E": "NaN", "F": "<NA>"}
    assert read_options(cells) == {"A": "None", "B": "banana", "D": "N/A"}
    assert parsed("banana", cells) == "B"  # "nan" is a part of it


def record(index, score, category="", l2="", split="", parsed="B"):
    cells = {"l2-category": l2, "split": split}
    return make_record(example_id=index, score=score, parsed=parsed, category=category, cells=cells)


def test_accuracy_by_category_level_and_split():
    records = [
        record("1", 1.0, "place", "fine", "dev"),
        record("2", 0.0, "place", "fine", "test"),
        record("3", 1.0, "count", "fine", "dev"),
        record("4", 0.0, "count", "coarse", "dev", parsed="Unknown"),
    ]
    assert TASKS["MMStar"].scoring.aggregate(records) == pytest.approx(
        {
            "accuracy": 0.5,
            "accuracy/place": 0.5,
            "accuracy/count": 0.5,
            "accuracy/l2/fine": 2 / 3,
            "accuracy/l2/coarse": 0,
            "accuracy/split/dev": 2 / 3,
            "accuracy/split/test": 0,
            "unmatched_share": 0.25,
        }
    )


def test_rows_without_category_make_no_category():
    values = TASKS["MMStar"].scoring.aggregate([record("1", 1.0), record("2", 0.0, "place")])
    assert {name: value for name, value in values.items() if "/" in name} == {"accuracy/place": 0}


def test_circular_accuracy_wants_every_rotation():
    # 1: both orders right; 2: second order wrong; 3: first wrong; 4: one order only is present;
    # 5: its first row is missing, so that it does not count
    scores = {"1": 1, "1000001": 1, "2": 1, "1000002": 0, "3": 0, "1000003": 1, "4": 1}
    records = [record(name, float(score), "x", "", "dev") for name, score in scores.items()]
    records.append(record("2000005", 1.0, "x", "", "dev"))
    values = TASKS["MMBench_DEV_EN_V11"].scoring.aggregate(records)
    assert values["accuracy"] == values["accuracy/x"] == values["accuracy/split/dev"] == 2 / 4
    assert values["accuracy_one_order"] == 3 / 4
    assert values["questions"] == 4
    # the same rows in a set without rotations
    assert TASKS["SEEDBench_IMG"].scoring.aggregate(records)["accuracy"] == 6 / 8


def test_circular_sets_need_numbers_as_index():
    with pytest.raises(ValueError, match="whole number as index"):
        TASKS["MMBench_DEV_EN_V11"].check_cells(CELLS | {"index": "q7"})
