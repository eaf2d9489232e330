"""Scores of free answers: VQA accuracy, relaxed accuracy, ANLS, exact match and OCRBench."""

import json

import numpy as np
import pytest
from helpers.readers import read_as
from helpers.records import make_record

from ivc_jax.evals.benchmarks import parsers, tasks
from ivc_jax.evals.benchmarks.scorers import open_ended
from ivc_jax.evals.benchmarks.tasks import TASKS


def score(task, text, answer, family="qwen2_vl", **cells):
    task = TASKS[task] if isinstance(task, str) else task
    cells = {"answer": answer, **cells}
    reader = read_as(family)
    return task.scoring.score(task.scoring.parse(text, cells, reader), cells, reader)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("red", ["red"]),
        ("['red', 'it\\'s']", ["red", "it's"]),
        ('["a", 2]', ["a", "2"]),
        ("[broken", ["[broken"]),
        ("[sic]", ["[sic]"]),
        ("['a' 'b']", ["a", "b"]),  # as NumPy prints them
        ("['a' \"it's\"\n 'b']", ["a", "it's", "b"]),
        ("array(['a', 'b'], dtype='<U1')", ["a", "b"]),
        ("array(['a', 2], dtype=object)", ["a", "2"]),
        ("[1 2]", ["1", "2"]),
        ('["caf\\u00e9", "a\\/b"]', ["caf\u00e9", "a/b"]),  # as JSON does
        ("[]", ["[]"]),
        ("", [""]),
    ],
)
def test_reference_cells_may_be_lists(cell, expected):
    assert open_ended.read_references(cell) == expected


@pytest.mark.parametrize(
    "cell",
    [
        *("['12 May', nan]", '["12 May", null]', "['a', None]", "['a' nan]", "[<NA>, 'a']"),
        *("['a', ['b']]", "['a' 'b', 'c']", "['a' ... 'b']", "['a''b']", "[nan]", '["a", NaN]'),
    ],
)
def test_a_list_that_cannot_be_read_fails_the_row(cell):
    for name in ("DocVQA_VAL", "TextVQA_VAL", "GQA_TestDev_Balanced", "ChartQA_TEST"):
        with pytest.raises(ValueError, match="the answer cell: "):
            TASKS[name].check_cells({"answer": cell})


def test_lists_of_every_program_score_alike():
    for name, text in (
        ("TextVQA_VAL", "nokia"),
        ("OCRBench", "say nokia"),
        ("DocVQA_VAL", "nokia"),
    ):
        items = ["nokia"] * 9 + ["Nokia 3"]
        written = [str(items), str(np.array(items)), repr(np.array(items)), json.dumps(items)]
        scores = {score(name, text, cell, category=SCENE) for cell in written}
        assert len(scores) == 1
        assert scores.pop() >= 0.9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The\tRed\nCar.", "red car"),
        ("a an the", ""),
        ("two dogs, None of ten", "2 dogs 0 of 10"),
        ("dont", "don't"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im she's", "im she's"),  # the scripts know only "Im", and text is lower case by then
        ("yall", "y'all"),
        ("stop-sign", "stop sign"),
        ("3.5", "3.5"),
        ("time:5", "time:5"),  # the colon is no mark
        ("time: 5", "time: 5"),
    ],
)
def test_vqa_normalization(text, expected):
    assert parsers.normalize(text) == expected


def test_vqa_accuracy_leaves_each_annotator_out():
    answers = ["red"] * 3 + ["blue"] * 6 + ["Red."]
    # "red" is given by 4: each of the 4 has 3 others -> 1, each of the 6 has 4 -> 1
    assert score("TextVQA_VAL", "The red", str(answers)) == 1
    answers = ["red"] * 3 + ["blue"] * 7
    # each of the 3 has 2 others -> 2/3, each of the 7 has 3 -> 1
    assert score("TextVQA_VAL", "red", str(answers)) == pytest.approx((3 * 2 / 3 + 7) / 10)
    answers = ["red"] + ["blue"] * 9
    assert score("TextVQA_VAL", "red", str(answers)) == pytest.approx(9 * (1 / 3) / 10)
    assert score("TextVQA_VAL", "green", str(answers)) == 0
    assert score("TextVQA_VAL", "red", "red") == 0  # one annotator has no other
    assert score("TextVQA_VAL", "10 10", str(["10:10"] * 10)) == 0
    assert score("TextVQA_VAL", "time:5", str(["time: 5"] * 10)) == 0


@pytest.mark.parametrize(
    ("text", "answer", "official", "fixed"),
    [
        ("100", "105", 1, 1),  # 5 of 100 and 5 of 105
        ("100", "105.2", 0, 1),  # 5.2 of 100 is too much, of 105.2 is not
        ("105.2", "100", 1, 0),
        ("5%", "0.05", 1, 1),
        ("5", "5%", 0, 0),
        ("0", "0.0", 0, 0),  # zero falls back to text in both
        ("0", "0", 1, 1),
        ("0", "1e-9", 0, 0),
        (" Red ", "red", 1, 1),
        ("red car", "red", 0, 0),
        ("-10", "10", 0, 0),
        ("4", "['3', '4.1']", 1, 1),  # the best of several
        ("7", "seven", 0, 0),
    ],
)
def test_relaxed_accuracy(text, answer, official, fixed):
    chart = TASKS["ChartQA_TEST"]
    assert score(chart, text, answer) == official
    assert score(tasks.use_fixed_relaxed_accuracy(chart), text, answer) == fixed


def test_only_relaxed_accuracy_can_be_fixed():
    assert tasks.use_fixed_relaxed_accuracy(TASKS["DocVQA_VAL"]) is TASKS["DocVQA_VAL"]


def test_chartqa_is_reported_by_split():
    records = [
        make_record(score=1.0, cells={"split": "human"}),
        make_record(score=0.0, cells={"split": "human"}),
        make_record(score=1.0, cells={"split": "augmented"}),
    ]
    values = TASKS["ChartQA_TEST"].scoring.aggregate(records)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert (values["accuracy/split/human"], values["accuracy/split/augmented"]) == (0.5, 1)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Invoice", "invoice", 1),
        ("kitten", "sitting", 4 / 7),  # three edits of seven letters
        ("abcd", "abxy", 0.5),  # just enough
        ("abcd", "axyz", 0),  # 1/4 is below a half
        # one edit in the collapsed texts, over the length of the text as it is: 1 - 1/8
        ("ab  cd e", "ab cd f", 7 / 8),
        ("abcd", "['zzzz', 'abce']", 3 / 4),
        ("", "a", 0),
        # "ß" is one letter and two capitals: one edit in 7, not in 6
        ("Straßa", "Straße", 6 / 7),
    ],
)
@pytest.mark.parametrize("task", ["DocVQA_VAL", "InfoVQA_VAL"])
def test_anls(task, text, answer, expected):
    assert score(task, text, answer) == pytest.approx(expected)


def test_exact_match_takes_the_mean_or_the_best():
    assert score("GQA_TestDev_Balanced", " Yes ", "yes") == 1
    assert score("GQA_TestDev_Balanced", "yes.", "yes") == 0
    assert score("GQA_TestDev_Balanced", "yes", "['yes', 'no']") == 0.5
    assert score("OCRVQA_TESTCORE", "yes", "['yes', 'no']") == 1
    assert score("OCRVQA_TESTCORE", "maybe", "['yes', 'no']") == 0


SCENE = "Scene Text-centric VQA"
FORMULAS = "Handwritten Mathematical Expression Recognition"


@pytest.mark.parametrize(
    ("text", "answer", "category", "expected"),
    [
        ("The word is CENTRE.", "['centre']", SCENE, 1),
        ("cen tre", "['centre']", SCENE, 0),
        ("two\nlines", "['x', 'Two lines']", SCENE, 1),
        ("centr", "['centre']", SCENE, 0),
        ("x ^ 2 + Y", "['x^2+Y']", FORMULAS, 1),
        ("so x^\n2 it is", "['x ^ 2']", FORMULAS, 1),
        ("X^2", "['x^2']", FORMULAS, 0),
    ],
)
def test_ocrbench_looks_for_the_answer_in_the_text(text, answer, category, expected):
    assert score("OCRBench", text, answer, category=category) == expected


def test_two_families_tidy_their_answers_before_the_score():
    assert score("GQA_TestDev_Balanced", "yes.", "yes", "internvl") == 0
    assert score("GQA_TestDev_Balanced", "yes...", "yes", "deepseek_vl") == 1
    assert score("GQA_TestDev_Balanced", "yes. ", "yes", "deepseek_vl") == 0  # no period at the end
    assert score("ChartQA_TEST", "5.", "five.", "deepseek_vl") == 0
    # of 4 letters, blanks included, one is wrong; LLaVA's lose the blanks: one of 3
    assert score("DocVQA_VAL", " abd", "abc", "qwen2_vl") == 3 / 4
    assert score("DocVQA_VAL", " abd", "abc", "llava") == pytest.approx(2 / 3)


def test_ocrbench_sums_by_hand():
    categories = ["Handwriting Recognition", "Digit String Recognition", SCENE, FORMULAS, SCENE]
    scores = [1.0, 1.0, 0.0, 1.0, 1.0]
    records = [make_record(score=s, category=c) for s, c in zip(scores, categories, strict=True)]
    values = TASKS["OCRBench"].scoring.aggregate(records)
    assert (values["final_score"], values["final_score_norm"]) == (4, 0.4)
    assert values["accuracy"] == 4 / 5  # of the rows that are present
    counts = {name: value for name, value in values.items() if name.startswith("count/")}
    assert counts == {
        "count/Text Recognition": 2,
        f"count/{SCENE}": 1,
        "count/Doc-oriented VQA": 0,
        "count/Key Information Extraction": 0,
        f"count/{FORMULAS}": 1,
    }
    assert TASKS["OCRBench"].scoring.points == 1000


def test_ocrbench_knows_its_ten_categories():
    assert len(open_ended.OCR_CATEGORIES) == 10
    with pytest.raises(ValueError, match="unknown category 'Poems'"):
        TASKS["OCRBench"].check_cells({"answer": "['a']", "category": "Poems"})
