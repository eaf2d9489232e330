"""Digit scenes: reproducible, answers right by construction, packing that changes nothing."""

import collections
import dataclasses
import hashlib
import re

import jax
import numpy as np
import pytest
from helpers.asked import check_contents, check_packed

from digit_scenes import answering, digits, files, packing, questions, scenes
from digit_scenes import tokenizer as words
from digit_scenes.packed import compute_answer_logits
from digit_scenes.questions import ask
from digit_scenes.setting import SETTINGS, Setting
from ivc_jax.nn import decoder

GRID = 4
TINY = {
    kind: dataclasses.replace(SETTINGS[kind], grid=GRID, layers=2)
    for kind in ("sections", "interleaved", "line")
}


@pytest.fixture(scope="module")
def tokenizer():
    return words.build(GRID)


@pytest.fixture(scope="module")
def drawn():
    random = np.random.default_rng(3)
    return [scenes.render(random, digits.load("test"), 3 + i % 7, GRID) for i in range(30)]


def test_scene_bytes_follow_from_seed():
    scene, pixels = scenes.render(np.random.default_rng(0), digits.load("test"), 5, 16)
    assert pixels.shape == (256, 256, 3)
    assert pixels.dtype == np.uint8
    assert len(scene.digits) == 5
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "ea7737ca01533b5b"


def test_digit_splits_are_disjoint_and_complete():
    train, test = digits.load("train"), digits.load("test")
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert not set(train.source) & set(test.source)
    assert set(test.labels) == set(range(10))
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        digits.load("valid")


def test_digits_lie_inside_cells_of_their_own(drawn):
    for scene, _ in drawn:
        held = [digit.cell for digit in scene.digits]
        assert len(set(held)) == len(held)
        for digit, (row, column) in zip(scene.digits, held, strict=True):
            x1, y1, x2, y2 = digit.box
            assert 12 <= min(x2 - x1, y2 - y1) <= max(x2 - x1, y2 - y1) <= 16
            assert 16 * column <= x1 < x2 <= 16 * (column + 1)
            assert 16 * row <= y1 < y2 <= 16 * (row + 1)


def test_every_cell_is_as_likely():
    random = np.random.default_rng(1)
    cells = scenes.draw_cells(random, digits.load("train"), 40, 20)
    held = collections.Counter()
    for _ in range(4000):
        scene, picks = scenes.arrange(random, cells, 4, GRID)
        assert (cells.label[picks] != scenes.GROUND).sum() == 4
        held.update(digit.cell for digit in scene.digits)
    # 1000 times each, standard deviation 27
    assert set(held) == {(row, column) for row in range(GRID) for column in range(GRID)}
    assert max(abs(count - 1000) for count in held.values()) < 110


def test_arranged_digits_are_what_their_cells_hold():
    random = np.random.default_rng(2)
    cells = scenes.draw_cells(random, digits.load("train"), 10, 10)
    scene, picks = scenes.arrange(random, cells, 6, GRID)
    for digit in scene.digits:
        row, column = digit.cell
        pick = picks[row * GRID + column]
        assert (digit.label, digit.colour) == (cells.label[pick], cells.colour[pick])
        x, y = 16 * column, 16 * row
        assert digit.box == tuple(cells.box[pick] + [x, y, x, y])
    joined = scenes.join(cells.pixels[picks], GRID)
    np.testing.assert_array_equal(joined[16:32, 48:64], cells.pixels[picks[7]])


def test_coordinates_are_borders_of_cells():
    assert [questions.to_word(i, 16) for i in (0, 1, 3, 8, 16)] == [0, 63, 188, 500, 1000]
    assert questions.write_box((1, 15), 16) == "(938,63),(1000,125)"  # row 1, column 15


def test_answers_are_right(drawn):
    random = np.random.default_rng(5)
    for scene, _ in drawn:
        by_name = {digit.name: digit for digit in scene.digits}
        count = collections.Counter(digit.name for digit in scene.digits)

        q = ask(random, scene, "grounding")
        name = q.text.removeprefix("Locate the ")[:-1]
        assert count[name] == 1
        assert by_name[name].box == q.box
        corners = np.array(eval(f"({q.answer})")).reshape(4) * scene.size / 1000
        assert np.abs(corners - q.box).max() <= 4 + 0.5  # whole cells; the digit fills 12 of 16
        x1, y1, x2, y2 = q.box
        assert (x2 - x1) * (y2 - y1) / 256 > 0.5  # so that a right cell is a right box

        q = ask(random, scene, "reading")
        (held,) = [d for d in scene.digits if questions.write_box(d.cell, GRID) in q.text]
        assert q.answer == str(held.label)

        check_contents(random, scene)


def test_relations_compare_rows_and_columns(drawn):
    random = np.random.default_rng(6)
    answers = collections.Counter()
    for scene, _ in drawn * 3:
        q = ask(random, scene, "relations")
        if q is None:
            continue
        by_name = {digit.name: digit for digit in scene.digits}
        first, second = (by_name[name] for name in re.findall(r"\w+ \d", q.text))
        (y1, x1), (y2, x2) = first.cell, second.cell
        truth = {"left": x1 < x2, "right": x1 > x2, "above": y1 < y2, "below": y1 > y2}
        (way,) = [w for w in truth if f" {w} " in q.text]
        assert q.answer == ("Yes" if truth[way] else "No")
        answers[q.answer] += 1
    assert min(answers.values()) > 25


def test_ambiguous_digits_are_never_named():
    twins = [scenes.Digit(7, 0, (at, at, at + 16, at + 16)) for at in (0, 16)]
    lone = scenes.Digit(3, 1, (0, 32, 16, 48))
    scene, random = scenes.Scene(GRID, (*twins, lone)), np.random.default_rng(0)
    for _ in range(20):
        assert questions.ask_grounding(random, scene).text == "Locate the orange 3."
        assert ask(random, scene, "relations") is None


def test_every_word_is_one_token_and_lengths_hold():
    random = np.random.default_rng(1)
    for grid in (4, 12, 16):
        tokenizer = words.build(grid)
        for count in (3, 6, 9):
            scene, _ = scenes.render(random, digits.load("test"), count, grid)
            for task, (asked, answered) in questions.LENGTHS.items():
                q = ask(random, scene, task)
                if q is not None:
                    assert len(tokenizer.encode(q.text.rstrip(".?")).ids) == asked
                    assert len(tokenizer.encode(q.answer).ids) == answered
                    assert tokenizer.decode(tokenizer.encode(q.text).ids) == q.text


@pytest.mark.parametrize("kind", TINY)
def test_packed_questions_equal_single_ones(kind, tokenizer, drawn):
    setting = TINY[kind]
    ids = words.find_special_ids(tokenizer)
    config = files.read_config(setting, ids, tokenizer.get_vocab_size())
    asked = ("grounding", "existence", "reading", "counting", "counting")
    plan = packing.Plan(asked, GRID, kind == "line")
    random = np.random.default_rng(2)
    scene = next(scene for scene, _ in drawn if len(scene.digits) == 9)
    asked = [[ask(random, scene, task) for task in plan.tasks]]
    batch = packing.Encoder(tokenizer, plan)(asked)
    params = jax.jit(lambda key: decoder.init_params(config, key)["decoder"])(jax.random.key(0))
    visual = jax.random.normal(jax.random.key(1), (1, GRID**2, setting.width))
    packed = jax.jit(
        lambda params: compute_answer_logits(config.decoder, params, plan, batch["tokens"], visual)
    )(params)
    check_packed(packed, config.decoder, params, plan, batch, visual)


def test_plan_mask_shows_a_question_the_picture_and_itself():
    plan = packing.Plan(("counting", "counting"), 2)  # a picture of 6 slots, 4 a question
    mask = plan.mask[0, 0]
    assert mask.shape == (14, 14)
    np.testing.assert_array_equal(np.flatnonzero(mask[12]), [*range(6), 10, 11, 12])
    np.testing.assert_array_equal(np.flatnonzero(mask[3]), range(4))


@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_corner_is_numbered_as_in_the_whole_picture(kind):
    whole = answering.lay_out(TINY[kind])
    corner = answering.lay_out(TINY[kind], 2)
    assert (whole.grid, corner.grid, corner.picture) == (GRID, 2, 6)
    shown = [1 + row * GRID + column for row in range(2) for column in range(2)]
    np.testing.assert_array_equal(corner.positions[:, 1:5], whole.positions[:, shown])
    # the mark behind the picture, and all questions
    behind = whole.positions[:, whole.picture - 1 :]
    np.testing.assert_array_equal(corner.positions[:, corner.picture - 1 :], behind)


def test_lessons_end_with_whole_pictures():
    setting = dataclasses.replace(SETTINGS["sections"], grid=6, steps=9)
    assert [(lesson.side, lesson.digits) for lesson in setting.course] == [
        (2, (2, 3)),
        (3, (2, 4)),
        (4, (2, 6)),
        (6, (3, 9)),
    ]
    assert setting.course[-1].steps == 9


def test_digits_of_a_corner_lie_in_it():
    random = np.random.default_rng(6)
    cells = scenes.draw_cells(random, digits.load("train"), 30, 10)
    scene, picks = scenes.arrange(random, cells, 4, GRID, side=2)
    assert (scene.grid, len(picks)) == (GRID, 4)
    assert sorted(digit.cell for digit in scene.digits) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_loss_is_over_answers_alone(tokenizer, drawn):
    setting = TINY["sections"]
    plan = answering.lay_out(setting)
    random = np.random.default_rng(2)
    asked = [packing.draw(random, drawn[6][0], plan)]
    asked[0][0] = None  # a question that the scene does not allow
    batch = packing.Encoder(tokenizer, plan)(asked)
    learnt = batch["answers"][0] >= 0
    assert not learnt[:5].any()
    assert learnt[5:10].all()
    answer = batch["answers"][0][5:10]
    assert tokenizer.decode(answer[:-1].tolist()) == asked[0][1].answer
    np.testing.assert_array_equal(batch["tokens"][0, plan.answer_index[5:10] + 1][:-1], answer[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "spiral"}, "kind=spiral must be one of sections, interleaved, line"),
        ({"sections": (6, 9, 8)}, r"sections=\(6, 9, 8\) must be planes that sum to 24"),
        ({"kind": "line"}, r"sections=\(6, 9, 9\) must be none for a line"),
        ({"digits": (3, 10)}, r"digits=\(3, 10\) must be ascending, from 1 to 9"),
        ({"grid": 2}, r"digits=\(3, 9\) must be ascending, from 1 to 9, and no more than cells"),
        ({"heads": 5}, "width=192 must be heads=5 times even"),
    ],
)
def test_settings_name_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        Setting(**{**dataclasses.asdict(SETTINGS["sections"]), **change})
