"""The bundled benchmark as TSV files: reproducible, and in the format of real ones."""

import base64
import collections
import csv
import io

import numpy as np
import pytest
from PIL import Image

from digit_scenes import digits, questions, scenes, tsv
from digit_scenes.questions import NEGATIVES


def read(path):
    csv.field_size_limit(1 << 24)
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_tsv_rows(tmp_path):
    first = tsv.write(tmp_path / "a", num_scenes=7, seeds=(4,), grid=4)
    again = tsv.write(tmp_path / "b", num_scenes=7, seeds=(4,), grid=4)
    assert [p.name for p in first] == [f"DigitScenes_{task}.tsv" for task in questions.TASKS]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    for path in first:
        rows = read(path)
        assert [int(row["index"]) for row in rows] == list(range(len(rows)))
        for row in rows:
            image = row["image"]
            if len(image) <= 64:
                image = rows[int(image)]["image"]
            picture = Image.open(io.BytesIO(base64.b64decode(image)))
            assert picture.size == (64, 64)
            assert picture.mode == "RGB"
        random = np.random.default_rng((tsv.SPLITS["test"][1], 4, 0))
        scene, _ = scenes.render(random, digits.load("test"), 3, 4)
        boxes = [[int(x) for x in box.split()] for box in rows[0]["objects"].split(";")]
        assert boxes == [list(digit.box) for digit in scene.digits]
        if "grounding" in path.name:
            assert [int(v) for v in rows[0]["answer"].split()] in boxes
            assert (rows[0]["height"], rows[0]["width"]) == ("64", "64")
        if "existence" in path.name:
            balance = collections.Counter((row["category"], row["answer"]) for row in rows)
            assert all(balance[c, "Yes"] == balance[c, "No"] > 0 for c in NEGATIVES)


def test_seeds_take_turns(tmp_path):
    both = tsv.write(tmp_path / "both", 2, seeds=(0, 3), grid=3)
    alone = tsv.write(tmp_path / "alone", 2, seeds=(3,), grid=3)
    rows = read(both[0])
    splits = [row["split"] for row in rows]
    assert list(dict.fromkeys(splits)) == ["test-0", "test-3"]
    assert splits.index("test-3") < len(splits) - splits[::-1].index("test-0")  # interleaved
    mine = [row["question"] for row in rows if row["split"] == "test-3"]
    assert mine == [row["question"] for row in read(alone[0])]


def test_calibration_scenes_are_others(tmp_path):
    test = tsv.write(tmp_path / "test", 1, grid=3)[0].read_text()
    calibration = tsv.write(tmp_path / "other", 1, split="calibration", grid=3)[0].read_text()
    assert test.split("\t")[-1] != calibration.split("\t")[-1]
    assert "calibration-0" in calibration
    with pytest.raises(ValueError, match="unknown split 'train'; known: test, calibration"):
        tsv.write(tmp_path, split="train")
    with pytest.raises(ValueError, match="3 digits need a larger grid than 1 x 1 cells"):
        tsv.write(tmp_path, grid=1)
