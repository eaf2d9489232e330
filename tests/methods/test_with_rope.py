"""The `+rope` modifier against models of such a configuration, and what it leaves alone."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from helpers.batches import BUCKET, STEPS, batch_of

import ivc_jax
from ivc_jax.config import RopeConfig
from ivc_jax.engine.prefill import run_prefill, with_rope
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import FastV, IVCPrune, MethodError, Random, WithIVC, WithPoRe, describe, parse
from ivc_jax.methods.base import DENSE, Method
from ivc_jax.methods.requests import RopeSettings
from ivc_jax.methods.with_rope import WithRope

# The tiny model's planes by axis: time 0-1, height 2-4, width 5-7.
HEIGHT, WIDTH = 1, 2
HEIGHT_PLANES, ALL_PLANES = (2, 3, 4), tuple(range(8))


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(num_hidden_layers=4), dtype="float32")[0]


@pytest.fixture(scope="module")
def inputs(model):
    """Encoded, so that no program here has a tower to compile."""
    return ivc_jax.encode(model, collate(batch_of(0, 1, 2, 3), model.config, BUCKET))


def changed(model, **fields):
    """Return the model with another rotary embedding in its configuration."""
    rope = dataclasses.replace(model.config.decoder.rope, **fields)
    return dataclasses.replace(model, config=with_rope(model.config, rope))


def mask(*stopped):
    return tuple(plane not in stopped for plane in ALL_PLANES)


def program(model, method, inputs):
    """The text of the program that a prefill compiles, its constants included."""
    method = method.resolve(model.config)
    return run_prefill.lower(model.config, method, model.params, inputs).as_text()


def moved(inputs, *axes):
    """Put all tokens at position 0 of some axes."""
    positions = np.array(inputs.layout.positions)
    positions[list(axes)] = 0
    return inputs.replace(layout=inputs.layout.replace(positions=positions))


@pytest.mark.parametrize("host", [DENSE, FastV(layer=1)], ids=lambda host: host.name)
def test_nothing_changed_is_the_program_of_the_host(model, inputs, host):
    assert program(model, WithRope(host), inputs) == program(model, host, inputs)


CASES = [
    ({"stop_planes": HEIGHT_PLANES}, {"frequency_mask": mask(*HEIGHT_PLANES)}),
    ({"attention_theta": 50}, {"theta": 50.0}),
]


@pytest.mark.parametrize(("given", "fields"), CASES)
def test_the_program_is_that_of_a_model_configured_so(model, inputs, given, fields):
    host = FastV(layer=1)  # ranks by attention, which turns otherwise as well
    found = program(model, WithRope(host, **given), inputs)
    assert found == program(changed(model, **fields), host, inputs)
    assert found != program(model, host, inputs)


def test_a_batch_without_images_turns_otherwise_too(model):
    text = collate(batch_of(1), model.config, BUCKET)
    found = program(model, WithRope(FastV(layer=1), ALL_PLANES), text)
    assert found == program(changed(model, frequency_mask=mask(*ALL_PLANES)), DENSE, text)


def test_logits_and_greedy_tokens_equal_those_of_a_model_configured_so(model, inputs):
    """All planes: decoding has to turn as the prefill did, or these answers are others."""
    prompt = ivc_jax.prefill(model, inputs, WithRope(DENSE, ALL_PLANES))
    other = changed(model, frequency_mask=mask(*ALL_PLANES))
    expected = ivc_jax.prefill(other, inputs)
    np.testing.assert_array_equal(prompt.logits, expected.logits)
    tokens = ivc_jax.decode(model, prompt, STEPS, ()).tokens
    np.testing.assert_array_equal(tokens, ivc_jax.decode(other, expected, STEPS, ()).tokens)
    plain = ivc_jax.prefill(model, inputs)
    assert np.abs(prompt.logits - plain.logits).max() > 1e-2


def test_without_any_plane_positions_mean_nothing(model, inputs):
    method = WithRope(DENSE, ALL_PLANES)
    nowhere = moved(inputs, 0, 1, 2).replace(next_position=np.zeros(4, np.int32))
    here, there = (ivc_jax.prefill(model, each, method) for each in (inputs, nowhere))
    np.testing.assert_array_equal(here.logits, there.logits)
    tokens = [ivc_jax.decode(model, prompt, STEPS, ()).tokens for prompt in (here, there)]
    np.testing.assert_array_equal(*tokens)


def test_stopped_planes_do_not_see_their_axis(model, inputs):
    method = WithRope(DENSE, HEIGHT_PLANES)
    here, plain = (ivc_jax.prefill(model, inputs, m).logits for m in (method, DENSE))
    blind = ivc_jax.prefill(model, moved(inputs, HEIGHT), method).logits
    np.testing.assert_array_equal(blind, here)
    for other, axis, logits in ((method, WIDTH, here), (DENSE, HEIGHT, plain)):
        seen = ivc_jax.prefill(model, moved(inputs, axis), other).logits
        assert np.abs(seen - logits)[0].max() > 1e-2


def test_unchanged_embeddings_decode_in_the_usual_program(model, inputs):
    """Its static arguments are the configuration, with the embedding of the prefill, and T."""
    config = model.config
    prompt = jax.eval_shape(partial(run_prefill, config, WithRope(DENSE)), model.params, inputs)
    assert with_rope(config, prompt.rope) == config
    prompt = jax.eval_shape(
        partial(run_prefill, config, WithRope(DENSE, (1,))), model.params, inputs
    )
    assert with_rope(config, prompt.rope) == changed(model, frequency_mask=mask(1)).config


def test_ivc_scores_are_formed_from_the_usual_frequencies(model, inputs):
    """A draw by lot before the decoder and the IVC tokens: nothing else moves the choice."""
    host = Random(layer=0, keep_ratio=0.2)
    united = partial(WithIVC, cos_fraction=0.15, sin_fraction=0.15)
    other = changed(model, frequency_mask=mask(*HEIGHT_PLANES))
    runs = [
        (model, united(host)),
        (model, WithRope(united(host), HEIGHT_PLANES)),
        (model, united(WithRope(host, HEIGHT_PLANES))),
        (other, united(host)),
    ]

    @jax.jit  # of the selections alone: the compiler drops the decoder
    def choose(params, inputs):
        return [run_prefill.__wrapped__(m.config, to, params, inputs).selection for m, to in runs]

    chosen = choose(model.params, inputs)
    usual, above, below, configured = (np.where(c.valid, c.index, -1) for c in chosen)
    np.testing.assert_array_equal(above, usual)
    np.testing.assert_array_equal(below, usual)
    assert not np.array_equal(configured, usual)


def test_stopped_planes_join_those_of_the_configuration():
    rope = RopeConfig(16, 10000.0, (2, 3, 3), mask(0, 3))
    assert WithRope(DENSE, (3, 5)).rope(rope).frequency_mask == mask(0, 3, 5)
    assert WithRope(DENSE).rope(rope) == rope
    both = WithRope(DENSE, (5,), attention_theta=100).rope(rope)
    assert both == RopeConfig(16, 100.0, (2, 3, 3), mask(0, 3, 5))


def test_the_modifier_stands_between_others(model):
    method = WithIVC(WithRope(FastV(budget=0.6), (1,)))
    assert method.name == "fastv+rope+ivc"
    resolved = method.resolve(model.config)
    alone = WithIVC(FastV(budget=0.6)).resolve(model.config)
    assert resolved.host.host == alone.host
    assert resolved.stages == alone.stages
    (stage,) = alone.stages
    assert resolved.requests(stage) == alone.requests(stage)
    assert RopeSettings() in resolved.requests(stage)
    assert resolved.capacity(stage, 24, 2) == alone.capacity(stage, 24, 2)
    assert resolved.rope(model.config.decoder.rope).frequency_mask == mask(1)


def test_a_corrected_score_is_found_below_it(model, inputs):
    below = WithPoRe(WithRope(FastV(layer=1), (1,)), sigma=3.0)
    above = WithRope(WithPoRe(FastV(layer=1), sigma=3.0), (1,))
    assert program(model, below, inputs) == program(model, above, inputs)
    with pytest.raises(MethodError, match="corrects an attention score"):
        WithPoRe(WithRope(Random()))


def test_specifications_read_back():
    method = parse("dense+rope:stop_planes=0-3/6,attention_theta=500")
    assert method == WithRope(DENSE, (6, 0, 1, 2, 3), attention_theta=500)
    assert describe(method) == "dense+rope:stop_planes=0-3/6,attention_theta=500.0"
    assert parse(describe(method)) == method


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WithRope(DENSE, (-1,)), "stop_planes must be plane indices from 0 on"),
        (lambda: WithRope(DENSE, (True, False)), "stop_planes must be plane indices from 0 on"),
        (lambda: WithRope(DENSE, (0.5,)), "stop_planes must be plane indices from 0 on"),
        (lambda: WithRope(DENSE, attention_theta=0), "attention_theta must be finite and above 0"),
        (lambda: WithRope(DENSE, attention_theta=float("nan")), "attention_theta must be finite"),
        (lambda: WithRope(WithRope(DENSE)), "drop one \\+rope"),
        (lambda: WithIVC(WithRope(Method())), "dense.* keeps every token"),
        (lambda: WithIVC(WithRope(IVCPrune())), "keeps the IVC tokens already"),
    ],
)
def test_what_cannot_be_is_an_error(make, message):
    with pytest.raises(MethodError, match=message):
        make()


def test_a_plane_that_the_model_lacks_is_an_error(model, inputs):
    with pytest.raises(MethodError, match="stop_planes: the model has planes 0 to 7, got 8"):
        ivc_jax.prefill(model, inputs, WithRope(DENSE, (0, 8)))
