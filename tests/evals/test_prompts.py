"""Prompts of every family and kind of task, byte for byte."""

import pytest

from ivc_jax.evals.benchmarks.tasks import TASKS, TaskError

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ALL = (*QWEN, "internvl", "deepseek_vl", "llava")
CHOICE = {"question": "What is it?", "A": "a cat", "B": "a dog", "C": "", "D": " "}
LETTER = "\nAnswer with the option's letter from the given choices directly."
SINGLE = "Answer the question using a single word or phrase."
SELECT = "Please select the correct answer from the options above."


def prompts(task, cells):
    return {family: TASKS[task].prompt(cells, family) for family in ALL}


def test_grounding_prompts():
    task, cells = TASKS["RefCOCOg_test"], {"question": "The Man."}
    assert task.prompt(cells, "qwen2_vl") == (
        "\n<|object_ref_start|>Detect the man<|object_ref_end|>"
    )
    for family in ("qwen2_5_vl", "qwen3_vl"):
        assert task.prompt(cells, family) == (
            "\nLocate The Man. and output the bbox coordinates in JSON format."
        )
    assert task.prompt(cells, "internvl") == (
        "Please provide the bounding box coordinate of the region this sentence describes:"
        " <ref>The Man.</ref>"
    )
    assert task.prompt(cells, "deepseek_vl") == (
        "<image>\nLocate <|ref|>The Man.<|/ref|> in the given image."
    )
    with pytest.raises(TaskError, match="llava"):
        task.prompt(cells, "llava")


@pytest.mark.parametrize(
    "task",
    ["SEEDBench_IMG", "MMBench_DEV_EN_V11", "MMStar", "RealWorldQA", "AI2D_TEST", "ScienceQA_TEST"],
)
def test_choice_prompts(task):
    labelled = "Question: What is it?\nOptions:\nA. a cat\nB. a dog\n"
    bare = "What is it?\nA. a cat\nB. a dog"
    assert prompts(task, CHOICE) == {
        **dict.fromkeys(QWEN, labelled + SELECT),
        "internvl": bare + LETTER,
        "deepseek_vl": labelled + SELECT + " \n",
        "llava": bare + LETTER,
    }


def test_hints_come_first():
    found = prompts("MMStar", CHOICE | {"hint": "Look left."})
    assert found["qwen2_5_vl"].startswith("Hint: Look left.\nQuestion: What is it?\nOptions:\n")
    assert found["deepseek_vl"].startswith("Hint: Look left.\nQuestion: What is it?\nOptions:\n")
    assert found["internvl"].startswith("Look left.\nWhat is it?\nA. a cat\n")
    for nothing in (" ", "nan", "NaN", "<NA>"):
        assert prompts("MMStar", CHOICE | {"hint": nothing}) == prompts("MMStar", CHOICE)
        assert prompts("MMStar", CHOICE | {"C": nothing}) == prompts("MMStar", CHOICE)
    assert "\nC. None\nD. N/A\n" in prompts("MMStar", CHOICE | {"C": "None", "D": "N/A"})["llava"]


@pytest.mark.parametrize("cells", [{"question": "这是什么?"}, {"A": "猫"}, {"hint": "看"}])
def test_chinese_prompts_end_in_chinese(cells):
    found = prompts("MMStar", CHOICE | cells)
    assert found["qwen2_vl"].endswith("B. a dog\n请直接回答选项字母。")
    assert found["internvl"].endswith("B. a dog\n请直接回答选项字母。")
    assert found["llava"] == found["internvl"]
    assert found["deepseek_vl"].endswith(SELECT + " \n")  # always English


def test_other_scripts_are_not_chinese():
    assert prompts("MMStar", CHOICE | {"A": "これ"})["qwen2_vl"].endswith(SELECT)


@pytest.mark.parametrize(
    ("task", "qwen", "internvl", "others"),
    [
        ("POPE", "q? Please answer yes or no.", "q?", "q?"),
        ("MME", "q?", f"q? {SINGLE}", "q?"),
        (
            "HallusionBench",
            "q? Please answer yes or no.",
            f"q? Please answer yes or no. {SINGLE}",
            "q?",
        ),
    ],
)
def test_yes_no_prompts(task, qwen, internvl, others):
    expected = {**dict.fromkeys(ALL, others), **dict.fromkeys(QWEN, qwen), "internvl": internvl}
    assert prompts(task, {"question": "q?"}) == expected


@pytest.mark.parametrize(
    "task",
    [
        *("TextVQA_VAL", "ChartQA_TEST", "DocVQA_VAL", "InfoVQA_VAL"),
        *("GQA_TestDev_Balanced", "OCRVQA_TESTCORE"),
    ],
)
def test_open_ended_prompts(task):
    short = "q?\nPlease try to answer the question with short words or phrases if possible."
    expected = {**dict.fromkeys(ALL, f"q?\n{SINGLE}"), **dict.fromkeys(QWEN, short)}
    assert prompts(task, {"question": "q?"}) == expected


def test_ocrbench_prompts_are_bare_for_two_families():
    found = prompts("OCRBench", {"question": "q?"})
    assert found["deepseek_vl"] == found["llava"] == "q?"
    assert found["internvl"] == f"q?\n{SINGLE}"
    assert found["qwen2_vl"] == (
        "q?\nPlease try to answer the question with short words or phrases if possible."
    )


@pytest.mark.parametrize("family", ALL)
def test_marks_in_a_question_are_its_words(family):
    text = "<image> or <video>: what does the HTML <image> tag do?"
    for task in ("POPE", "MMStar", "DocVQA_VAL", "DigitScenes_reading"):
        cells = CHOICE | {"question": text}
        (message,) = TASKS[task].write_messages(cells, family, ["x", "y"])
        written = TASKS[task].prompt(cells, family)
        *pictures, last = message["content"]
        assert pictures == [{"type": "image", "image": name} for name in ("x", "y")]
        assert last == {"type": "text", "text": written}
        assert text in written


def test_the_mark_of_a_released_prompt_is_its_picture():
    task, cells = TASKS["RefCOCOg_test"], {"question": "<image> tag."}
    (message,) = task.write_messages(cells, "deepseek_vl", ["x"])
    text = "\nLocate <|ref|><image> tag.<|/ref|> in the given image."
    assert message["content"][1:] == [{"type": "text", "text": text}]
