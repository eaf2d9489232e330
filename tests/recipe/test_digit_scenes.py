"""Digit scenes: reproducible data, answers right by construction."""

import base64
import collections
import csv
import hashlib
import io

import numpy as np
import pytest
from helpers.asked import check_contents
from PIL import Image

from digit_scenes import digits, packing, questions, scenes, tsv
from digit_scenes import tokenizer as words


@pytest.fixture(scope="module")
def tokenizer():
    return words.build()


@pytest.fixture(scope="module")
def drawn():
    random = np.random.default_rng(3)
    source = digits.load("test")
    return [scenes.render(random, source, 3 + i % 7) for i in range(30)]


def test_scene_bytes_follow_from_seed():
    random = np.random.default_rng(0)
    scene = scenes.render(random, digits.load("test"), 5)
    crowd = scenes.render(random, digits.load("train"), 24)
    digest = hashlib.sha256(scene.pixels.tobytes() + crowd.pixels.tobytes()).hexdigest()
    assert scene.pixels.shape == (192, 192, 3)
    assert scene.pixels.dtype == np.uint8
    assert (len(scene.digits), len(crowd.digits)) == (5, 24)
    assert digest[:16] == "5cacbc81c1342401"


def test_digit_splits_are_disjoint_and_complete():
    train, test = digits.load("train"), digits.load("test")
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert not set(train.source) & set(test.source)
    assert set(test.labels) == set(range(10))
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        digits.load("valid")


def test_digits_do_not_overlap_and_stay_inside_the_frame(drawn):
    for scene in drawn:
        for number, a in enumerate(scene.digits):
            assert min(a.box) > scenes.FRAME
            assert max(a.box) < scene.size - scenes.FRAME
            for b in scene.digits[:number]:
                apart = [a.box[2] <= b.box[0], b.box[2] <= a.box[0]]
                assert any([*apart, a.box[3] <= b.box[1], b.box[3] <= a.box[1]])


def test_answers_are_right(drawn):
    random = np.random.default_rng(5)
    for scene in drawn:
        name_count = collections.Counter(d.name for d in scene.digits)
        by_name = {d.name: d for d in scene.digits}

        q = questions.ask(random, scene, "grounding")
        assert by_name[q.text[11:-1]].box == q.box
        assert name_count[q.text[11:-1]] == 1
        corners = np.array(eval(f"({q.answer})")).reshape(4)
        assert np.abs(corners * scene.size / 1000 - q.box).max() < 1

        q = questions.ask(random, scene, "reading")
        x, y = (int(v) * scene.size / 1000 for v in q.text[10:-2].split(","))
        holding = [d for d in scene.digits if d.box[0] <= x < d.box[2] and d.box[1] <= y < d.box[3]]
        assert [str(d.label) for d in holding] == [q.answer]

        check_contents(random, scene, questions.TASKS)


def test_relations_compare_middles(drawn):
    random = np.random.default_rng(6)
    answers = collections.Counter()
    for scene in drawn * 3:
        q = questions.ask(random, scene, "relations")
        if q is None:
            continue
        (first,), (second,) = q.subject, q.other
        dx, dy = (
            second[0] + second[2] - first[0] - first[2],
            second[1] + second[3] - first[1] - first[3],
        )
        truth = {"left": dx > 0, "right": dx < 0, "above": dy > 0, "below": dy < 0}
        (way,) = [w for w in truth if f" {w} " in q.text]
        assert q.answer == ("Yes" if truth[way] else "No")
        answers[q.answer] += 1
    assert min(answers.values()) > 25


def test_ambiguous_digits_are_never_named():
    twin = [scenes.Digit(7, 0, (10, 10, 40, 40)), scenes.Digit(7, 0, (100, 10, 140, 50))]
    lone = scenes.Digit(3, 1, (50, 100, 90, 140))
    scene = scenes.Scene(np.zeros((192, 192, 3), np.uint8), (*twin, lone))
    random = np.random.default_rng(0)
    for _ in range(20):
        assert questions.ask_grounding(random, scene).text == "Locate the orange 3."
        assert questions.ask_colour(random, scene).text == "What colour is the 3?"
        assert questions.ask_relations(random, scene) is None


def test_every_word_is_one_token_and_lengths_hold(tokenizer, drawn):
    random = np.random.default_rng(1)
    singles = [str(v) for v in range(0, 1001, 10)] + ["),(", "Yes", "No", *scenes.COLOUR_NAMES]
    singles += [f" {name}" for name in scenes.COLOUR_NAMES] + [f" {d}" for d in range(10)]
    assert all(len(tokenizer.encode(word).ids) == 1 for word in singles)
    assert tokenizer.get_vocab_size() < 600
    for scene in drawn:
        for task, (asked, answered) in packing.LENGTHS.items():
            q = questions.ask(random, scene, task)
            if q is not None:
                assert len(tokenizer.encode(q.text).ids) == asked <= 8
                assert len(tokenizer.encode(q.answer).ids) == answered
                assert tokenizer.decode(tokenizer.encode(q.text).ids) == q.text


def test_tsv_rows(tmp_path):
    first = tsv.write(tmp_path / "a", num_scenes=7, seeds=(4,))
    again = tsv.write(tmp_path / "b", num_scenes=7, seeds=(4,))
    assert [p.name for p in first] == [f"DigitScenes_{task}.tsv" for task in questions.TASKS]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    csv.field_size_limit(1 << 24)
    for path in first:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [int(row["index"]) for row in rows] == list(range(len(rows)))
        for row in rows:
            image = row["image"]
            if len(image) <= 64:
                image = rows[int(image)]["image"]
            picture = Image.open(io.BytesIO(base64.b64decode(image)))
            assert picture.size == (192, 192)
            assert picture.mode == "RGB"
        if "grounding" in path.name:
            box = [int(v) for v in rows[0]["answer"].split()]
            assert len(box) == 4
            assert (rows[0]["height"], rows[0]["width"]) == ("192", "192")
        if "existence" in path.name:
            balance = collections.Counter((row["category"], row["answer"]) for row in rows)
            assert set(balance) == {(c, a) for c in questions.NEGATIVES for a in ("Yes", "No")}
            assert all(balance[c, "Yes"] == balance[c, "No"] for c in questions.NEGATIVES)


def test_seeds_take_turns(tmp_path):
    both = tsv.write(tmp_path / "both", num_scenes=2, seeds=(0, 3))
    alone = tsv.write(tmp_path / "alone", num_scenes=2, seeds=(3,))
    read = lambda path: list(csv.DictReader(path.open(newline=""), delimiter="\t"))  # noqa: E731
    rows = read(both[0])
    splits = [row["split"] for row in rows]
    assert list(dict.fromkeys(splits)) == ["test-0", "test-3"]
    assert splits.index("test-3") < len(splits) - splits[::-1].index("test-0")  # interleaved
    mine = [row["question"] for row in rows if row["split"] == "test-3"]
    assert mine == [row["question"] for row in read(alone[0])]


def test_calibration_scenes_are_others(tmp_path):
    test = tsv.write(tmp_path / "test", num_scenes=1)[0].read_text()
    calibration = tsv.write(tmp_path / "other", num_scenes=1, split="calibration")[0].read_text()
    assert test.split("\t")[-1] != calibration.split("\t")[-1]
    assert "calibration-0" in calibration
    with pytest.raises(ValueError, match="unknown split 'train'; known: test, calibration"):
        tsv.write(tmp_path, split="train")
