"""Streaming: the tokens of generate, one step after the other."""

import dataclasses

import numpy as np
import pytest
from helpers.batches import BUCKET, STEPS, batch_of

import ivc_jax
from ivc_jax.inputs.bucket import collate


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(num_hidden_layers=2), dtype="float32")[0]


@pytest.fixture(scope="module")
def inputs(model):
    return collate(batch_of(0, 1, 2, 3), model.config, BUCKET)


def join(steps):
    """The valid tokens of each row."""
    tokens, valid = (np.stack([getattr(s, name) for s in steps], 1) for name in ("tokens", "valid"))
    assert not tokens[~valid].any()
    return [row[kept].tolist() for row, kept in zip(tokens, valid, strict=True)]


def answers(out):
    rows = zip(np.asarray(out.tokens), np.asarray(out.lengths), strict=True)
    return [row[:length].tolist() for row, length in rows]


@pytest.mark.parametrize("spec", ["dense", "ivc:layer=1,keep_ratio=0.5"])
def test_steps_are_the_tokens_of_generate(model, inputs, spec):
    free = ivc_jax.generate(model, inputs, spec, STEPS, ())
    steps = list(ivc_jax.stream(model, inputs, spec, STEPS, ()))
    assert len(steps) == STEPS
    assert join(steps) == answers(free)
    assert not any(step.done.any() for step in steps)
    # The model's own end tokens, one for each row: the stream ends with its longest answer.
    ending = dataclasses.replace(model, stop_ids=tuple(np.asarray(free.tokens)[:, 2].tolist()))
    out = ivc_jax.generate(ending, inputs, spec, STEPS)
    steps = list(ivc_jax.stream(ending, inputs, spec, STEPS))
    assert len(steps) == max(out.lengths) <= 3
    assert join(steps) == answers(out)
    for number, step in enumerate(steps, start=1):
        np.testing.assert_array_equal(step.done, number >= np.asarray(out.lengths))


def test_draws_are_those_of_generate(model, inputs):
    options = {"sampler": ivc_jax.Sampling(temperature=1.5), "seed": [1, 2, 3, 4]}
    out = ivc_jax.generate(model, inputs, "dense", STEPS, (), **options)
    steps = list(ivc_jax.stream(model, inputs, "dense", STEPS, (), **options))
    assert join(steps) == answers(out)


def test_errors_come_from_the_call(model, inputs):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        ivc_jax.stream(model, inputs, max_new_tokens=0)
    with pytest.raises(ValueError, match="unknown method 'icv'"):
        ivc_jax.stream(model, inputs, "icv")
