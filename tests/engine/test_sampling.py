"""Sampling: reproducible in any batch, and frequencies of the truncated softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import STEPS, WIDE, batch_of
from scipy import stats

import ivc_jax
from ivc_jax.engine.decode import run_decode
from ivc_jax.engine.sampling import GREEDY, make_rule, truncate
from ivc_jax.inputs.bucket import collate

DRAWS = 10_000
# softmax: 0.4 0.3 0.15 0.1 0.03 0.02, in an order of their own
LOGITS = np.log(np.array([0.1, 0.4, 0.02, 0.15, 0.03, 0.3], np.float32))
WARM = ivc_jax.Sampling(temperature=1.5, top_p=0.9)


def shares(sampler):
    """The truncated softmax of LOGITS, written out: temperature, then top-k, then top-p."""
    left = np.exp(LOGITS.astype(np.float64) / sampler.temperature)
    ranked = np.argsort(-left)
    if sampler.top_k is not None:
        left[ranked[sampler.top_k :]] = 0
    before = np.cumsum(left[ranked] / left.sum()) - left[ranked] / left.sum()
    left[ranked[before >= sampler.top_p - 1e-6]] = 0
    return left / left.sum()


SAMPLERS = {
    "plain": (ivc_jax.Sampling(), 6),
    "cold": (ivc_jax.Sampling(temperature=0.5), 6),
    "top-k": (ivc_jax.Sampling(temperature=1.3, top_k=3), 3),
    "top-p": (ivc_jax.Sampling(top_p=0.8), 3),  # 0.4 + 0.3 is not enough
    "both": (ivc_jax.Sampling(temperature=2.0, top_p=0.7, top_k=4), 3),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("over", ["seeds", "steps"])
def test_frequencies_match_the_truncated_softmax(name, over):
    sampler, count = SAMPLERS[name]
    expected = shares(sampler)
    assert (expected > 0).sum() == count
    logits = jnp.asarray(LOGITS)[None]
    if over == "seeds":  # 10,000 samples with a seed each, at one step
        rule = make_rule(sampler, np.arange(DRAWS), DRAWS)
        drawn = rule.choose(jnp.tile(logits, (DRAWS, 1)), jnp.int32(3))
    else:  # one sample with one seed, at 10,000 steps
        rule = make_rule(sampler, 7, 1)
        drawn = jax.vmap(lambda step: rule.choose(logits, step))(jnp.arange(DRAWS))
    found = np.bincount(np.asarray(drawn).ravel(), minlength=6)
    kept = expected > 0
    assert found[~kept].sum() == 0
    assert stats.chisquare(found[kept], expected[kept] * DRAWS).pvalue > 0.01


def test_truncation_equals_that_of_transformers():
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.default_rng(0).normal(0, 3, (50, 40)).astype(np.float32)
    settings = [(1.0, 5, 1.0), (0.7, None, 0.9), (1.7, 12, 0.6), (1.0, 99, 0.01)]
    for temperature, top_k, top_p in settings:
        scores = process.TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits))
        if top_k:
            scores = process.TopKLogitsWarper(top_k)(None, scores)
        expected = process.TopPLogitsWarper(top_p)(None, scores).numpy()
        found = truncate(logits / np.float32(temperature), top_k, np.float32(top_p))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ties_are_cut_by_id_and_kept_by_count():
    flat = jnp.zeros((1, 4))
    assert np.isfinite(truncate(flat, None, 0.5)).tolist() == [[True, True, False, False]]
    assert np.isfinite(truncate(flat, 2)).all()  # all tied with the second stay


@pytest.fixture(scope="module")
def prompt(model, inputs):
    return ivc_jax.prefill(model, inputs)


SEEDS = [3, 11, 3, 2**32 - 1]


def test_a_row_draws_the_same_alone_in_a_batch_and_in_a_larger_bucket(model, prompt):
    out = ivc_jax.decode(model, prompt, STEPS, (), sampler=WARM, seed=SEEDS)
    for row, seed in enumerate(SEEDS):
        inputs = collate(batch_of(row), model.config, WIDE)
        alone = ivc_jax.generate(model, inputs, "dense", STEPS, (), sampler=WARM, seed=seed)
        np.testing.assert_array_equal(alone.tokens[0], out.tokens[row])
    greedy = ivc_jax.decode(model, prompt, STEPS, ()).tokens
    assert (out.tokens != greedy).any()


def test_one_seed_is_that_of_every_row(model, prompt):
    one, each, other = (
        ivc_jax.decode(model, prompt, STEPS, (), sampler=WARM, seed=seed).tokens
        for seed in (5, [5] * 4, 6)
    )
    np.testing.assert_array_equal(one, each)
    assert (one != other).any()


def test_temperature_zero_is_greedy_and_settings_share_a_program(model, prompt):
    cold = ivc_jax.Sampling(temperature=0.0, top_p=0.5)
    assert make_rule(cold, 0, 4) is GREEDY
    drawn = ivc_jax.decode(model, prompt, STEPS, (), sampler=cold, seed=9).tokens
    np.testing.assert_array_equal(drawn, ivc_jax.decode(model, prompt, STEPS, ()).tokens)
    programs = run_decode._cache_size()
    other = ivc_jax.Sampling(temperature=0.3, top_p=0.2)
    ivc_jax.decode(model, prompt, STEPS, (), sampler=other, seed=1)
    assert run_decode._cache_size() == programs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\]"),
        ({"top_k": 0}, "top_k must be a positive number or None, got 0"),
        ({"top_k": 2.5}, "top_k must be a positive number or None"),
    ],
)
def test_values_outside_their_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ivc_jax.Sampling(**fields)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, [1, 2], [[1, 2, 3, 4]], "7", []])
def test_impossible_seeds_are_named(seed):
    with pytest.raises(ValueError, match="seed must be a whole number in 0"):
        make_rule(WARM, seed, 4)
