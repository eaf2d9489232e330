"""Parsers and summaries against numbers worked out by hand."""

import json

import pytest
from helpers.readers import read_as
from helpers.records import make_record, make_row

from ivc_jax.evals.benchmarks import parsers, tasks
from ivc_jax.evals.running import summary


def test_qwen2_box_is_read_in_thousandths():
    assert parsers.read_qwen2_box("it is (100,200),(300,400).") == (0.1, 0.2, 0.3, 0.4)
    assert parsers.read_qwen2_box("(1,2),(3,4) (9,9),(9,9)") == (0.001, 0.002, 0.003, 0.004)


@pytest.mark.parametrize(
    "text",
    [
        *("", "no box", "(1,2)", "(1,2),(3)", "[1,2,3,4]", "(a,b),(c,d)"),
        *("(1, 2),(3,4)", "(1,2), (3,4)", "( 1,2),(3,4)", "(1,2) ,(3,4)"),  # no blank anywhere
    ],
)
def test_text_without_a_qwen2_box_is_no_box(text):
    assert parsers.read_qwen2_box(text) == parsers.NO_BOX


def test_bracketed_box_is_scaled_by_its_sum():
    assert parsers.read_bracketed_box("<box>[[100, 200, 300, 400]]</box>") == (0.1, 0.2, 0.3, 0.4)
    assert parsers.read_bracketed_box("[0.1,0.2,0.3,0.4]") == (0.1, 0.2, 0.3, 0.4)
    assert parsers.read_bracketed_box("[1, 1, 1, 1]") == (0.001, 0.001, 0.001, 0.001)  # sums to 4
    assert parsers.read_bracketed_box("[1, 1, 1, 0.5]") == (1.0, 1.0, 1.0, 0.5)
    assert parsers.read_bracketed_box("[1, 2, 3]") == parsers.NO_BOX
    assert parsers.read_bracketed_box("[-5, +100, .1, 1e2]") == (-0.005, 0.1, 0.0001, 0.1)
    assert parsers.read_bracketed_box("[1_00, 200., 3e2, 400]") == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[man] [[100, 200, 300, 400]]", parsers.NO_BOX),  # the first bracket takes in words
        ("[man]\n[[100, 200, 300, 400]]", (0.1, 0.2, 0.3, 0.4)),  # on another line it does not
        ("[100,\n200, 300, 400] [1, 2, 3, 4]", (0.001, 0.002, 0.003, 0.004)),
        ("[1, 2] [100, 200, 300, 400]", parsers.NO_BOX),
        ("[100, 200, 300, 400, 500]", parsers.NO_BOX),
        ("[[[100, 200, 300, 400] and more", (0.1, 0.2, 0.3, 0.4)),
        ("[ [100, 200, 300, 400]]", parsers.NO_BOX),  # brackets apart
        ("[nan, 200, 300, 400]", parsers.NO_BOX),
        ("[100, 200, inf, 400]", parsers.NO_BOX),
        ("[100, 200, 300, 4OO] [100, 200, 300, 400]", parsers.NO_BOX),
    ],
)
def test_the_first_bracket_with_three_commas_is_the_box(text, box):
    assert parsers.read_bracketed_box(text) == box


def test_fractions_become_pixels_and_pixels_stay():
    assert parsers.scale_to_pixels((0.1, 0.2, 0.5, 1.1), 200, 100) == pytest.approx(
        (20, 20, 100, 110)
    )
    assert parsers.scale_to_pixels((0.1, 0.2, 0.5, 1.2), 200, 100) == (0.1, 0.2, 0.5, 1.2)


def test_target_box_takes_four_numbers():
    assert parsers.read_target_box("1 2.5 3 4 9 9 9 9") == (1, 2.5, 3, 4)
    with pytest.raises(ValueError, match="expected 'x1 y1 x2 y2'"):
        parsers.read_target_box("1 2 3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "Yes"),
        ("no.", "No"),
        ("Yes, there is.", "Yes"),
        ("There is NO digit", "No"),
        ("yes/no", "Unknown"),
        ("Yes and no", "Unknown"),
        ("nothing", "Unknown"),
        ("yesterday", "Unknown"),
        ("Yes: there is", "Unknown"),  # the colon is no mark
        ("Answer:Yes", "Unknown"),
        ("no:", "Unknown"),
        ("Answer: Yes", "Yes"),
        ("", "Unknown"),
    ],
)
def test_yes_or_no(text, expected):
    assert parsers.read_yes_or_no(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-b", "a b"),  # touches no blank: becomes one
        ("a -b c-d", "a b cd"),  # touches a blank somewhere: deleted everywhere
        ("1,000-2", "10002"),  # a comma between digits: all marks are deleted
        ("3.5 end.", "3.5 end"),
        ("what?yes", "what yes"),
    ],
)
def test_punctuation_rule(text, expected):
    assert parsers.drop_punctuation(text) == expected


def test_plain_answer_ignores_case_blanks_and_one_period():
    assert parsers.simplify("  Red. \n") == "red"
    assert parsers.simplify("7") == "7"
    assert parsers.simplify("red..") == "red."
    assert parsers.simplify("red!") != "red"


def test_grounding_scores_at_half_overlap():
    scoring = tasks.TASKS["DigitScenes_grounding"].scoring
    cells = {"answer": "0 0 100 100", "width": "200", "height": "100"}
    # 0.25 x 200 = 50 pixels of 100: exactly half
    half = scoring.parse("(0,0),(250,1000)", cells, read_as("qwen2_vl"))
    assert half == [0, 0, 50, 100]
    assert scoring.score(half, cells) == 1
    assert scoring.score(scoring.parse("(0,0),(245,1000)", cells, read_as("qwen2_vl")), cells) == 0
    assert scoring.score(scoring.parse("none", cells, read_as("qwen2_vl")), cells) == 0


def test_refcoco_prompt_follows_the_qwen2_template():
    task = tasks.TASKS["RefCOCO+_testA"]
    cells = {"question": "The Man in red."}
    expected = "\n<|object_ref_start|>Detect the man in red<|object_ref_end|>"
    assert task.prompt(cells, "qwen2_vl") == expected
    assert task.prompt({"question": "the man in red"}, "qwen2_vl") == expected
    with pytest.raises(tasks.TaskError, match="llava"):
        task.prompt(cells, "llava")


def test_find_knows_short_names_and_lists_known_ones():
    assert [task.name for task in tasks.find(["Colour", "refcoco_testa", "colour"])] == [
        "DigitScenes_colour",
        "RefCOCO_testA",
    ]
    with pytest.raises(
        tasks.TaskError, match=r"unknown task 'color'; known: DigitScenes_grounding"
    ):
        tasks.find(["color"])
    names = ["GQA", "mmbench", "ocrbench", "ScienceQA", "seedbench_img", "grounding"]
    assert [task.name for task in tasks.find(names)] == [
        *("GQA_TestDev_Balanced", "MMBench_DEV_EN_V11", "OCRBench", "ScienceQA_TEST"),
        *("SEEDBench_IMG", "DigitScenes_grounding"),
    ]
    for several in ("RefCOCO", "AI2D", "DigitScenes"):
        with pytest.raises(tasks.TaskError, match="unknown task"):
            tasks.find([several])


def test_the_table_holds_the_public_sets():
    names = "SEEDBench_IMG MMBench_DEV_EN_V11 MMStar RealWorldQA MME POPE TextVQA_VAL ChartQA_TEST"
    assert (*names.split(), "AI2D_TEST") == tasks.GENERAL_VQA
    assert len(tasks.REFCOCO) == 8
    assert {tasks.TASKS[name].group for name in tasks.GENERAL_VQA} == {"general VQA"}
    assert {tasks.TASKS[name].max_new_tokens for name in tasks.GENERAL_VQA} == {512}
    for name, task in tasks.TASKS.items():
        assert (task.name, task.file_name) == (name, f"{name}.tsv")
        optional = {"hint", "category", "l2-category", "split", "image_path"}
        needed = {"OCRBench": 1, "POPE": 1, "MME": 2, "HallusionBench": 1}.get(name, 0)
        assert len(optional & set(task.scoring.columns)) == needed
    assert "refcoco --qwen25" in tasks.TASKS["RefCOCO_val_for_qwen25vl"].source
    assert "VLMEvalKit" in tasks.TASKS["POPE"].source


def test_another_number_of_rows_is_remarked():
    assert tasks.TASKS["MMStar"].remark_on_rows(1500) is None
    assert "MMStar.tsv has 12 rows, usually 1500" in tasks.TASKS["MMStar"].remark_on_rows(12)
    assert tasks.TASKS["DigitScenes_colour"].remark_on_rows(12) is None


def record(example, method, score, task="DigitScenes_colour", **values):
    return make_record(example_id=example, method=method, score=score, task=task, **values)


def test_rows_by_hand():
    found = [
        record("1", "dense", 1.0, keep_ratio=1.0),
        record("2", "dense", 1.0, keep_ratio=1.0),
        record("1", "half", 1.0, prefill_ms=2.0, decode_ms=9.0),
        record("2", "half", 0.0, prefill_ms=4.0, decode_ms=9.0),
        record("3", "half", None, failed=True),
    ]
    dense, half = summary.make_rows(found, ["DigitScenes_colour"], ["dense", "half"])
    assert list(vars(half)) == [
        "task", "method", "keep_ratio", "n", "score", "metrics", "retention", "visual_tokens",
        "kept_tokens", "kv_bytes", "prefill_ms", "decode_ms_per_token",
    ]  # fmt: skip
    assert (dense.score, dense.retention, half.n) == (1, 1, 2)
    assert (half.metrics["cached_share"], half.metrics["flops"]) == (0.5, 2e6)
    assert (half.score, half.retention, half.prefill_ms) == (0.5, 0.5, 3)
    assert half.decode_ms_per_token == 3
    assert half.metrics["change"] == -0.5
    json.dumps([vars(dense), vars(half)])


def test_retention_needs_a_dense_score():
    (row,) = summary.make_rows([record("1", "half", 1.0)], ["DigitScenes_colour"], ["half"])
    assert row.retention is None
    rows = summary.make_rows(
        [record("1", "dense", 0.0), record("1", "half", 1.0)],
        ["DigitScenes_colour"],
        ["dense", "half"],
    )
    assert rows[1].retention is None


def test_averages_weigh_tasks_alike():
    names = ["DigitScenes_colour", "DigitScenes_counting", "DigitScenes_reading"]
    found = [record(str(n), "dense", 1.0, names[0]) for n in range(3)]
    found += [record("1", "dense", 0.0, name) for name in names[1:]]
    rows = {row.task: row for row in summary.make_rows(found, names, ["dense"])}
    assert rows["average"].score == pytest.approx(1 / 3)
    assert rows["average/semantic"].score == pytest.approx(1 / 2)
    assert rows["average"].n == 5
    assert "average/spatial" not in rows


def test_existence_reports_precision_and_categories():
    name = "DigitScenes_existence"
    found = [
        record("1", "dense", 1.0, name, target="yes", parsed="Yes", category="random"),
        record("2", "dense", 0.0, name, target="no", parsed="Yes", category="random,adversarial"),
    ]
    (row,) = summary.make_rows(found, [name], ["dense"])
    values = row.metrics
    assert (row.score, values["precision"], values["recall"]) == (0.5, 0.5, 1)
    assert (values["accuracy/random"], values["accuracy/adversarial"]) == (0.5, 0)


def test_scores_that_are_no_means_have_intervals_and_changes_of_their_own():
    """F1 of dense: 60 of 80 found, none wrongly; of half: 40 of 80."""

    def answers(method, found):
        return [
            record(
                str(n), method, float(n < found), "POPE", target="Yes", category="random",
                parsed="Yes" if n < found else "No",
            )
            for n in range(80)
        ]  # fmt: skip

    rows = summary.make_rows(
        [*answers("dense", 60), *answers("half", 40)], ["POPE"], ["dense", "half"]
    )
    dense, half = 2 * 60 / (60 + 80), 2 * 40 / (40 + 80)
    assert rows[0].score == pytest.approx(dense)
    assert rows[1].retention == pytest.approx(half / dense)
    values = rows[1].metrics
    assert values["low"] < half < values["high"] < values["low"] + 0.3
    assert values["change"] == pytest.approx(half - dense)
    assert values["change_low"] < half - dense < values["change_high"] < 0


def test_change_compares_common_examples_only():
    found = [
        record("1", "dense", 1.0, "POPE", target="Yes", parsed="Yes", category="random"),
        record("2", "dense", 0.0, "POPE", target="Yes", parsed="No", category="random"),
        record("1", "half", 1.0, "POPE", target="Yes", parsed="Yes", category="random"),
    ]
    _, half = summary.make_rows(found, ["POPE"], ["dense", "half"])
    assert half.metrics["change"] == 0
    json.dumps(vars(half))


def test_tables_by_category():
    values = {"accuracy": 0.5, "accuracy/b": 0.25, "accuracy/a": 1.0, "accuracy/l2/x": 0.5}
    values |= {"accuracy/split/dev": 0.75, "accuracy/in/out": 0.1}
    rows = [
        make_row("MMStar", "dense", 0.5, metrics=values),
        make_row("MMStar", "half", 0.5, metrics={"accuracy": 0.5, "accuracy/a": 0.0}),
        make_row("MME", "dense", 1.0, metrics={"score": 1.0, "points/OCR": 185.0}),
        make_row("average", "dense", 0.75),
    ]
    tables = summary.collect_categories(rows)
    assert [(table.task, table.measure, table.level) for table in tables] == [
        ("MMStar", "accuracy", "category"),
        ("MMStar", "accuracy", "l2-category"),
        ("MMStar", "accuracy", "split"),
        ("MME", "points", "category"),
    ]
    assert tables[0].categories == ("a", "b", "in/out")
    assert tables[0].lines == {"dense": (1.0, 0.25, 0.1), "half": (0.0, None, None)}
    assert tables[3].lines == {"dense": (185.0,)}
