"""Grounding from a RefCOCO file to a score: prompts, boxes and frames of both Qwen families."""

import json

import numpy as np
import pytest
from helpers.readers import RELEASED, read_as
from helpers.records import make_record
from helpers.tsv import encode, write_tsv
from PIL import Image

import ivc_jax
from ivc_jax.commands import run
from ivc_jax.evals.benchmarks import metrics, parsers, tasks
from ivc_jax.evals.benchmarks.scorers.grounding import GROUNDING, GROUNDING_RESIZED
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.reports import figures

# 640 x 480 becomes 644 x 476 in the frame of Qwen2.5-VL.
CELLS = {"width": "640", "height": "480", "answer": "100.5 60 300.25 400", "index": "1"}


def test_prompts_byte_for_byte():
    task = tasks.TASKS["RefCOCO_testA"]
    cells = {"question": "The Man in red"}
    expected = "\nLocate The Man in red and output the bbox coordinates in JSON format."
    assert task.prompt(cells, "qwen2_5_vl") == expected
    assert tasks.TASKS["RefCOCOg_val_for_qwen25vl"].prompt(cells, "qwen2_5_vl") == expected
    official = tasks.use_official_prompt(task)
    expected = "\n<|object_ref_start|>Detect the man in re<|object_ref_end|>"
    assert official.prompt(cells, "qwen2_vl") == expected
    digits = tasks.TASKS["DigitScenes_grounding"]
    assert tasks.use_official_prompt(digits) is digits


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ('```json\n[\n\t{"bbox_2d": [10, 6, 30, 39], "label": "m"}\n]\n```', (10, 6, 30, 39)),
        ('{"bbox_2d":[1,2,3,4]} {"bbox_2d": [9, 9, 9, 9]}', (1, 2, 3, 4)),
        ('{"label": [5, 5, 5, 5], "bbox_2d":\n[1,  2,3,\n4]}', (1, 2, 3, 4)),
        ('{"bbox_2d" : [1, 2, 3, 4]}', parsers.NO_BOX),  # blanks elsewhere
        ('{"bbox_2d": [ 1, 2, 3, 4]}', parsers.NO_BOX),
        ('{"bbox_2d": [1 , 2, 3, 4]}', parsers.NO_BOX),
        ('{"bbox_2d": [1, 2, 3, 4 ]}', parsers.NO_BOX),
        ('{"bbox_2d": [\n1, 2, 3, 4\n]}', parsers.NO_BOX),
        ('{"bbox_2d": [1, 2, 3]}', parsers.NO_BOX),
        ('{"bbox_2d": [1.5, 2, 3, 4]}', parsers.NO_BOX),
        ("[1, 2, 3, 4]", parsers.NO_BOX),
        ("(1,2),(3,4)", parsers.NO_BOX),
        ("", parsers.NO_BOX),
    ],
)  # fmt: skip
def test_first_bbox_2d_is_the_answer(text, box):
    assert parsers.read_qwen2_5_box(text) == box


@pytest.mark.parametrize(
    ("size", "frame"),
    [
        ((640, 480), (644, 476)),
        ((42, 70), (56, 56)),  # 42 / 28 = 1.5 and 70 / 28 = 2.5 both go to 2: half to even
        ((28, 56), (56, 84)),  # grows to 3136 pixels: by the root of 2, rounded up to cells
        ((3, 3), (56, 56)),
        ((5000, 4000), (4004, 3192)),  # shrinks to 16384 cells: by 0.8014, rounded down
    ],
)
def test_frame_is_what_the_processor_makes_of_a_picture(size, frame):
    assert read_as("qwen2_5_vl").find_frame(*size) == frame
    narrow = read_as("qwen2_5_vl", RELEASED.bound(None, 256 * 28 * 28))
    assert narrow.find_frame(640, 480) == (504, 364)  # 0.8085 of it, and not 644 x 476


def test_qwen2_5_boxes_are_scored_in_the_resized_frame():
    text = '{"bbox_2d": [101, 60, 302, 397]}'
    reader = read_as("qwen2_5_vl")
    parsed = GROUNDING.parse(text, CELLS, reader)
    np.testing.assert_allclose(parsed, [100.373, 60.504, 300.124, 400.336], atol=1e-3)
    assert GROUNDING.score(parsed, CELLS, reader) == 1
    # A file in the resized frame holds these very numbers.
    resized = {**CELLS, "answer": "101 60 302 397"}
    assert GROUNDING_RESIZED.score(parsed, resized, reader) == 1
    assert GROUNDING_RESIZED.score(parsed, {**resized, "answer": "400 60 600 397"}) == 0
    for wrong in ("", "no", '{"bbox_2d": [400, 60, 600, 397]}'):
        assert GROUNDING.score(GROUNDING.parse(wrong, CELLS, reader), CELLS, reader) == 0


def test_both_frames_are_reported():
    # 28 x 28 needs no resizing here: only the rounding of the reference differs.
    reader = read_as("qwen2_5_vl", RELEASED.bound(28 * 28, None))
    cells = {"width": "28", "height": "28", "answer": "0 0 0.9 10"}
    parsed = GROUNDING.parse('{"bbox_2d": [0, 0, 2, 10]}', cells, reader)
    score = GROUNDING.score(parsed, cells, reader)
    record = make_record(score=score, parsed=parsed, target=cells["answer"])
    metrics = GROUNDING.aggregate([record])
    assert metrics["accuracy"] == 1  # 10 of 20 against the rounded reference
    assert metrics["accuracy_original_frame"] == 0  # 9 of 20
    assert metrics["mean_iou"] == pytest.approx(0.45)


# How each family writes a box; its numbers are thousandths, or pixels of what the model sees.
WRITTEN = {
    "qwen2_vl": "<|box_start|>({},{}),({},{})<|box_end|>",
    "qwen2_5_vl": '```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}], "label": "x"}}\n]\n```',
    "qwen3_vl": '```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}], "label": "x"}}\n]\n```',
    "internvl": "<ref>x</ref><box>[[{}, {}, {}, {}]]</box>",
    "deepseek_vl": "<|ref|>x<|/ref|><|det|>[[{}, {}, {}, {}]]<|/det|>",
}
CELL = 28 * 28


@pytest.mark.parametrize("family", WRITTEN)
@pytest.mark.parametrize(
    "bounds",
    [(4, 16384), (4, 256), (1280, 16384), (64, 512)],
    ids=["released", "small", "large", "narrow"],
)
def test_a_perfect_answer_scores_whatever_the_bounds(family, bounds):
    draw = np.random.default_rng(0)
    reader = read_as(family, RELEASED.bound(bounds[0] * CELL, bounds[1] * CELL))
    for _ in range(200):
        width, height = (int(side) for side in draw.integers(28, 3000, 2))
        rows, columns = reader.pictures.find_size(width, height)
        corner, extent = draw.uniform(0, 0.5, 2), draw.uniform(0.2, 0.5, 2)
        box = np.concatenate([corner, corner + extent])  # fractions of the picture
        size = (columns, rows) if family == "qwen2_5_vl" else (1000, 1000)
        seen = [round(value) for value in box * [*size, *size]]
        target = box * [width, height, width, height]
        cells = {"width": f"{width}", "height": f"{height}", "answer": " ".join(map(str, target))}
        parsed = GROUNDING.parse(WRITTEN[family].format(*seen), cells, reader)
        assert GROUNDING.score(parsed, cells, reader) == 1
        overlap = metrics.measure_iou(tuple(parsed), parsers.read_target_box(cells["answer"]))
        assert overlap > 0.8  # what rounding to whole numbers leaves


def test_values_up_to_one_are_fractions_of_the_picture():
    reader = read_as("qwen2_5_vl")
    assert GROUNDING.parse('{"bbox_2d": [0, 0, 1, 1]}', CELLS, reader) == [0, 0, 640, 480]
    # 2 is a pixel of 644 x 476
    parsed = GROUNDING.parse('{"bbox_2d": [0, 0, 1, 2]}', CELLS, reader)
    assert parsed == pytest.approx([0, 0, 0.994, 2.017])


def test_a_broken_frame_shows_before_the_model_runs():
    task, cells = tasks.TASKS["RefCOCO_val_for_qwen25vl"], {**CELLS, "frame_width": "504"}
    task.check_cells(cells | {"frame_height": "364"})
    for change in ({}, {"frame_height": ""}, {"frame_height": "0"}):
        with pytest.raises(ValueError, match="expected positive frame_width and frame_height"):
            task.check_cells(cells | change)


def test_a_file_in_a_frame_of_its_own_says_so():
    # the same picture in a file for 256 cells, for models that see it in their own ways
    cells = CELLS | {"frame_width": "504", "frame_height": "364", "answer": "79 45 236 303"}
    for bounds in ((None, None), (None, 256 * CELL), (1280 * CELL, None)):
        reader = read_as("qwen2_5_vl", RELEASED.bound(*bounds))
        width, height = reader.find_frame(640, 480)
        box = np.array([100.5, 60, 300.25, 400]) * ([width / 640, height / 480] * 2)
        text = '{"bbox_2d": %s}' % [round(value) for value in box]
        parsed = GROUNDING_RESIZED.parse(text, cells, reader)
        assert GROUNDING_RESIZED.score(parsed, cells, reader) == 1
    far = {**cells, "answer": "300 45 457 303"}
    assert GROUNDING_RESIZED.score(parsed, far, reader) == 0


def test_boxes_are_read_in_the_frame_of_the_loaded_processor(tiny_hf):
    path = tiny_hf(family="qwen2_5_vl", num_hidden_layers=2)
    for bounds in ({}, {"max_pixels": 16 * 16}, {"min_pixels": 48 * 48}):
        model, processor = ivc_jax.load(path, **bounds)
        answerer = ModelAnswerer(model, processor)
        picture = Image.new("RGB", (40, 30))
        task, cells = tasks.TASKS["RefCOCO_val"], {"question": "?"}
        messages = task.write_messages(cells, "qwen2_5_vl", [picture])
        _, rows, columns = answerer.process(messages).images[0].grid
        assert answerer.make_reader().find_frame(40, 30) == (4 * columns, 4 * rows)  # patches of 4


def test_qwen2_boxes_stay_in_the_original_frame():
    parsed = GROUNDING.parse("(157,125),(469,833)", CELLS, read_as("qwen2_vl"))
    np.testing.assert_allclose(parsed, [100.48, 60, 300.16, 399.84], atol=1e-3)
    assert GROUNDING.score(parsed, CELLS, read_as("qwen2_vl")) == 1


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "internvl"])
def test_boxes_of_the_bundled_benchmark_are_thousandths_in_any_format(family):
    scoring = tasks.TASKS["DigitScenes_grounding"].scoring
    reader = read_as(family)
    cells = {"width": "192", "height": "192", "answer": "18 19 30 31", "index": "1"}
    parsed = scoring.parse("(83,83),(167,167)", cells, reader)
    assert parsed == [15.936, 15.936, 32.064, 32.064]
    assert scoring.score(parsed, cells, reader) == 1
    other = scoring.parse("(167,83),(250,167)", cells, reader)
    assert scoring.score(other, cells, reader) == 0


def test_other_models_answer_the_bundled_benchmark_as_their_family_writes():
    scoring = tasks.TASKS["DigitScenes_grounding"].scoring
    cells = {"width": "280", "height": "280", "answer": "28 28 84 84", "index": "1"}
    text = '{"bbox_2d": [28, 28, 84, 84]}'
    assert scoring.parse(text, cells, read_as("qwen2_5_vl")) == [28, 28, 84, 84]
    assert scoring.parse("nothing", cells, read_as("llava")) == [0, 0, 0, 0]


def test_an_impossible_size_is_a_row_error():
    task = tasks.TASKS["RefCOCO_val"]
    with pytest.raises(ValueError, match="positive width and height"):
        task.check_cells({**CELLS, "width": "0"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "24", "height": "32"}, "picture is 32x24, cells say 24x32"),
        ({"width": "3200", "height": "2400"}, "picture is 32x24, cells say 3200x2400"),
        ({"answer": "20 20 5 5"}, "the reference box 20 20 5 5 has no area"),
        ({"answer": "5 5 20 5"}, "the reference box 5 5 20 5 has no area"),
        ({"answer": "nan 5 20 20"}, "has no area"),
        ({"answer": "5 5 inf 20"}, "has no area"),
        ({"answer": "[5, 5, 20, 20]"}, "expected 'x1 y1 x2 y2', found"),
    ],
)
def test_cells_that_disagree_with_the_picture_fail_the_row(change, message):
    cells = {"width": "32", "height": "24", "answer": "5 5 20 20", "index": "1"}
    for name in ("RefCOCO_val", "RefCOCO_val_for_qwen25vl", "DigitScenes_grounding"):
        tasks.TASKS[name].check_cells(cells, [(32, 24)])
        with pytest.raises(ValueError, match=message):
            tasks.TASKS[name].check_cells(cells | change, [(32, 24)])


def write_refcoco(path):
    """Write three rows in the format of VLMEvalKit; the last one reuses the first image."""
    draw, rows = np.random.default_rng(0), []
    for index, size in enumerate([(40, 56), (48, 32)]):
        image = encode(Image.fromarray(draw.integers(0, 255, (*size, 3), np.uint8)))
        rows.append([index, image, f"the cup {index}.", *size, "1.5 2 20 30.25"])
    rows.append([2, 0, "the other cup", 40, 56, "5 5 30 30"])
    header = ["index", "image", "question", "height", "width", "answer"]
    write_tsv(path, header, [map(str, row) for row in rows])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_refcoco_file_from_the_command_line(tiny_hf, tmp_path, monkeypatch, family):
    monkeypatch.setattr(figures, "draw", lambda *arguments: [])  # not asked about here
    write_refcoco(tmp_path / "RefCOCO_testA.tsv")
    options = [
        "--model",
        tiny_hf(family=family, num_hidden_layers=2),
        "--data-dir",
        tmp_path,
        "--methods",
        "dense",
    ]
    options += ["ivc:layer=1,keep_ratio=0.5", "--no-compile-cache", "--out", tmp_path / "out"]
    options += ["--buckets", 1, "--max-new-tokens", 8]
    assert run.main(["grounding", *map(str, options)]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    dense, pruned = (row for row in results["rows"] if row["task"] == "RefCOCO_testA")
    assert dense["n"] == pruned["n"] == 3
    assert results["meta"]["failed_rows"] == 0
    assert "accuracy_original_frame" in dense["metrics"]
    assert pruned["kept_tokens"] < dense["kept_tokens"]
    records = (tmp_path / "out" / "records" / "RefCOCO_testA.jsonl").read_text().splitlines()
    assert len(records) == 6
    assert all(len(json.loads(line)["parsed"]) == 4 for line in records)


def test_a_folder_without_any_set_is_named(tmp_path, capsys):
    options = ["grounding", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run.main([*options, "--no-compile-cache"]) == 2
    error = capsys.readouterr().err
    assert "holds none of RefCOCO_val.tsv" in error
    assert error.count("\n") == 1
