"""Pictures, cells and pixel bounds as the released evaluation treats them."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.readers import read_as
from helpers.records import make_meta
from helpers.tsv import encode, write_tsv
from PIL import Image

from ivc_jax.commands import run
from ivc_jax.commands.data import choose_tasks
from ivc_jax.commands.settings import RunConfig, SettingsError, load_config
from ivc_jax.evals.benchmarks import released
from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.evals.running.tsv import RowError
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.inputs.resize import SmartResize
from ivc_jax.reports.protocol import describe_protocol, write_pixel_bounds

LARGE, SMALL, OLD = (
    parse_config(list_sizes()[name]) for name in ("qwen2.5-vl-7b", "qwen2.5-vl-3b", "qwen2-vl-7b")
)


@pytest.mark.parametrize(
    ("config", "group", "least", "most"),
    [
        (LARGE, "grounding", 4, 16384),
        (LARGE, "general VQA", 4, 16384),
        (SMALL, "grounding", 4, 16384),
        (SMALL, "general VQA", 4, 6384),
        (SMALL, "further VQA", 4, 6384),
        (OLD, "grounding", 1280, 16384),
        (OLD, "general VQA", 1280, 16384),
    ],
)
def test_bounds_are_those_of_the_model_and_the_task(config, group, least, most):
    bounds = released.find_bounds(config, group)
    assert (bounds.min_pixels, bounds.max_pixels) == (least * 28 * 28, most * 28 * 28)


def test_the_least_area_of_qwen2_vl_triples_its_tokens():
    def count(bounds):
        area = {"min_pixels": bounds.min_pixels, "max_pixels": bounds.max_pixels}
        _, rows, columns = SmartResize(**area).find_grid(640, 480)
        return rows * columns // 4

    assert count(released.find_bounds(OLD, "grounding")) == 1302
    assert count(released.find_bounds(LARGE, "grounding")) == 391


def test_other_families_keep_the_bounds_of_the_checkpoint():
    assert released.find_bounds(dataclasses.replace(LARGE, family="llava"), "grounding") is None


@pytest.mark.parametrize(
    ("task", "most"),
    [("RefCOCO_testA", 6), ("ChartQA_TEST", 12), ("DocVQA_VAL", 18), ("OCRBench", 24)],
)
def test_tiles_of_internvl_are_those_of_the_task(task, most):
    config = dataclasses.replace(LARGE, family="internvl")
    assert released.find_bounds(config, "", task) == released.Bounds(max_tiles=most)


def test_options_vanish_as_pandas_reads_them():
    cells = {letter: letter.lower() for letter in "ABCDEFGHIJ"}
    cells |= {"A": "None", "B": "NA", "C": "N/A", "D": "n/a", "E": "null", "F": "nan", "G": "#N/A"}
    # pandas cuts no blanks off, and minds case
    cells |= {"H": " None", "I": "none", "hint": "NULL", "question": "None", "answer": "NA"}
    found = released.drop_missing(cells)
    assert [name for name in cells if not found[name]] == [*"ABCDEFG", "hint"]
    assert {name: found[name] for name in ("H", "I", "J", "question", "answer")} == {
        **{"H": " None", "I": "none", "J": "j"},
        **{"question": "None", "answer": "NA"},
    }


def noise(mode, size=(24, 16)):
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L"])
def test_pictures_are_saved_as_jpeg_without_alpha(tmp_path, mode):
    picture = noise(mode)
    opaque = picture if mode in ("RGB", "L") else picture.convert("RGB")
    opaque.save(tmp_path / "expected.jpg", quality=75)
    found = released.save_as_jpeg(picture)
    with Image.open(tmp_path / "expected.jpg") as expected:
        assert found.mode == expected.mode
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert (np.asarray(found) != np.asarray(opaque)).any()


def test_invisible_pixels_show_their_colour():
    found = released.save_as_jpeg(Image.new("RGBA", (16, 16), (200, 30, 30, 0)))
    assert np.abs(np.asarray(found).astype(int) - [200, 30, 30]).max() <= 2  # no white


HEADER = ["index", "image", "image_path", "question", "answer", "A", "B", "C"]


def make_entry(folder, picture, named=False, answer="A", **fields):
    picture.save(folder / "picture.png")
    image = "" if named else encode(picture)
    row = ["1", image, "picture.png", "What?", answer, "red", "None", "blue"]
    path = write_tsv(folder / "MMStar.tsv", HEADER, [row])
    return dataclasses.replace(TaskEntry.open(TASKS["MMStar"], path), **fields)


def test_rows_are_read_by_the_protocol(tmp_path):
    picture = noise("RGB")
    own = make_entry(tmp_path, picture).read(0)
    assert own.cells["B"] == "None"
    np.testing.assert_array_equal(np.asarray(own.images[0]), np.asarray(picture))
    row = make_entry(tmp_path, picture, released=True).read(0)
    assert "\nA. red\nC. blue\n" in TASKS["MMStar"].prompt(row.cells, "qwen2_vl")
    assert row.images[0].format == "JPEG"
    # a file that a path names is read as it is
    row = make_entry(tmp_path, picture, named=True, released=True).read(0)
    np.testing.assert_array_equal(np.asarray(row.images[0]), np.asarray(picture))


def test_a_question_whose_right_option_vanishes_is_lost(tmp_path):
    scoring, reader = TASKS["MMStar"].scoring, read_as("qwen2_vl")
    for fields, score in (({}, 1), ({"released": True}, 0)):
        row = make_entry(tmp_path, noise("RGB"), answer="B", **fields).read(0)
        parsed = scoring.parse("B", row.cells, reader)
        assert scoring.score(parsed, row.cells, reader) == score


def test_what_jpeg_cannot_hold_fails_the_row(tmp_path):
    picture = Image.fromarray(np.full((16, 16), 40000, np.uint16))
    assert make_entry(tmp_path, picture).read(0).images
    with pytest.raises(RowError, match=r"row 1 .*cannot save it as JPEG"):
        make_entry(tmp_path, picture, released=True).read(0)


def test_the_released_protocol_asks_with_the_released_prompts():
    settings = RunConfig(methods=("dense",), tasks=("RefCOCO_val",))
    cells = {"question": "The man"}
    for protocol, asked in (("own", "the man"), ("released", "the ma")):
        (task,) = choose_tasks(dataclasses.replace(settings, protocol=protocol), print)
        assert f"Detect {asked}<" in task.prompt(cells, "qwen2_vl")
    with pytest.raises(SettingsError, match="unknown protocol 'theirs'; known: own, released"):
        dataclasses.replace(settings, protocol="theirs")
    assert load_config("paper").protocol == "released"
    assert load_config("default").protocol == "own"


def test_reports_say_what_was_done():
    bounds = {"MMStar": [3136, 5005056], "MME": [3136, 5005056], "RefCOCO_val": [3136, 12845056]}
    meta = make_meta(tasks=["MMStar", "MME", "RefCOCO_val"], pixel_bounds=bounds)
    assert write_pixel_bounds(meta) == (
        "3,136 to 5,005,056 (MMStar, MME); 3,136 to 12,845,056 (RefCOCO_val)"
    )
    assert "read as the files hold them" in describe_protocol(meta)
    assert "`--protocol released`" in describe_protocol(meta)
    meta = dataclasses.replace(meta, protocol="released", pixel_bounds={"MME": [1, 1000]})
    assert "as in the released evaluation" in describe_protocol(meta)
    assert describe_protocol(meta).endswith("A resized picture has 1 to 1,000 pixels.")
    assert describe_protocol(make_meta(tasks=["DigitScenes_grounding"])) == ""


def test_bounds_and_protocol_make_a_run_another_one(tiny_hf, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ivc_jax.reports.figures.draw", lambda results: [])
    make_entry(tmp_path, noise("RGB"))
    options = ["--model", tiny_hf(family="qwen2_5_vl", num_hidden_layers=2), "--tasks", "MMStar"]
    options += ["--data-dir", tmp_path, "--out", tmp_path / "out", "--methods", "dense"]
    options += ["--max-new-tokens", 1, "--batch-size", 1, "--no-compile-cache"]

    def answer(*more):
        code = run.main([*map(str, options), *more])
        if code:
            return capsys.readouterr().err
        meta = json.loads((tmp_path / "out" / "results.json").read_text())["meta"]
        line = (tmp_path / "out" / "records" / "MMStar.jsonl").read_text().splitlines()[-1]
        return meta["protocol"], meta["pixel_bounds"], json.loads(line)["visual_tokens"]

    # 24 x 16 pixels in cells of 8 x 8; 3136 pixels grow them to 72 x 48
    assert answer("--protocol", "released") == ("released", {"MMStar": [3136, 12845056]}, 9 * 6)
    assert "released evaluation" in (tmp_path / "out" / "report.md").read_text()
    assert "protocol" in answer()
    bounds = ("--min-pixels", "64", "--max-pixels", "192")
    assert answer("--no-resume", *bounds) == ("own", {"MMStar": [64, 192]}, 2)
    assert "max pixels" in answer("--min-pixels", "64", "--max-pixels", "384")
    assert answer("--no-resume", "--protocol", "released", *bounds)[1] == {"MMStar": [64, 192]}
    assert "min_pixels 300 must be in 1..max_pixels = 200" in answer(
        "--no-resume", "--min-pixels", "300", "--max-pixels", "200"
    )
