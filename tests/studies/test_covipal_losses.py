"""CoViPAL's training by numbers: worked labels, losses, gate; losses against the engine."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.batches import show_pictures
from helpers.modules import SMALL, draw_module

import ivc_jax
from ivc_jax.engine.modules import Stored
from ivc_jax.engine.observe import observe
from ivc_jax.inputs.layout import take_rows
from ivc_jax.methods.covipal import CoViPAL, score
from ivc_jax.methods.drawn import make_layout
from ivc_jax.methods.requests import AttentionRows, Hidden
from ivc_jax.nn.attention import attend_biased
from ivc_jax.studies.covipal.data import join_answers, join_prompts
from ivc_jax.studies.covipal.labels import compare, sum_received
from ivc_jax.studies.covipal.losses import Frozen
from ivc_jax.studies.covipal.settings import Training
from ivc_jax.studies.covipal.soft import bias_keys, gate, spread

S = jnp.asarray([[1.9, 1.2, 0.4, 1.1, 0.9, 0.6]])
VALID = jnp.ones((1, 6), bool)
THREE = jnp.asarray([3])
SHARES = [0.99040, 0.75708, 0.05400, 0.65402, 0.41017, 0.13432]
BEHIND = [2.60449, 1.98832, 1.73986, 1.07330, 1.04232, 0.53284]  # labels of all rows
close = partial(np.testing.assert_allclose, atol=2e-5, rtol=0)


def received(rows="all", per_row=False):
    """Sum the attention of the worked example: 2 heads, 9 tokens, 1 to 6 visual."""
    j, k, h = np.ogrid[:9, :9, :2]
    logits = np.cos((h + 1) * 0.5 * j * k).astype(np.float32)  # [9, 9, 2]
    queries = jnp.asarray(np.moveaxis(logits, 2, 1)[None]) * 3  # scaled by 9 ** -0.5
    keys = jnp.broadcast_to(jnp.eye(9)[None, :, None], (1, 9, 2, 9))
    layout = make_layout([(1, (1, 6), 2)])
    return sum_received(queries, keys, layout, rows, per_row)


def test_worked_labels():
    close(received(), [BEHIND])
    close(received() / received().mean(), [[1.73998, 1.32833, 1.16234, 0.71703, 0.69634, 0.35598]])
    close(received("text"), [[0.37186, 0.41362, 0.42409, 0.35679, 0.31629, 0.28735]])
    close(received(per_row=True), [np.array(BEHIND) / np.arange(8, 2, -1)])
    close(received("text", per_row=True), received("text") / 2)


def test_worked_losses():
    close(compare(S, received(), VALID, "raw"), 0.48974)
    close(compare(S, received(), VALID), 0.14516)
    # padding, and a sample without pictures, change nothing
    wide = [jnp.pad(x, ((0, 1), (0, 2)), constant_values=np.nan) for x in (S, received())]
    close(compare(*wide, jnp.pad(VALID, ((0, 1), (0, 2)))), 0.14516)


def test_worked_gate_and_its_derivative():
    shares, threshold = gate(S, VALID, THREE)
    close(shares, [SHARES])
    close(threshold, [[0.97265]])
    close(shares.sum(), 3)
    wide, valid = (jnp.pad(x, ((0, 1), (0, 2))) for x in (S, VALID))
    padded, _ = gate(jnp.where(valid, wide, np.nan), valid, jnp.asarray([3, 0]))
    close(padded, np.pad([SHARES], ((0, 1), (0, 2))))
    # by differences, in which the threshold moves along
    slope = jax.jacobian(lambda scores: gate(scores, VALID, THREE)[0][0])(S)[:, 0]
    for place in range(6):
        step = jnp.zeros_like(S).at[0, place].set(0.01)
        ends = [np.asarray(gate(S + sign * step, VALID, THREE)[0][0]) for sign in (1, -1)]
        np.testing.assert_allclose(slope[:, place], (ends[0] - ends[1]) / 0.02, atol=2e-3)
    close(slope.sum(axis=0), 0)  # the budget stays


def test_worked_row_under_the_soft_mask():
    logits = jnp.asarray([0.5, 0, 0.2, -0.1, 0.3, 0.1, 0])
    queries = jnp.zeros((1, 1, 1, 7)).at[..., 0].set(7**0.5)
    keys = jnp.zeros((1, 7, 1, 7)).at[0, :, 0, 0].set(logits)
    values, mask = jnp.eye(7)[None, :, None], jnp.ones((1, 1, 1, 7), bool)
    plain = [0.20033, 0.12151, 0.14841, 0.10994, 0.16402, 0.13429, 0.12151]
    close(attend_biased(queries, keys, values, mask)[0, 0, 0], plain)
    layout = make_layout([(1, (1, 6), 2)])
    bias = bias_keys(S, layout, THREE)
    soft = [0.34378, 0.15939, 0.01389, 0.12459, 0.11657, 0.03125, 0.21053]
    bias = jnp.pad(bias, ((0, 0), (0, 1)))[:, None, None]  # of the text 0
    close(attend_biased(queries, keys, values, mask, bias)[0, 0, 0], soft)


def test_every_other_query_sees_the_bias_of_a_key():
    layout = make_layout([(1, (1, 2), 1), (3,)], visual_slots=4)
    bias = jnp.asarray([[-1.0, -2.0, -9.0, -9.0], [-9.0] * 4])
    wanted = np.zeros((2, 1, 8, 8))  # [B, 1, query, key]
    wanted[0, 0, :, 1], wanted[0, 0, :, 2] = -1, -2
    wanted[0, 0, 1, 1] = wanted[0, 0, 2, 2] = 0  # a token itself
    found = spread(bias, layout)
    np.testing.assert_array_equal(found, wanted[:, :, : found.shape[2], : found.shape[3]])


def test_straight_through_is_hard_forwards_and_soft_backwards():
    layout, counts = make_layout([(1, (1, 6), 2)]), THREE
    hard = bias_keys(S, layout, counts, straight_through=True)
    close(hard, [[0, 0, np.log(1e-6), 0, np.log(1e-6), np.log(1e-6)]])
    slopes = [
        jax.grad(lambda s, way=way: (bias_keys(s, layout, counts, straight_through=way) * S).sum())(
            S
        )
        for way in (True, False)
    ]
    close(*slopes)
    assert np.abs(slopes[0]).min() > 1e-3


def test_settings_are_those_of_the_specification():
    assert Training().choose_guide(28) == 16
    assert Training(layer=3).choose_guide(5) == 4
    with pytest.raises(ValueError, match="guide must be a block behind layer=2"):
        Training(layer=2, guide=2).choose_guide(5)
    with pytest.raises(ValueError, match="ratios must be shares"):
        Training(ratios=(0.5, 0.0))
    with pytest.raises(ValueError, match="tau must be positive, got 0"):
        Training(tau=0)


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl", "deepseek_vl2"])
def setting(request, tiny_hf):
    """A model, its ragged prompts with pictures, answers to them, a random module."""
    path = tiny_hf(family=request.param, num_hidden_layers=4)
    model, processor = ivc_jax.load(path, dtype="float32")
    batch = show_pictures(processor)
    samples = [take_rows(batch, [row], model.config) for row in (0, 2)]
    answers = [[5, 9, 3], [7, 2]]
    params = draw_module(SMALL, model.config.decoder.hidden_size)
    return model, samples, answers, params


def rate(setting, training, ratio=0.4, change=lambda loss: loss):
    """Return the loss of the second stage, or what `change` makes of it."""
    model, samples, answers, params = setting
    frozen = Frozen(model.config, SMALL, training)
    inputs = join_answers(model, samples, answers, ratio)
    return jax.jit(change(frozen.tune))(params, model.params, *inputs)


def test_masked_answers_are_those_of_pruned_prompts(setting):
    """The frozen forward pass is the engine's; a hard mask is what the method drops."""
    model, samples, answers, params = setting
    stored = Stored(flatten_dict(params, sep="/"))
    beside = dataclasses.replace(model, params={**model.params, "methods": {"own": stored}})
    batch = ivc_jax.Batch.join(samples)
    for layer in (0, 2):
        method = CoViPAL(keep_ratio=0.4, weights="own", layer=layer, module=SMALL)
        training = Training(layer=layer, guide=3, least=1e-30, straight_through=True)
        if model.config.decoder.experts is None:
            loss, slope = rate(setting, training, change=jax.value_and_grad)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
            assert np.abs(slope["project"]["kernel"]).max() > 0
        else:  # no gradient goes back through them
            loss = rate(setting, training)
        wanted = ivc_jax.score(beside, batch, answers, method)
        assert loss == pytest.approx(-wanted.sum() / 5, abs=1e-4)
        dense = ivc_jax.score(model, batch, answers)
        assert abs(wanted - dense).max() > 1e-3


def test_divergence_is_zero_where_nothing_is_masked(setting):
    whole, both = Training(), Training(beta=3.0)
    assert rate(setting, both, 1.0) == pytest.approx(float(rate(setting, whole, 1.0)), abs=1e-4)
    assert rate(setting, both) - rate(setting, whole) > 1e-4


def test_labels_are_the_attention_of_the_guide(setting):
    model, samples, _, params = setting
    inputs = join_prompts(model, samples)
    frozen = Frozen(model.config, SMALL, Training(layer=1, guide=2, rows="text"))
    loss, slope = jax.jit(jax.value_and_grad(frozen.imitate))(params, model.params, inputs)
    (attention,) = observe(model, inputs, 2, AttentionRows(2, "text"))
    (entering,) = observe(model, inputs, 1, Hidden())
    scores = jax.jit(score, static_argnums=0)(SMALL, params, entering, inputs.layout)
    valid = np.asarray(inputs.layout.visual_valid)
    each = []
    for b, mark in enumerate(valid):
        label = np.asarray(attention[b]).sum(axis=(0, 1))[mark]
        each.append(((np.asarray(scores)[b][mark] - label / label.mean()) ** 2).mean())
    assert loss == pytest.approx(np.mean(each), rel=1e-4)
    assert np.abs(slope["score"]["kernel"]).max() > 0
