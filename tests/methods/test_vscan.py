"""VScan: the worked numbers, published counts, a slow reference, and both cuts in a row."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.merged import check_merged
from helpers.models import model_config
from helpers.received import fill, fix_attention, list_frames

from ivc_jax.families import list_sizes, parse_config
from ivc_jax.methods import MethodError, budget, parse
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import (
    AttentionRows,
    Carry,
    Embeddings,
    TokenVectors,
    TowerAttention,
)
from ivc_jax.methods.testing import listed, run_stage, shorten
from ivc_jax.methods.vscan import VScan, scan_windows

PAIR = (3, (4, 5), 4, (9, 7), 5)
VIDEO = (2, (3, 3, 4), 2, (2, 9), 6)
SAMPLES = [PAIR, VIDEO, (4, (1, 1), 3, (2, 9)), (2, (8, 9), 6)]
BUCKET = {"text_slots": 31, "visual_slots": 90, "num_images": 4}
D = 12
LLAVA = parse_config(list_sizes()["llava-1.5-7b"])

# The worked examples.
X = [(1, 0), (0.9, 0.1), (0.8, 0.6), (0, 1), (0.1, 1), (1, 1), (-0.2, 1), (1, -0.1), (0.5, -0.5)]
X += [(-1, 0.3), (0.7, 0.7), (0.3, -1), (2, 0.2), (-0.5, -0.5), (0, 2), (1, 0.5)]
EARLY = [0.02, 0.09, 0.03, 0.05, 0.07, 0.04, 0.08, 0.06, 0.10, 0.01, 0.05, 0.02]
LATE = [0.30, 0.02, 0.05, 0.01, 0.04, 0.06, 0.02, 0.03, 0.03, 0.15, 0.01, 0.02, 0.07, 0.02, 0.11]


def method_of(first, second=0.1, **fields):
    fields = {"early_block": 0, "positions": "original", **fields}
    return VScan(layers=(0, 1), ratios=(first, second), **fields)


def run(method, samples, early, late, tokens, **bucket):
    """Run the first cut on what is told of each sample: [n], [n] and [n, D]; padding holds junk."""
    layout = make_layout(samples, **(BUCKET | bucket))
    visual = fill(layout, tokens, np.nan)
    signals = {
        TowerAttention(method.early_block): fix_attention(layout, early),
        TowerAttention(): fix_attention(layout, late),
        Embeddings(): TokenVectors(visual, visual[:, :0]),
    }
    return layout, run_stage(method, layout, signals)


def merge(chosen, tokens):
    count = int(chosen.valid.sum())
    return np.asarray(chosen.weights)[0, :count, : len(tokens)] @ np.array(tokens)


@pytest.mark.parametrize("tokens", [8, 10])
def test_worked_example_with_equal_windows(tokens):
    early, late = [*EARLY, 0.03, 0.12, 0.04, 0.09], [*LATE, 0.06]
    method = method_of(tokens / 16, rule="equal", window=2)
    chosen = run(method, [(2, (4, 4), 1)], [early], [late], [X])[1]
    if tokens == 10:  # two of each window would be eight, of which there is room for five
        assert listed(chosen) == [[0, 1, 5, 6, 9, 12, 13, 14, 15]]
        return
    assert listed(chosen) == [[0, 1, 6, 9, 12, 13, 14, 15]]
    assert chosen.carry.tolist() == [8]
    expected = [(0.83333, -0.2), (0.9, 0.1), (-0.2, 1), (-1, 0.3), (2, 0.2)]
    expected += [(-0.1, -0.75), (0.03333, 1.33333), (0.875, 0.7)]
    np.testing.assert_allclose(merge(chosen, X), expected, atol=1e-5)


def test_worked_example_with_a_ceiling():
    early = [*EARLY, 0.11, 0.12, 0.04]
    method = method_of(8 / 15, window=2)
    samples = [(2, (3, 5), 1)]
    layout, chosen = run(method, samples, [early], [LATE], [X[:15]])
    local = scan_windows(
        jnp.asarray([early + [0.0] * 75], jnp.float32), layout, jnp.full((1, 90), 4), 2
    )
    assert np.flatnonzero(local).tolist() == [1, 6, 12, 13]
    assert listed(chosen) == [[0, 1, 5, 6, 9, 12, 13, 14]]
    expected = [(0.83333, -0.2), (0.9, 0.1), (0.83333, 0.76667), (-0.2, 1), (-1, 0.3)]
    expected += [(2, 0.2), (-0.1, -0.75), (0.03333, 1.33333)]
    np.testing.assert_allclose(merge(chosen, X[:15]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "ratios", "counts"),
    [
        (576, (0.5, 1 / 6), (288, 96)),
        (576, (1 / 3, 1 / 9), (192, 64)),
        (221, (0.333, 0.333 * 0.333), (73, 24)),
        (576, (0.6, 0.6 * 0.67), (345, 231)),
        (1, (0.1, 0.01), (1, 1)),
    ],
)
def test_counts(tokens, ratios, counts):
    method = method_of(*ratios)
    assert tuple(method.capacity(stage, tokens, 1) for stage in method.stages) == counts


@pytest.mark.parametrize(("average", "first"), [(192, 288), (128, 192), (64, 96)])
def test_presets_of_llava(average, first):
    method = parse(f"vscan@{average}").resolve(LLAVA)
    assert method.early_block == 5
    assert method.layers == (0, 16)
    counts = [method.capacity(stage, 576, 1) for stage in method.stages]
    assert counts == [first, first // 3]
    assert all(stage.renumber for stage in method.stages)
    assert TowerAttention(5) in method.requests(method.stages[0])


def find_windows(rows, columns, side):
    """Return the window of every cell, and how many there are."""
    down, across = max(1, rows // side), max(1, columns // side)
    return [
        (min(row // side, down - 1), min(column // side, across - 1))
        for row in range(rows)
        for column in range(columns)
    ], down * across


def scan(scores, rows, columns, wanted, method):
    """Take tokens from the best on, as released."""
    window, count = find_windows(rows, columns, method.window)
    limit = wanted // count if method.rule == "equal" else -(-wanted // count)
    taken, full = [], dict.fromkeys(window, 0)
    for token in sorted(range(len(scores)), key=lambda token: (-scores[token], token)):
        enough = method.rule == "ceiling" and len(taken) == wanted
        if full[window[token]] < limit and not enough:
            taken.append(token)
            full[window[token]] += 1
    return taken


def reference(early, late, tokens, rows, columns, method, total):
    """Follow the first cut of a frame in float64: {kept token: weights of all tokens}."""
    n, unit = len(early), tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    local = scan(early, rows, columns, total // 2, method)
    others = [token for token in range(n) if token not in local]
    others = sorted(others, key=lambda token: (-late[token], token))[: total - total // 2]
    kept = sorted(local + others)
    groups = {token: [token] for token in kept}
    for token in range(n):
        if token not in groups and kept:
            groups[kept[int(np.argmax(unit[kept] @ unit[token]))]].append(token)
    return {token: np.isin(np.arange(n), group) / len(group) for token, group in groups.items()}


def expect(sample, early, late, tokens, method):
    expected = {}
    for members, cells, first in list_frames(sample):
        grid = np.array(cells).max(axis=0) + 1
        own = [values[members].astype(float) for values in (early, late, tokens)]
        total = max(int(len(members) * method.ratios[0]), first)
        for token, weights in reference(*own, *grid, method, total).items():
            expected[members[token]] = dict(zip(members, weights, strict=True))
    return expected


def check(chosen, expected):
    check_merged(chosen, expected)
    assert chosen.carry.tolist() == [len(rows) for rows in expected]


def draw(samples, seed):
    random = np.random.default_rng(seed)
    counts = [len(lay_out(sample)["image"]) for sample in samples]
    shapes = [[(n,) for n in counts]] * 2 + [[(n, D) for n in counts]]
    draws = random.random, random.random, random.normal
    return [
        [draw(size=shape).astype(np.float32) for shape in each]
        for draw, each in zip(draws, shapes, strict=True)
    ]


@pytest.mark.parametrize(
    ("first", "fields"),
    [
        (0.5, {}),
        (0.25, {"window": 2}),
        (0.8, {"rule": "equal", "window": 3}),
        (0.15, {"rule": "equal", "window": 2}),
        (0.02, {}),
        (0.99, {"window": 1}),
    ],
)
def test_first_cut_equals_the_slow_reference(first, fields):
    method = method_of(first, 0.01, **fields)
    for seed in range(2):
        drawn = draw(SAMPLES, seed)
        expected = [expect(*each, method) for each in zip(SAMPLES, *drawn, strict=True)]
        check(run(method, SAMPLES, *drawn)[1], expected)


@pytest.mark.parametrize("grid", [(12, 12), (15, 19), (24, 24)])
@pytest.mark.parametrize("fields", [{}, {"rule": "equal", "window": 6}])
def test_large_pictures_equal_the_slow_reference(grid, fields):
    samples, method = [(1, grid, 1)], method_of(1 / 3, 1 / 9, **fields)
    drawn = draw(samples, grid[1])
    expected = expect(samples[0], *(each[0] for each in drawn), method)
    check(run(method, samples, *drawn, visual_slots=580)[1], [expected])


def test_half_of_the_tokens_always_fit_under_the_ceiling():
    """Windows at the border may be larger, never smaller."""
    for rows in (1, 3, 7, 11, 15, 31):
        for columns in range(1, 60, 2):
            window, count = find_windows(rows, columns, 4)
            limit = -(-(rows * columns // 2) // count)
            sizes = np.unique(window, axis=0, return_counts=True)[1]
            assert np.minimum(sizes, limit).sum() >= rows * columns // 2


def test_second_cut_ranks_all_images_by_the_text():
    method = method_of(0.5, 0.2)
    second = method.stages[1]
    layout, chosen = run(method, SAMPLES, *draw(SAMPLES, 5))
    layout = shorten(layout, chosen)
    valid = np.asarray(layout.visual_valid)
    rows = np.random.default_rng(0).random((4, 3, 1, valid.shape[1])).astype(np.float32)
    asked = AttentionRows(1, "last"), Carry()
    assert method.requests(second) == asked
    signals = {asked[0]: jnp.asarray(rows), Carry(): chosen.carry}
    kept = listed(run_stage(method, layout, signals, 1))
    for row, own in enumerate(kept):
        present = int(valid[row].sum())
        score = rows[row, :, 0].mean(axis=0)[:present]
        count = max(1, int(round(0.4 * present, 6)))
        assert own == sorted(np.argsort(-score, kind="stable")[:count].tolist())
    # tokens that a modifier adds do not count
    fewer = {**signals, Carry(): chosen.carry - 10}
    kept = listed(run_stage(method, layout, fewer, 1))
    assert len(kept[0]) == int(round(0.4 * (int(chosen.carry[0]) - 10), 6))


def test_keep_ratio_one_keeps_all_as_it_is():
    method = VScan(keep_ratio=1.0).resolve(model_config(8))
    layout = make_layout(SAMPLES, **BUCKET)
    for number, stage in enumerate(method.stages):
        signals = dict.fromkeys(method.requests(stage), jnp.zeros(()))
        if number:
            signals[Carry()] = chosen.carry
            signals[AttentionRows(stage.layer)] = jnp.ones((4, 2, 1, 90))
        chosen = run_stage(method, layout, signals, number)
        assert [len(kept) for kept in listed(chosen)] == [83, 54, 19, 72]
        assert chosen.weights is None


@pytest.mark.parametrize("share", [0.5, 0.33, 0.11, 0.8])
@pytest.mark.parametrize("depth", [5, 28, 32])
def test_budget_is_the_mean_over_layers(share, depth):
    method = VScan(budget=share).resolve(model_config(depth))
    assert method.layers == (0, depth // 2)
    assert budget.measure(method.stages, depth) == pytest.approx(share, abs=1e-6)
    first, last = method.ratios
    if first < 1:
        assert last / first == pytest.approx(1 / 3)
        assert depth % 2 or first == pytest.approx(1.5 * share)


def test_early_block():
    config = model_config(8)
    depths = {32: 7, 24: 5, 23: 5, 8: 1, 1: 0}
    for depth, block in depths.items():
        vision = dataclasses.replace(config.vision, depth=depth)
        found = VScan().resolve(dataclasses.replace(config, vision=vision))
        assert found.early_block == block
    windows = parse_config(list_sizes()["qwen2.5-vl-7b"])
    method = VScan().resolve(windows)
    assert method.early_block == 7
    assert method.layers == (0, 14)
    assert method.ratios == pytest.approx((1 / 2, 1 / 6))
    assert not any(stage.renumber for stage in method.stages)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (1, 2)}, "two cuts, the first at layer 0"),
        ({"ratios": (0.5,)}, "give two ratios"),
        ({"rule": "quota"}, "rule must be one of"),
        ({"window": 0}, "window must be at least 1"),
        ({"early_block": -1}, "early_block must not be negative"),
        ({"budget": 0.5, "keep_ratio": 0.5}, "exclude each other"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MethodError, match=message):
        VScan(**fields)


def test_blocks_that_are_not_there_are_named():
    with pytest.raises(MethodError, match="vscan cuts at layer 9, which 8 blocks do not have"):
        VScan(layers=(0, 9)).resolve(model_config(8))
    with pytest.raises(MethodError, match="early_block is not set"):
        VScan(layers=(0, 1), ratios=(0.5, 0.2)).requests(method_of(0.5, 0.2).stages[0])
