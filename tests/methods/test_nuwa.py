"""Nuwa against worked numbers and a slow reference: regions, pillars, collectors, the late cut."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.methods import MethodError, select
from ivc_jax.methods.budget import measure
from ivc_jax.methods.drawn import FixedAttention, lay_out, make_layout
from ivc_jax.methods.nuwa import Nuwa, mark_pillars, number_regions, pick_from_regions
from ivc_jax.methods.question import compare_with_question
from ivc_jax.methods.requests import (
    AttentionRows,
    Hidden,
    TokenVectors,
    TowerAttention,
    TowerFeatures,
)
from ivc_jax.methods.select import Segments
from ivc_jax.methods.testing import listed, run_stage

# Text and two unequal images; a video of three frames with odd sides.
PAIR = (3, (4, 6), 4, (3, 5), 5)
VIDEO = (2, (3, 3, 5), 6)
D = 3

FIXED = {"layers": (0, 2), "first_block": 1, "last_block": 2}
FEATURES = TowerFeatures(1, 2, merged=True)
jitted = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SALIENCY = [0.09, 0.02, 0.05, 0.12, 0.03, 0.01, 0.04, 0.07, 0.06, 0.08, 0.10, 0.11]
TOWER = [
    *([1, 0], [0.8, 0.2], [0.5, 0.5], [0, 1], [0.3, 0.9], [1, 1]),
    *([0.9, 0.1], [1, 0.3], [0.2, 0.8], [-0.2, 1], [0.6, 0.7], [0.9, 0.8]),
]


def tower_signals(layout, received, features) -> dict:
    B, V = layout.visual_valid.shape
    rows = jnp.broadcast_to(jnp.asarray(received, jnp.float32)[:, None], (B, V, V))
    features = jnp.asarray(features, jnp.float32)
    return {TowerAttention(): FixedAttention(rows, layout), FEATURES: features}


def draw(sample, seed) -> tuple[np.ndarray, np.ndarray]:
    """Draw the received attention and the tower features of every visual token."""
    random, count = np.random.default_rng(seed), len(lay_out(sample)["visual"])
    return random.random(count), random.normal(size=(count, D)) + 0.2


def drawn_signals(layout, drawn) -> dict:
    table = np.full((*layout.visual_valid.shape, D + 1), np.nan)
    for target, (received, features) in zip(table, drawn, strict=True):
        target[: len(features)] = np.concatenate([received[:, None], features], axis=1)
    return tower_signals(layout, table[..., 0], table[..., 1:])


def reference_frame(received, features, grid, count, per_region, method):
    """Follow the formulas of the first cut in one frame; kept tokens and weights [K, n]."""
    candidates = []
    for region in sorted({(row // 2, column // 2) for row, column in grid}):
        inside = [i for i, cell in enumerate(grid) if (cell[0] // 2, cell[1] // 2) == region]
        candidates += sorted(inside, key=lambda i: -received[i])[:per_region]
    kept = sorted(sorted(candidates, key=lambda i: -received[i])[:count])
    # Odd sides are rounded up to even: the last row of 3 or of 4 is row 3.
    reach = method.distance or 0.8 * math.hypot(*(np.max(grid, axis=0) | 1))
    bar = np.quantile(received[kept], method.tau) if kept else 0
    rows = np.zeros((len(kept), len(grid)))
    for row, i in zip(rows, kept, strict=True):
        row[i] = 1
        for j in range(len(grid)) if received[i] < bar else ():
            near = 1 - min(1, math.dist(grid[i], grid[j]) / reach)
            length = np.linalg.norm(features[i]) * np.linalg.norm(features[j])
            row[j] = max(0, features[i] @ features[j] / length) * near
        row /= row.sum() + 1e-8
        row[i] = 1 if method.diagonal == "self_one" else row[i]
    return kept, rows


def reference_sample(sample, drawn, method, per_region):
    row, (received, features) = lay_out(sample), drawn
    keys = [(image, cell[0]) for image, cell in zip(row["image"], row["grid"], strict=True)]
    kept, weights = [], np.zeros((0, len(keys)))
    for image, frame in sorted(set(keys)):
        members = [v for v, key in enumerate(keys) if key == (image, frame)]
        total = math.ceil(method.ratios[0] * row["image"].count(image))
        frames = len({key for key in keys if key[0] == image})
        count = total // frames + (frame < total % frames)
        grid = [row["grid"][v][1:] for v in members]
        parts = received[members], features[members], grid
        own, rows = reference_frame(*parts, count, per_region, method)
        kept += [members[i] for i in own]
        wide = np.zeros((len(own), len(keys)))
        wide[:, members] = rows
        weights = np.concatenate([weights, wide])
    return kept, weights


def run_example(**fields):
    layout = make_layout([((2, 6), 3)], visual_slots=14)
    method = Nuwa(**FIXED, ratios=(1 / 3, 1 / 6), per_region=2, distance=2.0, tau=0.55, **fields)
    signals = tower_signals(layout, [[*SALIENCY, 9, np.nan]], [[*TOWER, [9, 9], [np.nan] * 2]])
    chosen = run_stage(method, layout, signals)
    assert listed(chosen) == [[0, 3, 10, 11]]
    tokens = np.array(TOWER) + 0.1 * np.outer(np.arange(12), [1, 0])
    weights = np.asarray(chosen.weights[0, :4])
    return weights, weights[:, :12] @ tokens


def test_worked_example_normalized():
    weights, tokens = run_example()
    first = {0: 0.44198, 1: 0.21439, 6: 0.21964, 7: 0.12399}
    tenth = {3: 0.07996, 4: 0.16648, 5: 0.10500, 9: 0.11090, 10: 0.35954, 11: 0.17812}
    rows = [[row.get(j, 0) for j in range(14)] for row in (first, tenth)]
    np.testing.assert_allclose(weights[[0, 2]], rows, atol=2e-5)
    expected = [[1.17517, 0.10204], [0.3, 1], [1.30716, 0.83986], [2.0, 0.8]]
    np.testing.assert_allclose(tokens, expected, atol=2e-5)
    np.testing.assert_array_equal(weights[[1, 3]], np.eye(14)[[3, 11]])


def test_worked_example_of_the_reach_on_odd_sides():
    layout = make_layout([((3, 3), 3)], visual_slots=11)
    method = Nuwa(**FIXED, ratios=(0.5, 0.5), tau=1.0)
    received = [9, 1, 8, 2, 3, 1.5, 7, 1.2, 6]
    signals = tower_signals(layout, [[*received, 0, np.nan]], np.ones((1, 11, 2)))
    chosen = run_stage(method, layout, signals)
    assert listed(chosen) == [[0, 2, 4, 6, 8]]
    # The reach is 0.8 * hypot(3, 3) = 3.39411, as of 4 x 4 tokens.
    row = [0.08806, 0.15122, 0.21438, 0.07314, 0.12505, 0.15122, 0.03573, 0.07314, 0.08806]
    np.testing.assert_allclose(chosen.weights[0, 1], [*row, 0, 0], atol=1e-5)


def test_worked_example_self_one():
    weights, tokens = run_example(diagonal="self_one")
    expected = [[1.73320, 0.10204], [0.3, 1], [2.33190, 1.28818], [2.0, 0.8]]
    np.testing.assert_allclose(tokens, expected, atol=2e-5)
    assert weights[[0, 1, 2, 3], [0, 3, 10, 11]].tolist() == [1] * 4


def test_worked_example_pillars():
    layout = make_layout([((2, 6), 3)])
    keep = jnp.zeros((1, 12), bool).at[0, jnp.array([0, 3, 10, 11])].set(True)
    saliency, within = jnp.array([SALIENCY]), Segments.by_image(layout)
    mark = jitted(mark_pillars, static_argnums=3)
    for tau, expected in ((0.55, [3, 11]), (0.1, [3, 10, 11]), (1.0, [3])):
        pillars = mark(saliency, keep, within, tau)
        assert np.flatnonzero(pillars[0]).tolist() == expected


def test_worked_example_of_the_second_cut():
    hidden = jnp.array([[[0.1, 0.9], [0.5, 0.5], [0.9, 0.2], [0.4, 0.3]]])
    question = jnp.array([[[9.0, -9], [0.2, 0.6], [0.4, 1], [0, 0.8]]])
    layout = make_layout([(1, (2, 2), 3)])
    method = Nuwa(**FIXED, ratios=(1.0, 0.5), text_score="embedding")
    vectors = TokenVectors(hidden, question)
    chosen = run_stage(method, layout, {Hidden(): vectors}, number=1)
    assert listed(chosen) == [[0, 1]]
    assert chosen.weights is None
    cosine = jitted(compare_with_question)(vectors, layout)
    np.testing.assert_allclose(cosine[0], [0.99099, 0.85749, 0.44721, 0.77611], atol=2e-5)


def test_regions_are_blocks_of_an_image_or_frame():
    layout = make_layout([(1, (3, 5), 2, (2, 2, 3), 1)], visual_slots=29)
    image = [0, 0, 2, 2, 4, 0, 0, 2, 2, 4, 10, 10, 12, 12, 14]
    video = [15, 15, 17, 15, 15, 17, 21, 21, 23, 21, 21, 23]
    assert number_regions(layout)[0].tolist() == [*image, *video, -1, -1]


def test_equal_tokens_go_by_region_and_then_by_index():
    layout, best = make_layout([((2, 4), 2)]), jitted(pick_from_regions, static_argnums=2)
    # Regions {0, 1, 4, 5} and {2, 3, 6, 7}; 5 is the first of its region, 0 ties with 2, 3 and 6.
    saliency = jnp.array([[0.5, 0.1, 0.5, 0.5, 0.2, 0.9, 0.5, 0.1]])
    for count, expected in ((2, [0, 5]), (3, [0, 2, 5]), (4, [0, 2, 3, 5]), (6, [0, 2, 3, 5])):
        keep = best(saliency, layout, 2, jnp.full((1, 8), count))
        assert np.flatnonzero(keep[0]).tolist() == expected
    # Region 0 comes before region 1, although its tied token has the higher index.
    saliency = jnp.array([[0.1, 0.1, 0.5, 0.1, 0.1, 0.5, 0.1, 0.9]])
    keep = best(saliency, layout, 2, jnp.full((1, 8), 2))
    assert np.flatnonzero(keep[0]).tolist() == [5, 7]


@pytest.mark.parametrize(
    ("ratio", "fields", "per_region"),
    [
        (0.35, {}, 3),
        (0.60, {"tau": 0.55, "diagonal": "self_one"}, 3),
        (0.85, {"distance": 2.5, "tau": 0.3}, 4),
        (0.60, {"per_region": 1, "tau": 0.7}, 1),
    ],
)
def test_first_cut_equals_the_slow_reference(ratio, fields, per_region):
    samples = [PAIR, VIDEO]
    drawn = [draw(sample, seed) for seed, sample in enumerate(samples)]
    layout = make_layout(samples, visual_slots=50)
    method = Nuwa(**FIXED, ratios=(ratio, 0.2), **fields)
    chosen = run_stage(method, layout, drawn_signals(layout, drawn))
    for b, kept in enumerate(listed(chosen)):
        expected, weights = reference_sample(samples[b], drawn[b], method, per_region)
        assert kept == expected
        given = np.asarray(chosen.weights[b])
        np.testing.assert_allclose(given[: len(kept), : weights.shape[1]], weights, atol=1e-5)
        assert (weights > 0).sum() > len(kept) + 10
        assert not given[len(kept) :].any()
        assert not given[:, weights.shape[1] :].any()


def test_nan_stays_in_its_image_and_vectors_without_length_stay_themselves():
    layout, method = make_layout([PAIR]), Nuwa(**FIXED, ratios=(0.5, 0.2), tau=0.9)
    received, features = draw(PAIR, 0)
    features[24:] = 0
    sound = run_stage(method, layout, drawn_signals(layout, [(received, features)]))
    np.testing.assert_array_equal(sound.weights[0, 12:], select.keep_weights(sound, 39)[0, 12:])
    received[4], features[5] = np.nan, np.nan
    chosen = run_stage(method, layout, drawn_signals(layout, [(received, features)]))
    assert [v for v in listed(chosen)[0] if v >= 24] == [v for v in listed(sound)[0] if v >= 24]
    assert len(listed(chosen)[0]) == len(listed(sound)[0])
    np.testing.assert_array_equal(chosen.weights[0, 12:], sound.weights[0, 12:])


def second_cut(attention, **fields):
    layout = make_layout([((2, 5), (1, 10), 4)], visual_slots=24)
    method = Nuwa(**FIXED, **fields)
    count = 3 if method.text_score == "attention" else 1
    wide = np.full((1, *attention.shape[:2], 24), np.nan, np.float32)
    wide[0, :, :, : attention.shape[2]] = attention
    signals = {AttentionRows(1, "last", count): jnp.asarray(wide)}
    return listed(run_stage(method, layout, signals, number=1, num_keep=20))[0]


def test_second_cut_reads_the_attention_of_the_last_tokens():
    random = np.random.default_rng(3)
    attention = random.random((4, 3, 20)) ** 3
    order = np.argsort(-attention.mean(axis=1).max(axis=0), kind="stable")
    # All 20 tokens are present: floor(20 * 0.42) = 8 stay, whichever image they are of.
    shares = (1.0, 0.42)
    assert second_cut(attention, ratios=shares) == sorted(order[:8].tolist())
    order = np.argsort(-attention[:, -1].mean(axis=0), kind="stable")
    kept = second_cut(attention[:, -1:], ratios=shares, text_score="attention_llava")
    assert kept == sorted(order[:8].tolist())
    assert second_cut(np.ones((4, 3, 20)), ratios=shares) == list(range(8))
    # The first cut leaves 8 tokens; what a modifier has added to them does not count.
    assert second_cut(np.ones((4, 3, 20)), ratios=(0.35, 0.35 * 0.42)) == list(range(3))


def test_second_cut_rounds_as_published():
    for first, second in ((0.35, 0.42), (0.60, 0.66), (0.85, 0.70), (0.2, 0.7)):
        counts = Nuwa(**FIXED, ratios=(first, first * second))._count_second(2000)
        expected = [max(1, math.floor(n * second)) for n in range(1, 2001)]
        assert counts.tolist() == [0, *expected]


def test_keep_ratio_one_keeps_every_token_and_still_absorbs():
    layout = make_layout([PAIR, VIDEO], visual_slots=47)
    method = Nuwa(**FIXED, ratios=(1.0, 1.0))
    drawn = [draw(PAIR, 0), draw(VIDEO, 1)]
    chosen = run_stage(method, layout, drawn_signals(layout, drawn))
    assert listed(chosen) == [list(range(39)), list(range(45))]
    np.testing.assert_allclose(chosen.weights.sum(axis=2)[chosen.valid], 1, atol=1e-6)
    assert (np.asarray(chosen.weights[0]) > 0).sum() > 60  # the dense model has 39
    assert method._count_second(50).tolist() == list(range(51))


def config_of(num_layers, depth=32):
    return model_config(num_layers, depth=depth)


def test_published_schedules():
    method = Nuwa().resolve(config_of(28))
    assert method.layers == (0, 15)
    assert method.ratios == (0.6, 0.6 * 0.66)
    assert method.requests(method.stages[0])[1] == TowerFeatures(7, 23, merged=True)
    assert method.requests(method.stages[1]) == (AttentionRows(14, "last", 3),)
    assert [Nuwa().resolve(config_of(n)).layers[1] for n in (32, 36, 5, 2)] == [16, 18, 2, 1]
    for budget, first, second in ((0.25575, 0.35, 0.42), (0.50528571, 0.6, 0.66)):
        ratios = Nuwa(budget=budget).resolve(config_of(28)).ratios
        np.testing.assert_allclose(ratios, (first, first * second), atol=1e-6)
    last = Nuwa(keep_ratio=0.85 * 0.70).resolve(config_of(28)).ratios
    np.testing.assert_allclose(last, (0.85, 0.85 * 0.70), atol=1e-6)
    assert Nuwa(budget=1.0).resolve(config_of(28)).ratios == (1.0, 1.0)
    assert Nuwa(keep_ratio=1.0).resolve(config_of(28)).ratios == (1.0, 1.0)


@pytest.mark.parametrize("num_layers", [2, 5, 28])
@pytest.mark.parametrize("budget", [0.95, 0.75, 0.5, 0.33, 0.22, 0.11])
def test_budgets_are_met(num_layers, budget):
    for layers in (None, (0, 1)):
        method = Nuwa(budget=budget, layers=layers).resolve(config_of(num_layers))
        assert abs(measure(method.stages, num_layers) - budget) < 1e-6
        assert method.ratios[0] >= method.ratios[1] > 0


def test_tower_blocks_follow_the_depth():
    for depth, blocks in ((32, (7, 23)), (16, (4, 12)), (4, (1, 3)), (1, (0, 0))):
        method = Nuwa().resolve(config_of(5, depth))
        assert (method.first_block, method.last_block) == blocks
    cheap = Nuwa(similarity="features", first_block=2).resolve(config_of(5, 4))
    assert cheap.requests(cheap.stages[0])[1] == TowerFeatures(2, 3, merged=False)
    with pytest.raises(MethodError, match="must ascend in 4 tower blocks"):
        Nuwa(last_block=4).resolve(config_of(5, 4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (1, 3)}, "the first at layer 0"),
        ({"layers": (0,)}, "has two cuts"),
        ({"ratios": (0.5,)}, "give two ratios"),
        ({"per_region": 5}, "per_region must be 1 to 4"),
        ({"distance": 0.0}, "distance must be above 0"),
        ({"tau": 1.5}, "tau must be in"),
        ({"diagonal": "one"}, "diagonal must be one of"),
        ({"similarity": "pixels"}, "similarity must be one of"),
        ({"text_score": "clip"}, "text_score must be one of"),
        ({"first_block": -1}, "tower blocks count from 0"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MethodError, match=message):
        Nuwa(**fields)
    with pytest.raises(MethodError, match="5 blocks do not have"):
        Nuwa(layers=(0, 5)).resolve(config_of(5))
