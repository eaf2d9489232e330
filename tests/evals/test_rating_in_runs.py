"""Runs rate frames by the model itself where a method asks, and never while an answer is timed."""

import threading

import jax
import numpy as np
import pytest
from helpers.tsv import IMAGE, write_tsv

import ivc_jax
from ivc_jax.commands import run
from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running import answerer as running
from ivc_jax.inputs.bucket import Buckets, choose_shape
from ivc_jax.inputs.layout import arrange

FRAMES = [np.full((56, 56, 3), value, np.uint8) for value in (0, 99)]


def ask(frames):
    content = [{"type": "image", "image": frame} for frame in frames]
    return [{"role": "user", "content": [*content, {"type": "text", "text": "When?"}]}]


@pytest.fixture
def answerer(tiny_hf):
    model, processor = ivc_jax.load(tiny_hf(family="qwen2_vl"), dtype="float32")
    return running.ModelAnswerer(model, processor, rates_frames=True)


@pytest.fixture
def rated(monkeypatch):
    """The keyword arguments of every call for ratings, which are 0.25 and 0.5."""
    calls = []

    def rate(scorer, processor, prompts, **options):
        calls.append({"scorer": scorer, "prompts": prompts, **options})
        return [[0.25, 0.5]]

    monkeypatch.setattr(running, "rate_frames", rate)
    return calls


def test_a_sample_is_rated_by_the_model_that_answers(answerer, rated):
    sample = answerer.process(ask(FRAMES))
    assert [each.tolist() for each in sample.relevance] == [[0.25, 0.5]]
    (call,) = rated
    assert call["scorer"] == call["decoupler"] == (answerer.model, answerer.processor)


def test_shards_of_a_batch_have_one_form(answerer, rated):
    """One of them may hold nothing but what stands in for rows that are missing."""
    sample = answerer.process(ask(FRAMES))
    shape = choose_shape(arrange(sample, answerer.model.config), answerer.model.config, Buckets())
    full, empty = answerer.collate([sample], shape), answerer.collate([None], shape)
    assert jax.tree.structure(full) == jax.tree.structure(empty)
    assert not empty.relevance.any()
    assert set(full.relevance[0].tolist()) == {0, 0.25, 0.5}


def test_nothing_is_rated_while_an_answer_is_timed(answerer, rated, monkeypatch):
    sample, timed = answerer.process(ask(FRAMES)), answerer._run
    shape = choose_shape(arrange(sample, answerer.model.config), answerer.model.config, Buckets())
    device, loader = answerer.place({0: answerer.collate([sample], shape)}), []

    def time(*arguments):
        loader.append(threading.Thread(target=answerer.process, args=[ask(FRAMES)]))
        loader[0].start()
        found = timed(*arguments)
        assert len(rated) == 1  # the one above
        return found

    monkeypatch.setattr(answerer, "_run", time)
    answerer.answer(device, ivc_jax.methods.parse("dense"), 1)
    loader[0].join()
    assert len(rated) == 2


@pytest.mark.parametrize(
    ("spec", "asks"),
    [("quota:keep_ratio=0.5", True), ("quota:keep_ratio=0.5,scores=cosine", False)],
)
def test_a_run_rates_frames_where_a_method_asks(tiny_hf, tmp_path, rated, spec, asks):
    task = TASKS["DigitScenes_colour"]
    rows = [["0", f"['{IMAGE}', '{IMAGE}']", "Which?", "red"]]
    write_tsv(tmp_path / task.file_name, ["index", "image", "question", "answer"], rows)
    options = ["--model", str(tiny_hf(family="qwen2_vl")), "--tasks", task.name, "--methods", spec]
    options += ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--no-compile-cache"]
    assert run.main([*options, "--max-new-tokens", "1", "--batch-size", "1"]) == 0
    assert bool(rated) == asks
