"""Blocks apart and stacked blocks are one model: same logits, caches, tokens and scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.prompts import CASES, hf_arrays

import ivc_jax
from ivc_jax.nn.blocks import is_stacked, run_blocks, stack, stacks, take_block

pytestmark = pytest.mark.usefixtures("highest_precision")


@pytest.fixture(scope="module")
def models(tiny_hf):
    """The same tiny model with its blocks apart, as on CPU, and stacked, as on TPU."""
    apart, _ = ivc_jax.load(tiny_hf(family="qwen2_5_vl"), processor=False)
    vision, decoder = apart.params["vision"], apart.params["decoder"]
    assert not is_stacked(vision["blocks"])
    params = {
        "vision": {**vision, "blocks": stack(vision["blocks"])},
        "decoder": {**decoder, "layers": stack(decoder["layers"])},
    }
    return apart, ivc_jax.Model(apart.config, params)


@pytest.mark.parametrize("spec", ["ivc:layer=1,keep_ratio=0.5", "fastv:layer=2"])
def test_both_forms_give_the_same(models, spec):
    batch = ivc_jax.Batch.from_hf(**hf_arrays(CASES["ragged batch"]))
    prompts = [ivc_jax.prefill(model, batch, spec) for model in models]
    ours, theirs = prompts
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    for one, other in zip(ours.cache, theirs.cache, strict=True):
        np.testing.assert_allclose(one.keys, other.keys, rtol=0, atol=1e-5)
    assert all(map(np.array_equal, ours.kept, theirs.kept))
    outputs = [
        ivc_jax.decode(model, prompt, 5, ()) for model, prompt in zip(models, prompts, strict=True)
    ]
    assert np.array_equal(outputs[0].tokens, outputs[1].tokens)


def test_scores_and_steps_are_the_same(models):
    batch = ivc_jax.Batch.from_hf(**hf_arrays(CASES["ragged batch"]))
    answers = [[5, 9, 11]] * len(batch)
    ours, theirs = (ivc_jax.score(model, batch, answers) for model in models)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    steps = [list(ivc_jax.stream(model, batch, "dense", 4, ())) for model in models]
    for one, other in zip(*steps, strict=True):
        assert np.array_equal(one.tokens, other.tokens)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_loop_runs_the_blocks_asked_for(stacked):
    blocks = [{"w": jnp.full(2, float(number))} for number in range(5)]
    each = [jnp.float32(10 * number) for number in (1, 2, 3)]
    traced = []

    def body(carry, params, own):
        traced.append(None)
        return carry + params["w"], own + params["w"][0]

    loop = jax.jit(lambda blocks, each: run_blocks(body, jnp.zeros(2), blocks, 1, 4, each))
    total, made = loop(stack(blocks), stack(each)) if stacked else loop(tuple(blocks), each)
    assert total.tolist() == [6.0, 6.0]
    assert list(map(float, made)) == [11.0, 22.0, 33.0]
    assert len(traced) == 1  # not once a block


def test_a_block_is_taken_from_either_form():
    blocks = tuple({"w": jnp.arange(2) + number} for number in range(3))
    for form in (blocks, stack(blocks)):
        assert take_block(form, 2)["w"].tolist() == [2, 3]


def test_devices_choose_the_form():
    assert [stacks(platform) for platform in ("cpu", "gpu", "tpu")] == [False, False, True]
    assert stacks("cpu", quantized=True)
