"""POPE, MME and HallusionBench on tables worked out by hand."""

import pytest
from helpers.records import make_record

from ivc_jax.evals.benchmarks.scorers.yes_no import MME_PERCEPTION, MME_REASONING
from ivc_jax.evals.benchmarks.tasks import TASKS


def record(index, target, parsed, category="", **cells):
    score = float(parsed.lower() == target.lower())
    return make_record(
        example_id=index, target=target, parsed=parsed, score=score, category=category, cells=cells
    )


def test_pope_counts_a_row_in_each_of_its_categories():
    records = [
        record("1", "Yes", "Yes", "random,popular,adversarial"),
        record("2", "Yes", "No", "random"),
        record("3", "No", "Yes", "adversarial,popular"),
        record("4", "No", "No", "random"),
        record("5", "No", "Unknown", "random"),
    ]
    # exploded: random TP FN TN Unknown, popular TP FP, adversarial TP FP -> 8 rows
    # TP 3, FP 2, FN 1; right: TP 3 + TN 1, the Unknown is wrong
    values = TASKS["POPE"].scoring.aggregate(records)
    assert values["accuracy"] == 4 / 8
    assert values["precision"] == 3 / 5
    assert values["recall"] == 3 / 4
    assert values["f1"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert values["accuracy/random"] == 2 / 4
    assert values["precision/random"] == 1
    assert values["f1/random"] == pytest.approx(2 / 3)
    assert values["f1/popular"] == pytest.approx(2 / 3)  # TP 1, FP 1
    assert TASKS["POPE"].scoring.headline == "f1"


def test_mme_points_by_hand():
    def pair(category, picture, *answers):
        return [
            record(f"{picture}{n}", target, answer, category, image_path=picture)
            for n, (target, answer) in enumerate(zip(("Yes", "No"), answers, strict=False))
        ]

    records = [
        *pair("OCR", "a", "Yes", "No"),
        *pair("OCR", "b", "Yes", "Yes"),  # 3 of 4 questions, 1 of 2 pictures: 75 + 50
        *pair("count", "a", "Unknown", "No"),  # 1 of 2, 0 of 1: 50; not the picture of OCR
        *pair("code_reasoning", "c", "Yes", "No"),
        *pair("code_reasoning", "d", "No"),  # wrong, its partner is missing: 2/3 and no pair
    ]
    values = TASKS["MME"].scoring.aggregate(records)
    assert values["points/OCR"] == 125
    assert values["points/count"] == 50
    reasoning = 100 * 2 / 3 + 100
    assert values["points/code_reasoning"] == pytest.approx(reasoning)
    assert values["perception"] == 175
    assert values["reasoning"] == pytest.approx(reasoning)
    assert values["total"] == pytest.approx(175 + reasoning)
    assert values["score"] == pytest.approx((175 + reasoning) / 600)  # of three categories
    assert values["accuracy"] == 6 / 9


def test_a_perfect_mme_has_2800_points():
    records = [
        record(f"{name}{n}", target, target, name, image_path=f"{name}/1.png")
        for name in MME_PERCEPTION + MME_REASONING
        for n, target in enumerate(("Yes", "No"))
    ]
    scoring = TASKS["MME"].scoring
    values = scoring.aggregate(records)
    assert (values["perception"], values["reasoning"], values["total"]) == (2000, 800, 2800)
    assert values["score"] * scoring.points == 2800


def test_hallusionbench_by_hand():
    # index: kind_level_x_set_figure_question; figures of set 0: 0 and 1, questions 0 and 1
    answers = {
        "VD_chart_x_0_0_0": "Yes",
        "VD_chart_x_0_0_1": "Yes",  # figure 0 is all right
        "VD_chart_x_0_1_0": "Yes",
        "VD_chart_x_0_1_1": "No",  # figure 1 is not; question 0 is right on both, 1 is not
        "VD_chart_x_1_0_0": "No",  # set 1
    }
    records = [
        record(index, "Yes", answer, "VD", **{"l2-category": "chart"})
        for index, answer in answers.items()
    ]
    # the same ids under another l2-category are other figures
    records.append(record("VS_map_x_0_0_0", "Yes", "Yes", "VS", **{"l2-category": "map"}))
    values = TASKS["HallusionBench"].scoring.aggregate(records)
    assert values["accuracy"] == 4 / 6
    assert values["accuracy_figures"] == 2 / 4  # chart 0/0, 0/1, 1/0 and map 0/0
    assert values["accuracy_pairs"] == 2 / 4  # chart 0/0, 0/1, 1/0 and map 0/0
    assert values["score"] == pytest.approx((4 / 6 + 1 / 2 + 1 / 2) / 3)
    assert values["accuracy/VD"] == 3 / 5
    assert values["accuracy/l2/map"] == 1


def test_figures_and_pairs_are_counted_apart():
    answers = {"a_b_c_0_0_0": "Yes", "a_b_c_0_0_1": "Yes", "a_b_c_0_1_0": "No"}
    records = [
        record(index, "Yes", answer, "VD", **{"l2-category": "chart"})
        for index, answer in answers.items()
    ]
    values = TASKS["HallusionBench"].scoring.aggregate(records)
    assert values["accuracy_figures"] == 1 / 2  # figure 0 right, figure 1 wrong
    assert values["accuracy_pairs"] == 1 / 2  # question 0 wrong on figure 1, question 1 right
    records.append(record("a_b_c_0_2_0", "Yes", "Yes", "VD", **{"l2-category": "chart"}))
    values = TASKS["HallusionBench"].scoring.aggregate(records)
    assert values["accuracy_figures"] == 2 / 3
    assert values["accuracy_pairs"] == 1 / 2


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("POPE", {"answer": "maybe"}, "expected Yes or No"),
        ("POPE", {"category": "random,rare"}, "unknown category 'rare'; known: random, popular"),
        ("MME", {"answer": "A"}, "expected Yes or No"),
        ("MME", {"category": "counting"}, "unknown category 'counting'; known: OCR, artwork"),
        ("DigitScenes_existence", {"answer": "maybe"}, "expected Yes or No"),
        ("HallusionBench", {"index": "12"}, "set_figure_question"),
    ],
)
def test_broken_rows_show_before_the_model_runs(task, change, message):
    category = "count" if task == "MME" else "random, popular"
    cells = {"index": "a_b_c_0_0_0", "question": "q", "answer": "No", "category": category}
    cells |= {"l2-category": "chart"}
    TASKS[task].check_cells(cells)
    with pytest.raises(ValueError, match=message):
        TASKS[task].check_cells(cells | change)


@pytest.mark.parametrize("task", ["POPE", "MME", "HallusionBench"])
def test_no_rows_are_no_error(task):
    scoring = TASKS[task].scoring
    assert scoring.aggregate([])[scoring.headline] == 0
