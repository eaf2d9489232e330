"""The recipe of cells goes on after a kill, lesson by lesson, and ends with a checkpoint."""

import dataclasses

import jax
import numpy as np
import pytest

import ivc_jax
from digit_cells import answering, export, train
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


@pytest.fixture(autouse=True)
def few_cells(monkeypatch):
    monkeypatch.setattr(train, "_CELLS", {"train": (60, 20), "test": (30, 10)})
    monkeypatch.setattr(answering, "_TESTS", 1)


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    whole = train.train(SETTING, tmp_path / "whole", seed=5)
    stages = ("tower", "decoder-2", "decoder")
    assert all((tmp_path / "whole" / stage / "3").exists() for stage in stages[1:])
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
