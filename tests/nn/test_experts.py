"""Experts against a plain loop over tokens, in every form in which they are computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.config import ConfigError
from ivc_jax.decoder_parts import ExpertsConfig
from ivc_jax.nn import experts
from ivc_jax.nn.blocks import Sections, find_sections, peek, run_blocks, stack_sections, take_block

pytestmark = pytest.mark.usefixtures("highest_precision")

CONFIG = ExpertsConfig(count=8, chosen=3, hidden_dim=12, shared_dim=20)
# as the largest DeepSeek-VL2 chooses and weighs
BIASED = dataclasses.replace(
    *(CONFIG,), score="sigmoid", biased=True, groups=4, chosen_groups=2, renormalize=True, scale=2.5
)
WIDTH = 16


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def make(config):
    layer, x = experts.Experts(config), jnp.asarray(draw(2, 7, WIDTH))
    params = layer.init(jax.random.key(0), x)["params"]
    if config.biased:
        params["gate"]["e_score_correction_bias"] = jnp.asarray(draw(config.count, seed=1))
    return layer, {"params": params}, x


def feed_forward(x, weights):
    gate, up, down = (
        np.asarray(weights[name], np.float64) for name in ("gate_proj", "up_proj", "down_proj")
    )
    gated = gate @ x
    return down @ (gated / (1 + np.exp(-gated)) * (up @ x))


def choose(config, gate, x):
    """Return the experts of one token and their weights."""
    logits = np.asarray(gate["weight"], np.float64) @ x
    if config.score == "softmax":
        scores = np.exp(logits) / np.exp(logits).sum()
    else:
        scores = 1 / (1 + np.exp(-logits))
    order = scores + np.asarray(gate["e_score_correction_bias"]) if config.biased else scores
    size = config.count // config.groups
    group_scores = [
        np.sort(order[g * size : (g + 1) * size])[::-1][: 2 if config.biased else 1].sum()
        for g in range(config.groups)
    ]
    best = np.argsort(group_scores)[::-1][: config.chosen_groups]
    allowed = [e for e in range(config.count) if e // size in best]
    chosen = sorted(allowed, key=lambda e: -order[e])[: config.chosen]
    weights = scores[chosen]
    if config.renormalize:
        weights = weights / weights.sum()
    return chosen, weights * config.scale


def run_plainly(config, params, x):
    """One token after the other, float64."""
    bank = {name: part["weight"] for name, part in params["experts"].items()}
    shared = {name: part["weight"] for name, part in params["shared_experts"].items()}
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:2]):
        token = np.asarray(x[place], np.float64)
        for expert, weight in zip(*choose(config, params["gate"], token), strict=True):
            one = {name: stack[expert] for name, stack in bank.items()}
            out[place] += weight * feed_forward(token, one)
        out[place] += feed_forward(token, shared)
    return out


@pytest.mark.parametrize("config", [CONFIG, BIASED], ids=["greedy softmax", "biased sigmoid"])
def test_experts_are_a_loop_over_tokens(config):
    layer, params, x = make(config)
    found = jax.jit(layer.apply)(params, x)
    wanted = run_plainly(config, params["params"], x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    # one token: a part for each of its experts
    alone = jax.jit(layer.apply)(params, x[:1, :1])
    np.testing.assert_allclose(alone, wanted[:1, :1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_rows_come_in_parts_of_any_size(size):
    bank = {
        "gate_proj": jnp.asarray(draw(5, 12, WIDTH)),
        "up_proj": jnp.asarray(draw(5, 12, WIDTH, seed=1)),
        "down_proj": jnp.asarray(draw(5, WIDTH, 12, seed=2)),
    }
    tokens = jnp.asarray(draw(6, WIDTH, seed=3))
    # experts 1 and 4 get nothing, and 5 is none of these
    rows = jnp.array([0, 3, 0, 2, 5, 5, 2, 3, 0, 2, 0, 5])
    found = experts.run_parts(tokens, rows, bank, size)
    here = np.asarray(rows) < 5
    wanted = [
        feed_forward(tokens[row // 2], {name: stack[rows[row]] for name, stack in bank.items()})
        for row in np.flatnonzero(here)
    ]
    np.testing.assert_allclose(found[here], wanted, rtol=0, atol=1e-4)
    assert not np.asarray(found)[~here].any()


def test_a_token_depends_on_nothing_beside_it():
    layer, params, x = make(CONFIG)
    together = layer.apply(params, x)
    broken = x.at[0, 3].set(jnp.nan)
    found = layer.apply(params, broken)
    others = np.delete(np.asarray(found).reshape(14, WIDTH), 3, axis=0)
    np.testing.assert_allclose(
        others, np.delete(np.asarray(together).reshape(14, WIDTH), 3, axis=0), rtol=0, atol=1e-6
    )


def test_routers_that_cannot_choose_are_named():
    with pytest.raises(ConfigError, match="scoring_func 'tanh' is not one of"):
        dataclasses.replace(CONFIG, score="tanh")
    with pytest.raises(ConfigError, match="n_group 3 must divide n_routed_experts 8"):
        dataclasses.replace(CONFIG, groups=3)
    with pytest.raises(ConfigError, match="num_experts_per_tok 3 must be 1 to 2, the experts"):
        dataclasses.replace(CONFIG, groups=4, chosen_groups=1)


def test_blocks_of_two_kinds_run_one_behind_the_other():
    """One plain block, then three with another parameter: apart, and in two stacks."""
    apart = (
        {"w": jnp.ones(2)},
        *({"w": jnp.full(3, float(i)), "v": jnp.ones(1)} for i in (2, 3, 4)),
    )
    assert find_sections(apart) == [range(1), range(1, 4)]
    stacked = stack_sections(apart)
    assert isinstance(stacked, Sections)
    assert peek(stacked)["w"].shape == (1, 2)
    assert take_block(stacked, 2)["w"].tolist() == [3.0] * 3

    def body(carry, params, own):
        return carry + params["w"][0] * own, params["w"][0] + own

    each = jnp.array([10.0, 20.0, 30.0])
    for start, stop in ((0, 3), (1, 4), (0, 1)):
        own = each[: stop - start]
        wanted, made = run_blocks(body, 0.0, apart, start, stop, list(own))
        found, parts = run_blocks(body, 0.0, stacked, start, stop, own)
        assert float(found) == float(wanted)
        assert parts.tolist() == [float(part) for part in made]
    assert isinstance(stack_sections(apart[1:]), dict)  # all alike
