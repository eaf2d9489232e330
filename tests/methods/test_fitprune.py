"""FitPrune: the worked numbers, the released recipe at any depth, and the search for one."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config
from helpers.prompts import hf_arrays

import ivc_jax
from ivc_jax.engine.observe import observe
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.inputs.layout import take_rows
from ivc_jax.methods.base import MethodError
from ivc_jax.methods.budget import measure
from ivc_jax.methods.drawn import draw_signals, make_layout
from ivc_jax.methods.fitprune import FitPrune, Trial
from ivc_jax.methods.recipe import (
    RECIPES,
    choose_cuts,
    measure_left,
    mix_recipes,
    read_left,
    read_trial,
    search_recipe,
)
from ivc_jax.methods.requests import AttentionReceived, AttentionRows
from ivc_jax.methods.testing import listed, run_stage

# The worked example: a token of text, 4 of an image, 2 of text; rows of queries 1 to 6, two heads.
SAMPLE = (1, (2, 2), 2)
MAPS = [
    [
        (0.6, 0.4),
        (0.5, 0.2, 0.3),
        (0.4, 0.3, 0.1, 0.2),
        (0.3, 0.2, 0.2, 0.1, 0.2),
        (0.3, 0.1, 0.25, 0.05, 0.2, 0.1),
        (0.2, 0.15, 0.1, 0.05, 0.2, 0.1, 0.2),
    ],
    [
        (0.7, 0.3),
        (0.3, 0.4, 0.3),
        (0.5, 0.1, 0.2, 0.2),
        (0.4, 0.1, 0.1, 0.3, 0.1),
        (0.2, 0.2, 0.1, 0.1, 0.1, 0.3),
        (0.3, 0.05, 0.2, 0.1, 0.05, 0.1, 0.2),
    ],
]
OWN, CROSS = [0.325, 0.175, 0.125, 0.05], [0.35, 0.45, 0.2, 0.4]
SAMPLES = [(3, (4, 5), 4, (3, 7), 5), (2, (3, 3, 4), 2, (2, 9), 6), (4, (5, 6), 5)]


def fill_maps() -> np.ndarray:
    """Return the attention [H, 7, 7] of the worked example."""
    maps = np.zeros((2, 7, 7))
    maps[:, 0, 0] = 1
    for head, rows in zip(maps, MAPS, strict=True):
        for query, row in enumerate(rows, start=1):
            head[query, : len(row)] = row
    return maps


def run(method, samples, signals, **bucket):
    return listed(run_stage(method, make_layout(samples, **bucket), signals))


def one_cut(share, layer=1, **fields) -> FitPrune:
    return FitPrune(layers=(layer,), ratios=(share,), **fields)


def count_left(method, tokens=576) -> list[int]:
    return [method.capacity(stage, tokens, 1) for stage in method.stages]


def count_lost(values, reference, alpha) -> int:
    """Count the smallest values whose removal leaves a sum of reference * (1 - alpha) at least."""
    left = values.sum() - np.sort(values).cumsum()
    return int((left >= reference * (1 - alpha)).sum())


def find_lost(cross, own, references, alpha) -> list[int]:
    """Find what attention [n] from the text and from the image can spare both, of sums in full."""
    lists = [
        np.argsort(values, kind="stable")[: count_lost(values, reference, alpha)]
        for values, reference in zip((cross, own), references, strict=True)
    ]
    return np.intersect1d(*lists).tolist()


def test_worked_example():
    maps, method = fill_maps(), one_cut(0.5)
    own = maps[:, 1:5, 1:5].max(axis=0).sum(axis=0) / 4
    np.testing.assert_allclose(own, OWN, atol=1e-9)
    rows, received = method.requests(method.stages[0])
    assert (rows, received) == (AttentionRows(0, "text"), AttentionReceived(0, heads="max"))
    signals = {
        rows: jnp.asarray(maps[None, :, [0, 5, 6], 1:5], jnp.float32),
        received: jnp.asarray([own], jnp.float32),
    }
    assert run(method, [SAMPLE], signals) == [[0, 1]]
    scores = method.scores(signals, make_layout([SAMPLE]), method.stages[0])
    np.testing.assert_allclose(scores[0], [0.11375, 0.07875, 0.025, 0.02], atol=1e-7)
    np.testing.assert_allclose(scores[0] / own, CROSS, atol=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.02, 1.0])
def test_equals_the_slow_reference(share):
    method, layout = one_cut(share), make_layout(SAMPLES, visual_slots=60, text_slots=20)
    asked = method.requests(method.stages[0])
    signals = draw_signals(asked, layout, layout, padding=0.0)
    expected = []
    for rows, own, count in zip(
        *map(np.asarray, signals.values()), np.asarray(layout.visual_count), strict=True
    ):
        score = rows[:, :, :count].astype(np.float64).max(axis=0).sum(axis=0) * own[:count]
        kept = np.argsort(-score, kind="stable")[: max(1, int(share * count))]
        expected.append(sorted(kept.tolist()))
    assert listed(run_stage(method, layout, signals)) == expected


def test_of_equals_the_higher_index_goes():
    method, V = one_cut(0.5), 4
    asked = method.requests(method.stages[0])
    signals = dict(zip(asked, (jnp.ones((1, 2, 3, V)), jnp.ones((1, V))), strict=True))
    assert run(method, [SAMPLE], signals) == [[0, 1]]


@pytest.mark.parametrize(
    ("recipe", "last", "mean"),
    [
        (30, 312, 0.7353),
        (40, 240, 0.6293),
        (50, 173, 0.5240),
        (55, 152, 0.4763),
        (60, 127, 0.4253),
        (70, 88, 0.3262),
        (80, 62, 0.2267),
        (90, 37, 0.1265),
    ],
)
def test_released_recipes(recipe, last, mean):
    method = FitPrune(recipe=recipe, min_cut=0.0).resolve(model_config(32))
    assert count_left(method)[-1] == last
    assert measure(method.stages, 32) == pytest.approx(mean, abs=5e-5)
    # Equal schedules are equal methods, which share a program.
    assert method == FitPrune(layers=method.layers, ratios=method.ratios)
    # The same schedule by its budget.
    solved = FitPrune(budget=measure_left(read_left(recipe)), min_cut=0.0)
    assert count_left(solved.resolve(model_config(32))) == count_left(method)


def test_tokens_that_enter_the_first_blocks():
    method = FitPrune(recipe=60, min_cut=0.0).resolve(model_config(32))
    stages = [stage.layer for stage in method.stages]
    left = dict(zip(stages, count_left(method), strict=True))
    assert [576, *(left[layer] for layer in range(1, 8))] == [
        *(576, 562, 529, 440, 404, 368, 348, 293)
    ]
    assert len(stages) == 26  # where tokens go at all


def test_few_cuts():
    method = FitPrune().resolve(model_config(32))
    behind = [layer - 1 for layer in method.layers]
    assert behind == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 19, 21]
    lost = -np.diff([576, *count_left(method)])
    assert lost.tolist() == [47, 89, 36, 36, 20, 55, 21, 18, 18, 42, 40, 22]
    assert method == FitPrune(recipe=60).resolve(model_config(32))
    assert method == FitPrune(layers=method.layers, ratios=method.ratios)


def test_layers_of_ones_own_read_the_recipe_there():
    method = FitPrune(layers=(4, 16), recipe=60).resolve(model_config(32))
    assert method.ratios == tuple(read_left(60)[[4, 16]])
    solved = FitPrune(layers=(4, 16), budget=0.5).resolve(model_config(32))
    assert solved.layers == (4, 16)
    left = mix_recipes(0.5, measure_left)
    assert solved.ratios[1] / solved.ratios[0] == pytest.approx(left[16] / left[4])


def test_a_single_block_leaves_no_place_for_a_cut():
    with pytest.raises(MethodError, match="fitprune cuts between two blocks, the model has 1"):
        FitPrune().resolve(model_config(1))


def test_a_recipe_that_takes_too_little_for_any_cut_has_one():
    left = np.ones(33)
    left[9:] -= 0.02
    assert choose_cuts(left, 32, 0.03) == (9,)
    assert choose_cuts(left, 32, 0.0) == (9,)
    assert choose_cuts(np.ones(33), 8, 0.03) == (1,)


@pytest.mark.parametrize("depth", [32, 28, 12])
@pytest.mark.parametrize("target", [0.9, 0.5, 0.3, 0.11])
def test_a_budget_is_met_by_one_factor(depth, target):
    method = FitPrune(budget=target).resolve(model_config(depth))
    assert measure(method.stages, depth) == pytest.approx(target, abs=1e-9)
    free = FitPrune(layers=method.layers, budget=target).resolve(model_config(depth))
    assert free == method


def test_a_keep_ratio_is_what_is_left_at_last():
    for share in (0.5, 0.25, 0.03):
        method = FitPrune(keep_ratio=share).resolve(model_config(28))
        assert method.ratios[-1] == share
        assert list(method.ratios) == sorted(method.ratios, reverse=True)
    assert FitPrune(keep_ratio=1.0).resolve(model_config(28)).ratios == (1.0,)


@pytest.mark.parametrize(
    ("alpha", "cross", "own", "both"),
    [
        (0.1, [], [3], []),
        (0.3, [2], [3, 2], [2]),
        (0.5, [2, 0], [3, 2], [2]),
        (0.7, [2, 0, 3], [3, 2, 1], [2, 3]),
    ],
)
def test_what_both_kinds_of_attention_can_spare(alpha, cross, own, both):
    from_text, from_image = np.array(CROSS) / 2, np.array(OWN)  # of two text tokens
    assert count_lost(from_text, 0.7, alpha) == len(cross)
    assert np.argsort(from_text)[: len(cross)].tolist() == cross
    assert count_lost(from_image, 0.675, alpha) == len(own)
    assert np.argsort(from_image)[: len(own)].tolist() == own
    assert find_lost(from_text, from_image, (0.7, 0.675), alpha) == both


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7])
def test_a_trial_takes_what_both_can_spare(alpha):
    samples = [each for each in SAMPLES for _ in range(2)]
    layout = make_layout(samples, visual_slots=60, text_slots=20)
    method = Trial(num_layers=3, alpha=alpha)
    signals = draw_signals(method.requests(method.stages[0]), layout, layout, padding=0.0)
    rows, own = map(np.asarray, signals.values())
    own = np.where(np.arange(6)[:, None] % 2, own * 0.9, own)  # less is there than was
    signals = dict(zip(signals, (jnp.asarray(rows), jnp.asarray(own)), strict=True))
    kept = listed(run_stage(method, layout, signals))
    for first in (0, 2, 4):
        count = int(layout.visual_count[first])
        assert kept[first] == list(range(count))
        cross = rows[first + 1, :, :, :count].max(axis=0).sum(axis=0)
        sums = float(cross.sum()), float(own[first, :count].sum())
        lost = find_lost(cross, own[first + 1, :count], sums, alpha)
        assert kept[first + 1] == sorted(set(range(count)) - set(lost))


def test_a_trial_on_a_model(tiny_hf):
    """The first cut sees the unpruned model twice, the next block runs on what is left."""
    model, _ = ivc_jax.load(tiny_hf(num_hidden_layers=2), dtype="float32")
    batch = ivc_jax.Batch.from_hf(**hf_arrays([(3, ("image", (1, 8, 10)), 6)]))
    bucket = Buckets(text=(16,), visual=(24,), patches=(96,), rows=(2,), images=(1,))
    inputs = collate(take_rows(batch, [0, 0], model.config), model.config, bucket)
    method = Trial(num_layers=2, alpha=0.6)
    left = np.asarray(ivc_jax.prefill(model, inputs, method).visual_computed)
    rows, own = observe(model, inputs, 1, *method.requests(method.stages[0]))
    cross = np.asarray(rows)[1, :, :, :20].max(axis=0).sum(axis=0)
    own = np.asarray(own)[1, :20]
    lost = find_lost(cross, own, (cross.sum(), own.sum()), method.alpha)
    assert left[0].tolist() == [20, 20]
    assert left[1].tolist() == [20, 20 - len(lost)]
    assert 0 < len(lost) < 20


def test_a_recipe_is_the_floor_of_the_mean_until_enough_is_saved():
    lost = np.array([[4, 3, 0, 2], [5, 2, 0, 9]])
    recipe, reached = read_trial(lost, 20, 0.2, float)
    # 20 + 16 + 14 + 14 = 64 of 80; before the third block it is sure that all four are 64 at most
    assert (recipe.tolist(), reached) == ([4, 2, 0, 0], True)
    recipe, reached = read_trial(lost, 20, 0.3, float)
    assert (recipe.tolist(), reached) == ([4, 2, 0, 5], False)


def test_the_search_ends_with_the_last_recipe_that_met_the_target():
    asked = []

    def run(alpha):
        asked.append(alpha)
        return np.full((2, 4), 20 * alpha)

    recipe, alpha = search_recipe(run, 100, 0.05, float)
    assert read_trial(run(alpha), 100, 0.05, float)[1]
    assert not read_trial(run(alpha - 0.01), 100, 0.05, float)[1]
    assert recipe.tolist() == read_trial(run(alpha), 100, 0.05, float)[0].tolist()
    assert asked[:2] == [0.5, 0.25]
    assert len(asked) == 7 + 3
    with pytest.raises(ValueError, match="no recipe saves 90% of the FLOPs"):
        search_recipe(run, 100, 0.9, float)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": 65}, "recipe must be one of"),
        ({"recipe": 60, "budget": 0.5}, "recipe and budget exclude each other"),
        ({"recipe": 60, "keep_ratio": 0.5}, "recipe and keep_ratio exclude each other"),
        ({"min_cut": -0.1}, "min_cut must be in"),
        ({"layers": (0, 2)}, "cannot cut before layer 1"),
        ({"keep_ratio": 0.5, "budget": 0.5}, "exclude each other"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MethodError, match=message):
        dataclasses.replace(FitPrune(), **fields)
    assert RECIPES == (30, 40, 50, 55, 60, 70, 80, 90)
