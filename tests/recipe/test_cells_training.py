"""The recipe of cells goes on after a kill, lesson by lesson, and ends with a checkpoint."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import ivc_jax
from digit_cells import answering, export, growing, questions, tokenizer, train
from digit_cells.setting import SETTINGS, Lesson

SETTING = dataclasses.replace(
    SETTINGS["sections"],
    grid=3,
    layers=1,
    rows=2,
    steps_tower=2,
    steps=3,
    lessons=(Lesson(2, (1, 2), 3),),
)


class Killed(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module", autouse=True)
def few_cells():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_CELLS", {"train": (60, 20), "test": (30, 10)})
        patch.setattr(answering, "_TESTS", 1)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    return tmp_path_factory.mktemp("runs") / "small"


@pytest.fixture(scope="module")
def small(run):
    """What the run came to."""
    return train.train(SETTING, run, seed=5)


def test_a_killed_run_ends_as_an_undisturbed_one(small, run, tmp_path, monkeypatch):
    whole = small
    assert all((run / stage / "3").exists() for stage in ("decoder-2", "decoder"))
    make = answering.make_stage

    def die_before_the_last(setting, *given):
        if given[4].side == setting.grid:
            raise Killed
        return make(setting, *given)

    monkeypatch.setattr(answering, "make_stage", die_before_the_last)
    with pytest.raises(Killed):
        train.train(SETTING, tmp_path / "cut", seed=5)
    assert not (tmp_path / "cut" / "decoder").exists()
    seen = []
    monkeypatch.setattr(
        answering, "make_stage", lambda *given: seen.append(given[5]) or make(*given)
    )
    resumed = train.train(SETTING, tmp_path / "cut", seed=5)
    assert seen == list(SETTING.course)
    jax.tree.map(np.testing.assert_array_equal, resumed["decoder"], whole["decoder"])
    jax.tree.map(np.testing.assert_array_equal, resumed["vision"], whole["vision"])
    export.write(SETTING, whole, tmp_path / "hf")
    model, processor = ivc_jax.load(tmp_path / "hf", dtype="float32")
    blank = np.zeros((48, 48, 3), np.uint8)
    batch = processor(prompts=["How many digits?"], images=[[blank]])
    assert ivc_jax.prefill(model, batch).logits.shape[0] == 1


def test_a_grown_model_answers_about_its_first_corner_as_before(small, tmp_path):
    larger = dataclasses.replace(SETTING, name="larger", grid=4, layers=2, start=SETTING)
    words = tokenizer.build(larger.grid)
    drawn = answering.init_decoder(train.make_config(larger), jax.random.key(1))
    grown = {**small, "decoder": growing.grow(larger, small["decoder"], drawn, words)}
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for setting, params in ((SETTING, small), (larger, grown)):
        export.write(setting, params, tmp_path / setting.name)
    logits = {}
    for setting in (SETTING, larger):
        model, processor = ivc_jax.load(tmp_path / setting.name, dtype="float32", min_pixels=256)
        shown = pixels[: 16 * SETTING.grid, : 16 * SETTING.grid]
        box = questions.write_box((1, 2), setting.grid)
        batch = processor(prompts=[f"Digit in {box}?"], images=[[shown]])
        found = np.asarray(ivc_jax.prefill(model, batch).logits)[0]
        words = tokenizer.build(setting.grid).get_vocab()
        corners = [f"({questions.to_word(border, setting.grid)}" for border in range(3)]
        logits[setting.name] = found[
            [words[w] for w in ("7", "red", "Yes", *corners) if w in words]
        ]
    np.testing.assert_allclose(logits["larger"], logits["sections"], atol=1e-5)
    assert np.ptp(logits["larger"]) > 0.01


def test_a_larger_setting_goes_on_from_the_run_of_a_smaller_one(small, run, tmp_path):
    larger = dataclasses.replace(SETTING, name="larger", grid=4, layers=2, steps=2, start=SETTING)
    assert [lesson.side for lesson in larger.course] == [4]
    shutil.copytree(run, tmp_path / "larger" / "start")  # where it is looked for
    grown = train.train(larger, tmp_path / "larger", seed=5)
    jax.tree.map(np.testing.assert_array_equal, grown["vision"], small["vision"])
    assert not (tmp_path / "larger" / "tower").exists()
    with pytest.raises(ValueError, match="holds another run"):
        train.train(larger, tmp_path / "other", seed=6, start=run)


def test_words_of_grids_are_paired_by_border():
    small, large = tokenizer.build(12), tokenizer.build(16)
    pairs = dict(np.array(growing.pair_words(small, 12, large, 16)).T.tolist())
    same = lambda new, old: pairs[large.token_to_id(new)] == small.token_to_id(old)  # noqa: E731
    assert same(",(125", ",(167")  # border 2
    assert same(",750)", ",1000)")  # border 12
    assert same("(0", "(0")
    assert same("7", "7")
    for stranger in (",(938", ",1000)"):  # borders 15 and 16
        assert large.token_to_id(stranger) not in pairs


def test_a_model_grows_from_one_of_its_own_kind():
    with pytest.raises(ValueError, match="must be smaller, else the same"):
        dataclasses.replace(SETTING, grid=4, theta=50.0, start=SETTING)


def test_the_command_writes_a_checkpoint_and_its_card(tmp_path, monkeypatch):
    monkeypatch.setitem(train.SETTINGS, SETTING.name, SETTING)
    train.main(["--out", str(tmp_path), "--setting", SETTING.name, "--seed", "4"])
    text = (tmp_path / "hf" / "README.md").read_text()
    assert "# Scenes of cells, a very small Qwen2.5-VL" in text
    assert "--setting sections --seed 4` from nothing" in text
    last = (tmp_path / "hf" / "training_log.jsonl").read_text().splitlines()[-1]
    for task, share in list(json.loads(last).items())[4:]:
        assert f"| {task} | {100 * share:.1f} |" in text
    for stage, steps in (("tower", 2), ("decoder-2", 3), ("decoder", 3)):
        assert f"| {stage} | {steps} | 0 |" in text
    assert "9 visual tokens for a picture of 48 x 48 pixels" in " ".join(text.split())
