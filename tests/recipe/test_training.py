"""The recipe goes on after a kill, lesson by lesson, and ends with a checkpoint."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import ivc_jax
from digit_scenes import answering, export, queue, train
from digit_scenes.setting import SETTINGS, Lesson

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


def test_the_queue_goes_on_with_what_a_model_lacks(tmp_path):
    runs, records = tmp_path / "runs", tmp_path / "records"
    train_it, measure, maps = queue.list_commands(runs, records, "bundled", 1)
    assert train_it[:2] == ["-m", "digit_scenes.train"]
    assert {f"--out={runs / 'bundled-1'}", "--setting=bundled", "--seed=1"} == set(train_it[2:])
    (runs / "bundled-1" / "hf").mkdir(parents=True)
    assert [*queue.list_commands(runs, records, "bundled", 1)] == [measure, maps]
    assert measure[-1] == maps[-1] == "--grid=16"
    assert measure[3] == str(records / "bundled-1" / "answers.json")
    assert not [*queue.list_commands(runs, None, "bundled", 1)]


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
