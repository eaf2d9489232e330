"""SparseVLM: cuts against a slow reference, counts and schedules against the published ones."""

import dataclasses
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.methods import budget
from ivc_jax.methods.base import MethodError
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import (
    AttentionRows,
    Carry,
    Embeddings,
    Hidden,
    RopeSettings,
    TokenVectors,
)
from ivc_jax.methods.sparsevlm import SparseVLM
from ivc_jax.methods.testing import ROPE, listed, run_stage, shorten

H, D = 4, 6
PAIR = (3, (4, 5), 4, (3, 7), 5)
OTHER = (2, (2, 3, 6), 6)  # a video
CUTS = {"layers": (1, 2, 4), "ratios": (288 / 576, 150 / 576, 60 / 576)}
WIDE = {"text_slots": 31, "visual_slots": 100, "num_images": 4, "num_positions": 99}
PLUS = {"recycle": False, "gravity": True, "priority_heads": 14 / 32}


def draw(sample, seed):
    """Draw embeddings by slot, and hidden states and causal attention of three cuts."""
    draws, slots = np.random.default_rng(seed), len(lay_out(sample)["positions"])
    attention = np.tril(draws.random((3, H, slots, slots), np.float32))
    hidden = draws.normal(size=(3, slots, D)).astype(np.float32)
    return draws.normal(size=(slots, D)).astype(np.float32), hidden, attention


def signals_of(method, number, layout, data, carry=None):
    """Gather the signals of a cut for a layout; padding holds NaN."""
    visual = np.asarray(layout.visual_index), np.asarray(layout.visual_valid)
    text = np.asarray(layout.text_index), np.asarray(layout.text_valid)

    def gather(tables):
        def side(index, valid):
            rows = zip(tables, index, valid, strict=True)
            return jnp.asarray([np.where(v[:, None], t[i], np.nan) for t, i, v in rows])

        return TokenVectors(side(*visual), side(*text))

    embeddings, hidden, attention = zip(*data, strict=True)
    rows = [
        np.where(asks[:, None] & seen, table[number][:, asked[:, None], slots], np.nan)
        for table, asked, asks, slots, seen in zip(attention, *text, *visual, strict=True)
    ]
    return {
        AttentionRows(method.stages[number].layer - 1, "text"): jnp.asarray(np.stack(rows)),
        Hidden(): gather([table[number] for table in hidden]),
        Carry() if number else Embeddings(): carry if number else gather(embeddings),
    }


def run_all(method, samples, data, **bucket):
    """Run every cut; by cut and sample the unpruned indices kept and the rows of weights."""
    layout, carry, results = make_layout(samples, **bucket), None, []
    for number in range(len(method.stages)):
        chosen = run_stage(method, layout, signals_of(method, number, layout, data, carry), number)
        carry, found = chosen.carry, []
        for b, kept in enumerate(listed(chosen)):
            origin = np.asarray(layout.visual_origin[b])
            weights = np.zeros((0, 0))
            if chosen.weights is not None:
                assert not np.asarray(chosen.weights)[b, len(kept) :].any()
                assert not np.asarray(chosen.weights)[b][
                    :, ~np.asarray(layout.visual_valid[b])
                ].any()
                valid = int(layout.visual_valid[b].sum())
                weights = np.asarray(chosen.weights)[b, : len(kept), :valid]
            found.append((origin[kept].tolist(), weights))
        results.append(found)
        layout = shorten(layout, chosen)
    return results


def reference_peaks(X, c):
    """Cluster in float64 by the definition; the centre of every point."""
    n = len(X)
    d = np.sqrt(((X[:, None] - X) ** 2).sum(-1) / X.shape[1])
    rho = [np.exp(-np.mean(np.sort(row)[:c] ** 2)) for row in d]
    delta = []
    for i in range(n):
        above = [d[i, j] for j in range(n) if (rho[j], -j) > (rho[i], -i)]
        delta.append(min(above, default=d.max()))
    centres = sorted(np.argsort(-np.multiply(rho, delta), kind="stable")[:c].tolist())
    return [i if i in centres else centres[np.argmin(d[i, centres])] for i in range(n)]


def reference(method, sample, data):
    """Follow the published steps token by token in float64."""
    row, (embeddings, hidden, attention) = lay_out(sample), data
    visual, ids = row["visual"], np.array(row["positions"])
    text = [t for t in row["text"] if t > visual[0]]
    P = np.exp(embeddings[visual].astype(float) @ embeddings[text].T.astype(float))
    r = (P / P.sum(1, keepdims=True)).mean(0)
    asking = [t for t, score in zip(text, r, strict=True) if score > r.mean()]
    present, results = list(range(len(visual))), []
    for number, ratio in enumerate(method.ratios):
        slots = [visual[i] for i in present]
        A = attention[number].astype(float)[:, asking][:, :, slots]
        if method.gravity:
            for t, i in np.ndindex(len(asking), len(slots)):
                apart = (ids[asking[t]] - ids[slots[i]])[ROPE.axis_of_plane]
                pull = 2 / math.sqrt(ROPE.head_dim) * np.cos(apart * ROPE.frequencies).sum()
                A[:, t, i] /= max(pull, 0.5)
        if method.priority_heads:
            count = max(1, round(method.priority_heads * H))
            A = A[np.argsort(-A.sum((1, 2)), kind="stable")[:count]]
        order = np.argsort(-A.mean((0, 1)), kind="stable").tolist()
        wanted = round(Fraction(round(ratio * 576), 576) * len(visual))
        k = min(wanted, len(present) - 1)
        parts = {i: {i: 1.0} for i in order[:k]}
        if method.recycle:
            pool = sorted(order[k:][: int((len(present) - k) * method.recycle_share) + 1])
            c = int(len(pool) * method.cluster_share) + 1
            X = hidden[number][[slots[i] for i in pool]].astype(float)
            centres = reference_peaks(X, c)
            for centre in set(centres):
                members = [pool[j] for j, own in enumerate(centres) if own == centre]
                parts[pool[centre]] = {i: 1 / (len(members) + 1e-6) for i in members}
        weights = np.zeros((len(parts), len(present)))
        for line, kept in zip(weights, sorted(parts), strict=True):
            for i, share in parts[kept].items():
                line[i] = share
        present = [present[i] for i in sorted(parts)]
        results.append((present, weights))
    return results


@pytest.mark.parametrize(
    ("fields", "order", "bucket"),
    [
        ({}, (PAIR, OTHER), {}),
        ({"recycle_share": 0.6, "cluster_share": 0.25}, ((5,), OTHER, PAIR), WIDE),
        (PLUS, (PAIR, (5,), OTHER), WIDE),
    ],
    ids=["v1", "many clusters", "v2"],
)
def test_cuts_equal_the_slow_reference_in_any_company(fields, order, bucket):
    method = SparseVLM(**CUTS, **fields)
    data = [draw(sample, seed=len(sample)) for sample in order]
    cuts = run_all(method, order, data, **bucket)
    for b, sample in enumerate(order):
        if sample == (5,):
            assert [found[b][0] for found in cuts] == [[], [], []]
            continue
        for found, (kept, weights) in zip(cuts, reference(method, sample, data[b]), strict=True):
            assert found[b][0] == kept
            if method.recycle:
                np.testing.assert_allclose(found[b][1], weights, atol=1e-6)


@pytest.mark.parametrize(
    ("recycle", "kept", "left"),
    [
        (True, (300, 200, 110), [309, 204, 113]),
        (True, (303, 110, 36), [312, 117, 39]),
        (True, (238, 48, 26), [249, 55, 27]),
        (True, (66, 30, 17), [82, 32, 18]),
        (False, (300, 200, 118), [300, 200, 118]),
        (False, (66, 34, 20), [66, 34, 20]),
    ],
)
def test_counts_of_the_published_lists(recycle, kept, left):
    ratios = tuple(count / 576 for count in kept)
    method = SparseVLM(layers=(3, 7, 16), ratios=ratios, recycle=recycle)
    assert [method.capacity(stage, 576, 1) for stage in method.stages] == left
    # The shares that budgets go by forget the roundings.
    np.testing.assert_allclose([576 * stage.keep_ratio for stage in method.stages], left, atol=1.3)


def test_a_run_keeps_the_published_counts():
    method, sample = SparseVLM().resolve(model_config()), ((24, 24), 3)
    layout = make_layout([sample])
    chosen = run_stage(method, layout, signals_of(method, 0, layout, [draw(sample, 0)]))
    assert len(listed(chosen)[0]) == 309
    whole = chosen.weights[0].max(axis=1) == 1
    assert whole.sum() == 300
    assert (chosen.weights[0][~whole] > 0).sum() == 83  # members of the nine clusters


def test_halves_of_the_published_lists_are_exact():
    method = SparseVLM(layers=(3,), ratios=(300 / 576,), recycle=False)
    assert method.capacity(method.stages[0], 120, 1) == 62  # 62.5; in floats 62.50000000000001
    method = SparseVLM(layers=(3,), ratios=(110 / 576,), recycle=False)
    assert method.capacity(method.stages[0], 144, 1) == 28  # 27.5


def test_ratio_one_keeps_all_but_what_is_not_recycled():
    samples = [PAIR, OTHER, ((1, 1), 2)]
    data = [draw(sample, seed) for seed, sample in enumerate(samples)]
    method = SparseVLM(keep_ratio=1, layers=(1, 2, 4)).resolve(model_config())
    method = dataclasses.replace(method, layers=(1, 2), ratios=(1, 1))
    for found in run_all(method, samples, data):
        for (kept, weights), count in zip(found, (41, 36, 1), strict=True):
            assert kept == list(range(count))
            np.testing.assert_allclose(weights, np.eye(count), atol=2e-6)
    lossy = dataclasses.replace(method, recycle=False)
    counts = [[lossy.capacity(stage, size, 1) for size in (0, 1, 41)] for stage in lossy.stages]
    assert counts == [[0, 1, 40], [0, 1, 39]]


def test_tokens_that_a_modifier_brings_in_make_no_more_clusters():
    method, data = SparseVLM(**CUTS), [draw(PAIR, 0)]
    layout = make_layout([PAIR])  # as if nothing had been cut before the third
    carry = layout.text_valid
    signals = signals_of(method, 2, layout, data, carry)
    chosen = run_stage(method, layout, signals, 2, num_keep=20)
    assert chosen.valid.sum() == method.capacity(method.stages[2], 41, 2) == 5
    np.testing.assert_array_equal(chosen.carry, carry)


@pytest.mark.parametrize("num_layers", [28, 5])
@pytest.mark.parametrize("recycle", [True, False])
@pytest.mark.parametrize("wanted", [0.5, 1 / 3, 2 / 9])
def test_budgets_are_met_with_the_recycled_tokens(wanted, recycle, num_layers):
    config = model_config(num_layers)
    method = SparseVLM(budget=wanted, recycle=recycle).resolve(config)
    assert (method.budget, method.keep_ratio, method.positions) == (None, None, "original")
    assert abs(budget.measure(method.stages, num_layers) - wanted) < 1e-6
    for size in (144, 576):
        held = [size] * num_layers
        for stage in method.stages:
            rest = num_layers - stage.layer
            held[stage.layer :] = [method.capacity(stage, size, 1)] * rest
        assert abs(sum(held) / num_layers / size / wanted - 1) < 0.015


def test_schedules_follow_the_nearest_published_list():
    config = model_config(32)
    for wanted, kept in (
        (0.36, (300, 200, 110)),
        (0.24, (303, 110, 36)),
        (0.187, (238, 48, 26)),
        (0.13, (66, 30, 17)),
    ):
        ratios = SparseVLM(budget=wanted).resolve(config).ratios
        np.testing.assert_allclose(np.divide(ratios, ratios[2]), np.divide(kept, kept[2]))
    method = SparseVLM(keep_ratio=0.19).resolve(config)
    assert abs(method.stages[2].keep_ratio - 0.19) < 1e-12
    np.testing.assert_allclose(method.ratios[1] / method.ratios[0], 2 / 3, atol=1e-6)
    assert SparseVLM(recycle=False).resolve(config).ratios == (300 / 576, 200 / 576, 118 / 576)


def test_layers_and_positions_depend_on_the_model():
    layers = {n: SparseVLM().resolve(model_config(n)).layers for n in (32, 28, 5)}
    assert layers == {32: (3, 7, 16), 28: (3, 6, 14), 5: (1, 2, 3)}
    flat = SparseVLM().resolve(model_config(32, sections=None))
    assert all(stage.renumber for stage in flat.stages)
    assert not any(stage.renumber for stage in SparseVLM().resolve(model_config()).stages)
    forced = SparseVLM(positions="reindex").resolve(model_config())
    assert all(stage.renumber for stage in forced.stages)
    rows = AttentionRows(2, "text"), Hidden()
    assert forced.requests(forced.stages[0]) == (Embeddings(), *rows)
    plus = dataclasses.replace(forced, **PLUS)
    assert plus.requests(plus.stages[1]) == (Carry(), AttentionRows(5, "text"), RopeSettings())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (0, 3), "ratios": (0.5, 0.2)}, "cannot cut before layer 1"),
        ({"recycle_share": 0.0}, "recycle_share must be in"),
        ({"cluster_share": 1.0}, "cluster_share must be in"),
        ({"priority_heads": 0}, "priority_heads must be in"),
        ({"positions": "relative"}, "positions must be one of"),
        ({"budget": 0.5, "keep_ratio": 0.5}, "exclude each other"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(MethodError, match=message):
        SparseVLM(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": 0.11}, "budget=0.11 cannot be reached on 5 layers"),
        ({"keep_ratio": 0.001}, "asks for less than what is recycled"),
    ],
)
def test_targets_out_of_reach(fields, message):
    with pytest.raises(MethodError, match=message):
        SparseVLM(**fields).resolve(model_config(5))
