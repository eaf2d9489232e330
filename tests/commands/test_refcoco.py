"""RefCOCO files made from annotations and pictures, in both frames, down to a score."""

import base64
import csv
import json

import numpy as np
import pytest
from helpers.readers import read_as
from PIL import Image

from ivc_jax.commands import refcoco
from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running.tsv import TsvFile

SIZES = {"a.jpg": (42, 70), "b.jpg": (56, 28), "c.jpg": (100, 50)}  # width, height
ENTRIES = [
    ("a.jpg", "the cup", [1, 2, 20.5, 30.25]),
    ("b.jpg", 'a\tcat, "big"\none', [0.5, 1.5, 2, 3]),
    ("a.jpg", "the other cup", [0, 0, 42, 70]),
    ("gone.jpg", "nothing", [0, 0, 1, 1]),
    ("c.jpg", "no box", None),
]


@pytest.fixture
def folders(tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, (width, height) in SIZES.items():
        pixels = draw.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    content = {"images": [], "annotations": []}
    for number, (name, caption, box) in enumerate(ENTRIES, 10):
        width, height = SIZES.get(name, (9, 9))
        entry = {"id": number, "file_name": name, "caption": caption}
        content["images"].append(entry | {"width": width, "height": height})
        if box is not None:
            content["annotations"].append({"image_id": number, "bbox": box})
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "finetune_refcoco+_testA.json").write_text(json.dumps(content))
    return tmp_path


def make(folder, *options):
    paths = {"annotations": folder / "json", "images": folder / "images", "out": folder / "out"}
    given = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    return refcoco.main([*given, *options])


def rows(path):
    csv.field_size_limit(1 << 28)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_original_frame(folders, capsys):
    assert make(folders) == 0
    path = folders / "out" / "RefCOCO+_testA.tsv"
    found = rows(path)
    assert list(found[0]) == ["index", "image", "question", "height", "width", "answer"]
    assert [row["index"] for row in found] == ["10", "11", "12"]
    assert [row["question"] for row in found] == [caption for _, caption, _ in ENTRIES[:3]]
    assert [row["answer"] for row in found] == [
        "1 2 21.5 32.25",  # x, y, 1 + 20.5, 2 + 30.25
        "0.5 1.5 2.5 4.5",
        "0 0 42 70",
    ]
    assert [(row["width"], row["height"]) for row in found] == [
        ("42", "70"), ("56", "28"), ("42", "70"),
    ]  # fmt: skip
    picture = (folders / "images" / "a.jpg").read_bytes()
    assert base64.b64decode(found[0]["image"]) == picture  # not encoded again
    shown = capsys.readouterr().out
    assert "3 rows; left out: 1 without picture, 1 without box" in shown
    assert "has 3 rows, usually 5726" in shown
    assert sorted(item.name for item in path.parent.iterdir()) == [path.name]  # no draft


def test_resized_frame(folders):
    assert make(folders, "--qwen25", "--splits", "refcoco+_testa") == 0
    found = rows(folders / "out" / "RefCOCO+_testA_for_qwen25vl.tsv")
    assert [row["answer"] for row in found] == [
        # 42 x 70: 42 / 28 = 1.5 and 70 / 28 = 2.5 both go to 2, so that the frame is 56 x 56;
        # x times 4/3: 1.33, 28.67; y times 0.8: 1.6, 25.8
        "1 2 29 26",
        # 56 x 28 grows to 84 x 56, the least area: x times 1.5, y times 2
        "1 3 4 9",
        "0 0 56 56",
    ]
    assert (found[0]["width"], found[0]["height"]) == ("42", "70")  # of the picture itself


def test_other_bounds_are_named_in_the_file(folders):
    assert make(folders, "--qwen25", "--max-pixels", str(28 * 28 * 2), "--min-pixels", "784") == 0
    path = folders / "out" / "RefCOCO+_testA_for_qwen25vl.tsv"
    found = rows(path)
    # 42 x 70 shrinks to 2 cells: by the root of 2940 / 1568, to 30.7 x 51.1, so 1 x 1 cell
    assert [(row["frame_width"], row["frame_height"]) for row in found] == [
        ("28", "28"), ("56", "28"), ("28", "28"),
    ]  # fmt: skip
    assert found[0]["answer"] == "1 1 14 13"  # x times 2/3, y times 0.4
    task = TASKS["RefCOCO+_testA_for_qwen25vl"]
    file = TsvFile(path, task.scoring.columns)
    row, reader = file.read(0), read_as("qwen2_5_vl")  # which sees 56 x 56
    parsed = task.scoring.parse('{"bbox_2d": [1, 2, 29, 26]}', row.cells, reader)
    assert task.scoring.score(parsed, row.cells, reader) == 1
    file.close()


@pytest.mark.parametrize(("options", "suffix"), [((), ""), (("--qwen25",), "_for_qwen25vl")])
def test_files_can_be_scored(folders, options, suffix):
    assert make(folders, *options) == 0
    task = TASKS[f"RefCOCO+_testA{suffix}"]
    file = TsvFile(folders / "out" / task.file_name, task.scoring.columns)
    row = file.read(0)
    assert row.images[0].size == SIZES["a.jpg"]
    for box, hit in (("[1, 2, 29, 26]", 1), ("[40, 40, 56, 56]", 0)):
        text = '{"bbox_2d": ' + box + "}"
        parsed = task.scoring.parse(text, row.cells, read_as("qwen2_5_vl"))
        assert task.scoring.score(parsed, row.cells, read_as("qwen2_5_vl")) == hit
    file.close()


def test_every_set_has_its_annotations():
    assert refcoco.name_annotations("RefCOCO_testA") == "finetune_refcoco_testA.json"
    assert refcoco.name_annotations("RefCOCO+_val") == "finetune_refcoco+_val.json"
    assert refcoco.name_annotations("RefCOCOg_test") == "finetune_refcocog_test.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--splits", "RefCOCO_train"], "unknown split 'RefCOCO_train'; known: RefCOCO_val"),
        (["--splits", "RefCOCO_val"], "lacks finetune_refcoco_val.json"),
        (["--images", "nowhere"], "--images nowhere is not a folder"),
        (["--max-pixels", "784"], "bound the resized images of --qwen25"),
        (["--qwen25", "--max-pixels", "784"], "min_pixels 3136 must be in 1..max_pixels = 784"),
    ],
)
def test_bad_options_are_one_line(folders, capsys, options, message):
    assert make(folders, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "finetune_refcoco+_testA.json is no annotation file of COCO"),
        ('{"images": []}', "the field 'annotations' is missing"),
        ('{"images": [{"id": 1}], "annotations": []}', "images entry 1: the field 'width'"),
        ('{"images": [], "annotations": []}', "no row of"),
    ],
)
def test_bad_annotations_leave_no_file(folders, capsys, content, message):
    (folders / "json" / "finetune_refcoco+_testA.json").write_text(content)
    assert make(folders) == 2
    assert message in capsys.readouterr().err
    assert list((folders / "out").iterdir()) == []


def test_a_wrong_picture_folder_is_an_error(folders, capsys):
    assert make(folders, "--images", str(folders / "json")) == 2
    assert "5 of 5 pictures are not in" in capsys.readouterr().err
    assert list((folders / "out").iterdir()) == []


def test_an_earlier_file_survives_a_failure(folders):
    assert make(folders) == 0
    path = folders / "out" / "RefCOCO+_testA.tsv"
    before = path.read_bytes()
    (folders / "json" / "finetune_refcoco+_testA.json").write_text("{")
    assert make(folders) == 2
    assert path.read_bytes() == before
