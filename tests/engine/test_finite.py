"""Logits that are not finite never become an answer: one damaged weight, in one row's way."""

import dataclasses
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import BUCKET, STEPS, batch_of

import ivc_jax
from ivc_jax.engine.finite import explain_broken
from ivc_jax.inputs.bucket import collate


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(num_hidden_layers=2), dtype="float32")[0]


@pytest.fixture(scope="module")
def inputs(model):
    return collate(batch_of(0, 1, 2, 3), model.config, BUCKET)


@pytest.fixture(scope="module")
def healthy(model, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ivc_jax.generate(model, inputs, "dense", STEPS, ())


def damage(model, token):
    """Return the model with one number of a token's embedding damaged."""
    decoder = dict(model.params["decoder"])
    table = decoder["embed_tokens"]["embedding"].at[token, 5].set(jnp.nan)
    decoder["embed_tokens"] = {"embedding": table}
    return dataclasses.replace(model, params={**model.params, "decoder": decoder})


def find_own_token(inputs, healthy, row):
    """A token of one prompt that no other prompt and no answer holds."""
    tokens = np.asarray(inputs.tokens)
    others = np.concatenate([np.delete(tokens, row, 0).ravel(), np.ravel(healthy.tokens)])
    return int(np.setdiff1d(tokens[row, : inputs.layout.lengths[row]], others)[0])


def test_a_damaged_prompt_has_no_answer_and_its_mates_theirs(model, inputs, healthy):
    assert np.asarray(healthy.finite).all()
    broken = damage(model, find_own_token(inputs, healthy, 1))
    words = r"no answer for rows 1: logits are not finite in float32: .* fetch the checkpoint again"
    with pytest.warns(UserWarning, match=words):
        out = ivc_jax.generate(broken, inputs, "dense", STEPS, ())
    assert out.finite.tolist() == [True, False, True, True]
    assert out.lengths.tolist() == [STEPS, 0, STEPS, STEPS]
    assert not np.asarray(out.tokens[1]).any()
    for row in (0, 2, 3):
        np.testing.assert_array_equal(out.tokens[row], healthy.tokens[row])
    with pytest.warns(UserWarning, match=words):
        steps = list(ivc_jax.stream(broken, inputs, "dense", STEPS, ()))
    assert [step.valid.tolist() for step in steps] == [[True, False, True, True]] * STEPS
    with pytest.warns(UserWarning, match=words):
        scores = ivc_jax.score(broken, inputs, [[5], [6, 7], [8], [9]])
    assert np.isnan(scores).tolist() == [False, True, False, False]
    sampler = ivc_jax.Sampling(top_p=0.9)
    with pytest.warns(UserWarning, match=words):
        drawn = ivc_jax.generate(broken, inputs, "ivc:layer=1", STEPS, (), sampler=sampler)
    assert drawn.finite.tolist() == [True, False, True, True]


def test_an_answer_ends_where_its_logits_break(model, inputs, healthy):
    """A damaged token is chosen at some step; what follows it means nothing."""
    tokens = np.asarray(healthy.tokens)
    token = int(np.setdiff1d(tokens[:, 1:-1], inputs.tokens)[0])
    broken = damage(model, token)
    with pytest.warns(UserWarning, match="no answer for rows"):
        out = ivc_jax.generate(broken, inputs, "dense", STEPS, ())
    hit = tokens[:, :-1] == token  # a last token is not fed back
    assert 0 < hit.any(axis=1).sum() < 4
    length = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, STEPS)
    np.testing.assert_array_equal(out.lengths, length)
    np.testing.assert_array_equal(out.finite, ~hit.any(axis=1))
    with warnings.catch_warnings():  # a sample that has ended before is as good as any
        warnings.simplefilter("error")
        ended = ivc_jax.generate(broken, inputs, "dense", STEPS, (token,))
    assert np.asarray(ended.finite).all()


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [("float16", "load with dtype bfloat16 or float32"), ("bfloat16", "load with dtype float32")],
)
def test_the_remedy_is_a_wider_dtype(dtype, remedy):
    said = explain_broken(types.SimpleNamespace(dtype=jnp.dtype(dtype)))
    assert said.startswith(f"logits are not finite in {dtype}: {remedy};")
