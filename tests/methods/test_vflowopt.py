"""VFlowOpt against its worked numbers, the released rates and a slow reference."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config
from hypothesis import given, settings
from hypothesis import strategies as st

from ivc_jax.methods import MethodError, budget
from ivc_jax.methods.drawn import FixedAttention, make_layout
from ivc_jax.methods.requests import Carry, PixelEntropy, TowerAttention
from ivc_jax.methods.testing import listed, run_stage, shorten
from ivc_jax.methods.vflowopt import (
    VFlowOpt,
    bound_cells,
    number_cells,
    rank_late_first,
    recycle,
    solve_third_rate,
    weigh,
)

SINGLE = (3, (5, 7), 4)
PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (1, (3, 2, 4), 2)
ONE = (2, (1, 1), 2)
# Rates .6, .7, .5.
SMALL = VFlowOpt(layers=(0, 1, 2), ratios=(0.6, 0.42, 0.21), threshold=1.1, cell=2.3, alpha=0.3)


def draw(layout, seed=0, spoil=np.nan):
    """Draw attention and entropy by sample and token alone; padding of the entropy is spoiled."""
    V, matrices, entropies = layout.visual_slots, [], []
    for count in np.asarray(layout.visual_count):
        random = np.random.default_rng([seed, count])
        matrix, entropy = np.zeros((V, V)), np.full(V, spoil, np.float64)
        drawn = random.random((count, count)) ** 3
        matrix[:count, :count] = drawn / drawn.sum(axis=1, keepdims=True)
        entropy[:count] = random.uniform(0, 8, count)
        matrices.append(matrix)
        entropies.append(entropy)
    matrix, entropy = (jnp.asarray(np.stack(x), jnp.float32) for x in (matrices, entropies))
    return {TowerAttention(): FixedAttention(matrix, layout), PixelEntropy(): entropy}


def run_all(method, layout, signals):
    """Run the three cuts: what is left, by unpruned index, and the first selection."""
    chosen = first = run_stage(method, layout, signals)
    kept = [listed(chosen)]
    for number in (1, 2):
        layout = shorten(layout, chosen)
        chosen = run_stage(method, layout, {Carry(): chosen.carry}, number)
        origin = np.asarray(layout.visual_origin)
        kept.append([origin[row][index].tolist() for row, index in enumerate(listed(chosen))])
    return kept, first


def reference_importance(matrix, entropy, threshold, alpha, combine="mean"):
    """Score one image in float64."""
    received = matrix.mean(axis=0)
    asked = received > threshold * received.mean()
    rows = matrix[asked] if asked.any() else matrix
    worth = rows.sum(axis=0) if combine == "sum" else rows.mean(axis=0)
    raised = np.exp(entropy)
    return worth + alpha * raised / raised.sum()


def drop(worth, present, rate):
    """Drop the least of the present tokens of an image, lower indices first."""
    order = sorted(present, key=lambda token: (worth[token], token))
    return sorted(order[min(round(len(present) * (1 - rate)), len(present) - 1) :])


def reference_first(worth, cells, rate, cell):
    """Keep and recycle in one image; {token: weights}."""
    n = len(worth)
    left = max(n - round(n * (1 - rate)), 1)
    pool = sorted(range(n), key=lambda token: (worth[token], token))
    pool = pool[: n - max(left - int(n // cell**2), 0)]
    rows = {token: np.eye(n)[token] for token in range(n) if token not in pool}
    groups = {}
    for token in sorted(pool):
        groups.setdefault((cells[token][0] // cell, cells[token][1] // cell), []).append(token)
    for group in groups.values():
        lead, mass = max(group, key=lambda token: (worth[token], -token)), np.zeros(n)
        mass[group] = np.maximum(worth[group], 1e-9)
        rows[lead] = mass / mass.sum()
    return rows


def example():
    i = np.arange(12)
    logits = 1.5 * np.sin(1.3 * np.outer(i, i) + 0.7 * i) + np.where((i == 5) | (i == 9), 2, 0)
    matrix = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    entropy = [2, 5, 5.5, 1, 3, 6, 4, 2.5, 1.5, 5, 4.5, 0.5]
    layout = make_layout([(1, (3, 4), 2)])
    received = FixedAttention(jnp.asarray(matrix[None], jnp.float32), layout)
    return layout, {TowerAttention(): received, PixelEntropy(): jnp.array([entropy])}


EXAMPLE = VFlowOpt(layers=(0, 1, 2), ratios=(0.5, 0.375, 0.1875), threshold=1.2, alpha=0.2, cell=2)


def test_worked_importance():
    layout, signals = example()
    received, entropy = signals.values()
    rec = [0.04224, 0.06692, 0.05956, 0.06775, 0.06014, 0.10778]
    rec += [0.06064, 0.06352, 0.05852, 0.27622, 0.06794, 0.06878]
    np.testing.assert_allclose(received()[0], rec, atol=2e-5)
    worth = weigh(received, layout, 1.2, entropy, 0.2)
    expected = [0.06965, 0.10498, 0.12204, 0.04691, 0.03137, 0.22971]
    expected += [0.02962, 0.02927, 0.05183, 0.42281, 0.04380, 0.01800]
    np.testing.assert_allclose(worth[0], expected, atol=2e-5)
    total = weigh(received, layout, 1.2, entropy, 0.2, "sum")[0, jnp.array([5, 9, 2])]
    np.testing.assert_allclose(total, [0.38852, 0.81955, 0.20108], atol=2e-5)
    # Nobody is that widely attended: all are asked.
    every = weigh(received, layout, 99.0)
    np.testing.assert_allclose(every, received(), atol=1e-7)
    every = weigh(received, layout, 99.0, combine="sum")
    np.testing.assert_allclose(every, 12 * received(), atol=1e-6)


def test_worked_cuts():
    layout, signals = example()
    kept, first = run_all(EXAMPLE, layout, signals)
    assert kept == [[[1, 2, 3, 5, 8, 9, 10]], [[1, 2, 5, 8, 9]], [[2, 5, 9]]]
    states = np.stack([np.arange(12), np.cos(np.arange(12))], axis=1)
    merged = np.asarray(first.weights[0]) @ states
    at = [1, 3, 8, 10]
    expected = [[1.11869, 0.51393], [4.94657, 0.03846], [8, -0.14550], [10.29122, -0.59343]]
    np.testing.assert_allclose(merged[[0, 2, 4, 6]], expected, atol=2e-5)
    np.testing.assert_allclose(merged[[1, 3, 5]], states[[2, 5, 9]], atol=2e-5)
    # A recycled token keeps the importance of the token whose slot it has.
    worth = weigh(signals[TowerAttention()], layout, 1.2, signals[PixelEntropy()], 0.2)
    np.testing.assert_array_equal(first.carry.importance[0, jnp.array(at)], worth[0, jnp.array(at)])
    assert first.carry.count.tolist() == [[7] * 12]
    summed = run_stage(dataclasses.replace(EXAMPLE, importance="sum"), layout, signals)
    assert summed.carry.importance[0, 9] == pytest.approx(0.81955, abs=2e-5)


def test_third_rate():
    assert solve_third_rate(0.25, 0.3, 0.8, (9, 9, 10)) == pytest.approx(0.89167, abs=5e-6)
    assert solve_third_rate(0.1, 0.11662, 1.0, (9, 9, 10)) == pytest.approx(0.6011, abs=5e-4)
    assert solve_third_rate(0.9, 0.5, 0.5, (9, 9, 10)) == 1
    assert solve_third_rate(0.1, 0.5, 1.0, (9, 9, 10)) < 0


def test_ties_drop_the_lower_index():
    worth = jnp.array([[0.2, 0.5, 0.2, 0.5, 0.2, 0.1]])
    segment = jnp.array([[0, 0, 0, 0, 0, -1]])
    assert rank_late_first(worth, segment, segment >= 0).tolist() == [[4, 1, 3, 0, 2, 6]]
    # ... but the first of equals represents a cell.
    keep = jnp.array([[False, True, False, True, False, False]])
    pool = jnp.array([[True, False, True, False, True, False]])
    chosen = recycle(worth, keep, pool, jnp.array([[0, 0, 0, 0, 1, 1]]), 5)
    assert listed(chosen) == [[0, 1, 3, 4]]
    np.testing.assert_allclose(chosen.weights[0, 0], [0.5, 0, 0.5, 0, 0, 0])
    below = recycle(-worth, keep, pool, jnp.zeros((1, 6), jnp.int32), 5)
    np.testing.assert_allclose(below.weights[0, 0], [1 / 3, 0, 1 / 3, 0, 1 / 3, 0], atol=1e-6)


def test_equal_tokens_are_dropped_from_the_front_at_every_cut():
    layout = make_layout([(1, (4, 5))])
    method = dataclasses.replace(SMALL, alpha=0, recycle=False)
    even = FixedAttention(jnp.full((1, 20, 20), 0.05), layout)
    kept, _ = run_all(method, layout, {TowerAttention(): even})
    # 20 - 8, 12 - round(3.6), 8 - round(4.0)
    assert kept == [[list(range(20 - count, 20))] for count in (12, 8, 4)]


SAMPLES = [SINGLE, PAIR, VIDEO, ONE, (3, (6, 6), 2)]


@pytest.mark.parametrize(("threshold", "alpha"), [(1.1, 0.3), (1.35, -0.3)])
def test_all_cuts_equal_the_slow_reference(threshold, alpha):
    method = dataclasses.replace(SMALL, threshold=threshold, alpha=alpha)
    layout = make_layout(SAMPLES, visual_slots=50)
    signals = draw(layout)
    kept, first = run_all(method, layout, signals)
    for row, count in enumerate(np.asarray(layout.visual_count)):
        image = np.asarray(layout.image_id)[row, :count]
        frame = np.asarray(layout.grid)[row, :count, 0]
        expected, rows = [set(), set(), set()], {}
        for number in range(image.max() + 1):
            members = np.flatnonzero(image == number)
            worth = np.zeros(count)
            for time in range(frame[members].max() + 1):
                part = members[frame[members] == time]
                matrix = np.asarray(signals[TowerAttention()].matrix, np.float64)[row]
                entropy = np.asarray(signals[PixelEntropy()], np.float64)[row, part]
                worth[part] = reference_importance(matrix[part][:, part], entropy, threshold, alpha)
            worth = worth[members]
            if image.max() == 0 and frame.max() == 0:
                cells = np.asarray(layout.grid)[row, :count, 1:]
                rows = reference_first(worth, cells, 0.6, 2.3)
                present = sorted(rows)
            else:
                present = drop(worth, range(len(members)), 0.6)
                rows |= {members[token]: np.eye(count)[members[token]] for token in present}
            for left, rate in zip(expected, (None, 0.7, 0.5), strict=True):
                present = present if rate is None else drop(worth, present, rate)
                left.update(members[present].tolist())
        assert [cut[row] for cut in kept] == [sorted(left) for left in expected]
        table = np.zeros((first.index.shape[1], 50))
        for slot, token in enumerate(sorted(rows)):
            table[slot, :count] = rows[token]
        np.testing.assert_allclose(first.weights[row], table, atol=1e-5)


def test_without_recycling_or_pruning_nothing_is_merged():
    layout = make_layout([SINGLE])
    signals = draw(layout)
    plain = dataclasses.replace(SMALL, recycle=False)
    first = run_stage(plain, layout, signals)
    assert first.weights is None
    assert len(listed(first)[0]) == 21
    method = VFlowOpt(keep_ratio=1).resolve(model_config(28))
    layout = make_layout([SINGLE, PAIR, VIDEO])
    kept, first = run_all(method, layout, draw(layout))
    assert first.weights is None
    assert kept == [[list(range(35)), list(range(41)), list(range(24))]] * 3
    assert method.ratios == VFlowOpt(budget=1).resolve(model_config(5)).ratios == (1, 1, 1)


def test_a_modifier_beside_it_does_not_change_the_counts():
    layout = make_layout([SINGLE])
    chosen = run_stage(SMALL, layout, draw(layout))
    own = listed(chosen)[0]
    more = run_stage(SMALL, layout, {Carry(): chosen.carry}, 1)  # every token came back
    assert len(listed(more)[0]) == len(own) - round(len(own) * (1 - 0.7))


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    cell=st.sampled_from([1.0, 1.3, 2.5, 11.757]),
)
@settings(max_examples=60, deadline=None)
def test_no_grid_touches_more_cells_than_its_bound(shape, cell):
    rows, columns = shape
    touched = {(row // cell, column // cell) for row in range(rows) for column in range(columns)}
    table = bound_cells(cell, 144)
    assert len(touched) <= table[rows * columns] <= rows * columns
    layout = make_layout([(1, shape)], visual_slots=144)
    across = np.floor(np.arange(144) / cell).astype(np.int32)
    numbers = np.asarray(number_cells(layout, across))[0, : rows * columns]
    assert len(set(numbers.tolist())) == len(touched)
    assert table[7] == max(len({n // cell for n in range(7)}), 1)  # a prime has one grid


def test_capacity_is_close():
    wide = VFlowOpt().resolve(model_config(28))
    # 741 of 1,024 tokens, 7 of them in exchange for the cells, at most 88 in one row.
    assert wide.capacity(wide.stages[0], 1024, 1) == 734 + 88
    assert wide.capacity(wide.stages[1], 1024, 1) == 822 - round(822 * 0.25125)


@pytest.mark.parametrize("depth", [5, 28])
@pytest.mark.parametrize("share", [0.5, 0.33, 0.22, 0.11, 0.05, 0.8])
def test_budget_is_the_mean_over_layers(share, depth):
    method = VFlowOpt(budget=share).resolve(model_config(depth))
    assert budget.measure(method.stages, depth) == pytest.approx(share, abs=1e-6)
    assert method.layers == {28: (0, 9, 18), 5: (0, 2, 3)}[depth]


RELEASED = {0.5: (0.72332, 0.74875, 0.487), 0.25: (0.26510, 0.98334, 0.87733)}
RELEASED[0.1] = (0.11662, 1, 0.6011)


@pytest.mark.parametrize("share", RELEASED)
def test_budgets_of_the_paper_give_its_rates(share):
    rates = VFlowOpt(budget=share).resolve(model_config(28))._rates
    np.testing.assert_allclose(rates, RELEASED[share], atol=0.008)
    np.testing.assert_allclose(rates[:2], RELEASED[share][:2], atol=1e-6)


def test_fields():
    default = VFlowOpt().resolve(model_config(28))
    assert default._rates == RELEASED[0.5]
    assert budget.measure(default.stages, 28) == pytest.approx(0.50077, abs=5e-6)
    assert default.requests(default.stages[0]) == (TowerAttention(),)
    assert default.requests(default.stages[2]) == (Carry(),)
    assert SMALL.requests(SMALL.stages[0]) == (TowerAttention(), PixelEntropy())
    assert VFlowOpt(keep_ratio=0.2).resolve(model_config(28)).ratios[-1] == 0.2
    for field, message in (
        ({"cell": 0.5}, "cell >= 1, got 0.5"),
        ({"threshold": -1.0}, "threshold must not be negative"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"importance": "max"}, "importance must be one of"),
        ({"layers": (0, 4)}, "three layers"),
        ({"ratios": (0.5,)}, "three ratios"),
    ):
        with pytest.raises(MethodError, match=message):
            VFlowOpt(**field)
    with pytest.raises(MethodError, match="do not fit"):
        VFlowOpt(budget=0.5).resolve(model_config(2))
