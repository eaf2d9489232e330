"""VisionDrop against its worked numbers, its published schedule and a slow reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.config import RopeConfig
from ivc_jax.methods import MethodError, budget
from ivc_jax.methods.drawn import FixedAttention, make_layout
from ivc_jax.methods.requests import (
    AttentionReceived,
    Keys,
    TokenVectors,
    TowerAttention,
    TowerKeys,
)
from ivc_jax.methods.select import Segments
from ivc_jax.methods.testing import listed, run_stage, shorten
from ivc_jax.methods.visiondrop import VisionDrop, reduce

PAIR = (3, (4, 5), 4, (3, 7), 5)
OTHER = (2, (6, 6), 6)
VIDEO = (1, (3, 2, 4), 2)
LATE = VisionDrop(layers=(0, 1), ratios=(0.7, 0.5), positions="original")


def draw(layout, seed=0, spoil=np.nan):
    """Draw the signals of both kinds of cut, by sample and token alone; padding is spoiled."""
    signals = {name: [] for name in ("matrix", "tower", "received", "keys")}
    V = layout.visual_slots
    for row, count in enumerate(np.asarray(layout.visual_count)):
        random = np.random.default_rng([seed, count])
        drawn = {
            "matrix": random.random((count, count)),
            "tower": random.normal(size=(count, 5)),
            "received": random.random(count),
            "keys": random.normal(size=(count, 2, 3)),
        }
        for name, values in drawn.items():
            shape = (V, V) if name == "matrix" else (V, *values.shape[1:])
            table = np.full(shape, spoil, np.float32)
            table[tuple(slice(count) for _ in range(2 if name == "matrix" else 1))] = values
            origin = np.asarray(layout.visual_origin)[row]
            signals[name].append(table if name in ("matrix", "tower") else table[origin])
    arrays = {name: jnp.asarray(np.stack(values)) for name, values in signals.items()}
    arrays["matrix"] = jnp.nan_to_num(arrays["matrix"])  # the stand-in multiplies it by zeros
    return {
        TowerAttention(): FixedAttention(arrays["matrix"], layout),
        TowerKeys(): arrays["tower"],
        AttentionReceived(1): arrays["received"],
        Keys(1): TokenVectors(arrays["keys"], arrays["keys"][:, :0]),
    }


def reference(scores, metric, dominant, contextual):
    """Reduce one set in float64: {kept token: weights of all tokens}."""
    n = len(scores)
    order = sorted(range(n), key=lambda token: (-scores[token], token))
    if dominant + contextual >= n:
        dominant, contextual = n, 0
    best = sorted(order[:dominant])
    rows = {token: np.eye(n)[token] for token in best}
    rest = [token for token in range(n) if token not in best]
    if not contextual:
        return rows
    step = max(1, len(rest) // contextual)
    targets = rest[::step][:contextual]
    metric = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    groups = {target: [] for target in targets}
    for token in rest:
        if token not in targets:
            groups[targets[int(np.argmax(metric[targets] @ metric[token]))]].append(token)
    for target, group in groups.items():
        rows[target] = np.eye(n)[target]
        rows[target][group] += 1 / max(len(group), 1)
    return rows


def check(chosen, expected, V):
    """Compare a selection with {token: weights} of each sample."""
    assert listed(chosen) == [sorted(rows) for rows in expected]
    for row, rows in enumerate(expected):
        table = np.zeros((chosen.index.shape[1], V))
        for slot, token in enumerate(sorted(rows)):
            table[slot, : len(rows[token])] = rows[token]
        np.testing.assert_allclose(chosen.weights[row], table, atol=1e-6)


def test_attention_received_decides_in_the_decoder():
    # One prefix token, four visual ones, uniform logits: the causal mask favours early tokens.
    seen = np.tri(5)[1:]
    causal = (seen / seen.sum(axis=1, keepdims=True)).mean(axis=0)[1:]
    np.testing.assert_allclose(causal, [0.32083, 0.19583, 0.11250, 0.05], atol=5e-6)
    layout = make_layout([(1, (2, 2))])
    keys = TokenVectors(jnp.ones((1, 4, 1, 3)), jnp.ones((1, 1, 1, 3)))
    signals = {
        AttentionReceived(1): jnp.asarray(causal[None], jnp.float32),
        AttentionReceived(1, causal=False): jnp.array([[0.2, 0.19, 0.21, 0.2]]),
        Keys(1): keys,
    }
    method = VisionDrop(layers=(1,), ratios=(0.5,), positions="original")
    assert method.requests(method.stages[0]) == (AttentionReceived(1), Keys(1))
    assert listed(run_stage(method, layout, signals)) == [[0, 1]]
    both = dataclasses.replace(method, causal=False)
    assert both.requests(both.stages[0]) == (AttentionReceived(1, causal=False), Keys(1))
    assert listed(run_stage(both, layout, signals)) == [[0, 2]]


# Worked example (b).
SCORES = [0.05, 0.21, 0.04, 0.16, 0.08, 0.19, 0.03, 0.07]
METRIC = [(1, 0), (0.9, 0.1), (0.8, 0.6), (0, 1), (0.1, 1), (1, 1), (-0.2, 1), (1, -0.1)]
STATES = [(1, 2), (3, 0.5), (0.5, 1.5), (2, 2), (1, -1), (0, 1), (4, 0), (2, 1)]


# A small program that runs a few times: optimising it would cost more than it saves.
jitted_reduce = jax.jit(
    reduce,
    static_argnums=(5, 6),
    compiler_options={"xla_backend_optimization_level": 0},
)


def reduced(scores, metric, dominant, contextual):
    within = Segments(jnp.zeros((1, 8), jnp.int32), jnp.full((1, 8), 8), 1)
    counts = (jnp.full((1, 8), count) for count in (dominant, contextual))
    scores, metric = (jnp.array([values], jnp.float32) for values in (scores, metric))
    return jitted_reduce(scores, metric, within, *counts, 6, 2)


def test_reduce_worked_example():
    chosen = reduced(SCORES, METRIC, 3, 2)
    assert listed(chosen) == [[0, 1, 3, 4, 5]]
    merged = chosen.weights[0] @ jnp.array(STATES, jnp.float32)
    expected = [(2.25, 3.25), STATES[1], STATES[3], (5, -1), STATES[5], (0, 0)]
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_reduce_ties_and_nothing_to_merge_into():
    lost = reduced(SCORES, METRIC, 3, 0)
    assert listed(lost) == [[1, 3, 5]]
    np.testing.assert_array_equal(lost.weights[0, :3], np.eye(8)[[1, 3, 5]])
    # Equal scores keep the first token, equal keys go to the first target.
    equal = reduced([1] * 8, [(1, 1)] * 8, 1, 2)
    assert listed(equal) == [[0, 1, 4]]
    first = [0, 1, 0.2, 0.2, 0, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(equal.weights[0, :3], [np.eye(8)[0], first, np.eye(8)[4]], atol=1e-6)
    # cosines that differ by 2e-6 are equal
    near = reduced([1] * 8, [(1, 1), (1, 1.004), *[(1, 1)] * 6], 1, 2)
    np.testing.assert_allclose(near.weights, equal.weights, atol=1e-6)


TABLE = {
    192: [(252, 36), (179, 32), (132, 23), (97, 17)],
    128: [(168, 24), (120, 21), (88, 15), (65, 11)],
    64: [(84, 12), (60, 10), (44, 8), (32, 6)],
    32: [(42, 6), (30, 5), (22, 4), (16, 3)],
}


@pytest.mark.parametrize("average", TABLE)
def test_schedule_is_the_published_one(average):
    method = VisionDrop(budget=average / 576).resolve(model_config(32))
    splits = []
    for stage in method.stages:
        left = method._count(stage, 576)
        contextual = method._count_contextual(stage, left)[576]
        splits.append((left[576] - contextual, contextual))
    assert splits == TABLE[average]
    assert [stage.layer for stage in method.stages] == [0, 8, 16, 24]


def test_default_is_the_row_of_a_third():
    default = VisionDrop().resolve(model_config(32))
    assert [default._count(stage, 576)[576] for stage in default.stages] == [288, 211, 155, 114]
    assert VisionDrop().resolve(model_config(28)).layers == (0, 7, 14, 21)
    assert default.resolve(model_config(32)) == default


def test_official_run_through_four_cuts():
    method = VisionDrop(budget=32 / 576).resolve(model_config(32))
    layout = make_layout([(2, (24, 24), 3)])
    for number, (layer, split) in enumerate(zip(method.layers, TABLE[32], strict=True)):
        drawn = draw(layout, seed=number)
        if number == 0:
            signals = {TowerAttention(): drawn[TowerAttention()], TowerKeys(): drawn[TowerKeys()]}
            scores = np.asarray(drawn[TowerAttention()].matrix, np.float64)[0].mean(axis=0)
            metric = np.asarray(drawn[TowerKeys()], np.float64)[0]
        else:
            scores, keys = drawn[AttentionReceived(1)], drawn[Keys(1)]
            signals = {AttentionReceived(layer): scores, Keys(layer): keys}
            scores, metric = scores[0], np.asarray(keys.visual, np.float64)[0].mean(axis=1)
        chosen = run_stage(method, layout, signals, number)
        assert chosen.valid.sum() == chosen.valid.shape[1] == sum(split)
        check(chosen, [reference(np.asarray(scores), metric, *split)], len(scores))
        layout = shorten(layout, chosen)


SAMPLES = [PAIR, OTHER, VIDEO, (5, (1, 1), 2, (2, 2), 2)]


def test_both_kinds_of_cut_equal_the_slow_reference():
    layout = make_layout(SAMPLES, visual_slots=50)
    signals = draw(layout)
    first = run_stage(LATE, layout, signals)
    expected = []
    for row, count in enumerate(np.asarray(layout.visual_count)):
        rows = {}
        for image in range(layout.image_id[row].max() + 1):
            members = np.flatnonzero(layout.image_id[row] == image)
            n, start = len(members), members[0]
            left = max(1, round(0.7 * n))
            matrix = np.asarray(signals[TowerAttention()].matrix, np.float64)[row]
            frame = np.asarray(layout.grid)[row, members, 0]
            same = frame[:, None] == frame  # the tower attends within a frame
            scores = (matrix[members][:, members] * same).sum(axis=0) / same.sum(axis=0)
            metric = np.asarray(signals[TowerKeys()], np.float64)[row, members]
            own = reference(scores, metric, left - round(left / 8), round(left / 8))
            for token, weights in own.items():
                rows[token + start] = np.zeros(count)
                rows[token + start][members] = weights
        expected.append(rows)
    check(first, expected, 50)

    layout = shorten(layout, first)
    signals = draw(layout)
    second, expected = run_stage(LATE, layout, signals, 1), []
    for row, count in enumerate(np.asarray(layout.visual_count)):
        n = int(layout.visual_valid[row].sum())
        left = round(0.5 * count)
        scores = np.asarray(signals[AttentionReceived(1)], np.float64)[row, :n]
        metric = np.asarray(signals[Keys(1)].visual, np.float64)[row, :n].mean(axis=1)
        expected.append(reference(scores, metric, left - round(0.15 * left), round(0.15 * left)))
    check(second, expected, layout.visual_index.shape[1])


def test_cut_that_meets_fewer_tokens_changes_nothing():
    layout = make_layout([OTHER])
    layout = shorten(layout, run_stage(LATE, layout, draw(layout)))
    short = layout.replace(visual_valid=layout.visual_valid & (jnp.arange(25) < 18))
    chosen = run_stage(LATE, short, draw(short), 1)
    assert listed(chosen) == [list(range(18))]
    np.testing.assert_array_equal(chosen.weights[0], np.eye(18, 25))
    # More tokens than the first cut leaves, as after a modifier: the count is that of the cut.
    whole = make_layout([OTHER])
    assert len(listed(run_stage(LATE, whole, draw(whole), 1))[0]) == 18


def test_keep_ratio_one_keeps_all():
    method, layout = VisionDrop(keep_ratio=1).resolve(model_config(5)), make_layout([PAIR, VIDEO])
    for number, stage in enumerate(method.stages):
        requests = method.requests(stage)
        chosen = run_stage(method, layout, dict.fromkeys(requests, jnp.zeros(())), number)
        assert listed(chosen) == [list(range(41)), list(range(24))]
        assert chosen.weights is None
    assert VisionDrop(budget=1).resolve(model_config(28)).ratios == (1, 1, 1, 1)
    empty = make_layout([(5,)])
    assert LATE.capacity(LATE.stages[0], 0, 0) == 0
    for number in (0, 1):
        assert listed(run_stage(LATE, empty, draw(empty), number)) == [[]]


@pytest.mark.parametrize("share", [0.5, 0.33, 0.22, 0.11, 0.9])
@pytest.mark.parametrize("depth", [5, 28, 32])
def test_budget_is_the_mean_over_layers(share, depth):
    method = VisionDrop(budget=share).resolve(model_config(depth))
    assert budget.measure(method.stages, depth) == pytest.approx(share, abs=1e-6)
    falls = np.array(method.ratios[1:]) / method.ratios[:-1]
    below = np.array(method.ratios[:-1]) < 1
    np.testing.assert_allclose(falls[below], 0.73362)


def test_fields():
    late = VisionDrop(keep_ratio=0.2).resolve(model_config(28))
    np.testing.assert_allclose(late.ratios[-2:], [0.2 / 0.73362, 0.2])
    assert [stage.renumber for stage in late.stages] == [False] * 4
    plain = model_config(28)
    decoder = dataclasses.replace(plain.decoder, rope=RopeConfig(16, 1e4))
    plain = dataclasses.replace(plain, decoder=decoder)
    assert all(stage.renumber for stage in VisionDrop().resolve(plain).stages)
    kept = VisionDrop(positions="original").resolve(plain)
    assert not any(stage.renumber for stage in kept.stages)
    assert VisionDrop(layers=(0, 4)).resolve(plain).ratios == pytest.approx((0.5, 0.36681))
    with pytest.raises(MethodError, match="positions must be one of"):
        VisionDrop(positions="absolute")
    with pytest.raises(MethodError, match="positions is not set"):
        _ = VisionDrop(layers=(0,), ratios=(0.5,)).stages
    with pytest.raises(MethodError, match="exclude each other"):
        VisionDrop(budget=0.5, keep_ratio=0.5)


def test_half_precision_keys_are_compared_in_float32():
    layout = make_layout([OTHER])
    signals = draw(layout)
    keys = signals[Keys(1)].visual.astype(jnp.bfloat16)
    results = []
    for visual in (keys, keys.astype(jnp.float32)):
        signals[Keys(1)] = TokenVectors(visual, visual[:, :0])
        results.append(run_stage(LATE, layout, signals, 1))
    jax.tree.map(np.testing.assert_array_equal, *results)
