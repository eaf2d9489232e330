"""PyramidDrop against worked numbers, a slow reference, and its published schedules."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.methods.base import MethodError, Scored
from ivc_jax.methods.budget import measure
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.pyramiddrop import PyramidDrop
from ivc_jax.methods.requests import AttentionRows
from ivc_jax.methods.testing import listed, run_stage, shorten
from ivc_jax.types import Selection

PAIR = (3, (4, 5), 4, (3, 7), 5)
OTHER = (2, (6, 6), 6)
VIDEO = (1, (3, 2, 4), 2, (1, 1), 4)
SAMPLES = (PAIR, OTHER, VIDEO, (5,))

# Logits of the last token at the three cuts, by unpruned index.
TEXT = [1.0, 0.0, 0.5, 0.0, 1.0]
LOGITS = (
    [0.2, 1.0, 0.4, 0.9, -0.2, 0.8, 0.1, 0.6],
    [0.5, 0.1, 0.9, 0.7, 0.3, 1.2, 0.2, 0.4],
    [0.6, 0.8, 0.1, 0.3, 0.5, 0.2, 0.9, 0.7],
)


def solved(num_layers=28, **fields) -> PyramidDrop:
    return PyramidDrop(**fields).resolve(model_config(num_layers))


def run_all(method, layout, tables) -> list[list[list[int]]]:
    """Run every cut with rows [H, slots] of each sample; unpruned indices by cut and sample."""
    history = []
    for number, stage in enumerate(method.stages):
        rows = np.full((*layout.visual_index.shape, tables[number][0].shape[0]), np.nan)
        for b, table in enumerate(tables[number]):
            valid = np.asarray(layout.visual_valid[b])
            rows[b, valid] = table[:, np.asarray(layout.visual_index[b])[valid]].T
        rows = jnp.asarray(np.moveaxis(rows, 2, 1)[:, :, None], jnp.float32)
        signals = {AttentionRows(stage.layer, "last"): rows}
        chosen = run_stage(method, layout, signals, number)
        assert chosen.weights is None
        assert chosen.carry is None
        layout = shorten(layout, chosen)
        kept = [len(row) for row in listed(chosen)]
        origins = np.asarray(layout.visual_origin)
        history.append([row[:n].tolist() for row, n in zip(origins, kept, strict=True)])
    return history


def draw_tables(samples, cuts=3, heads=3):
    lengths = [len(lay_out(sample)["positions"]) for sample in samples]
    return [
        [np.random.default_rng([cut, n]).random((heads, n)).round(2) for n in lengths]
        for cut in range(cuts)
    ]


def reference(sample, tables, ratios, per_image) -> list[list[int]]:
    """Rank token by token in float64; unpruned indices left after each cut."""
    row = lay_out(sample)
    present, history = list(range(len(row["visual"]))), []
    for table, ratio in zip(tables, ratios, strict=True):
        groups = [[v for v in present if row["image"][v] == image] for image in range(2)]
        sizes = [row["image"].count(image) for image in range(2)]
        if not per_image:
            groups, sizes = [present], [len(row["visual"])]
        kept = []
        for group, size in zip(groups, sizes, strict=True):
            # The mean over heads is formed as the method forms it: ties are frequent here.
            score = {v: table[:, row["visual"][v]].astype(np.float32).mean() for v in group}
            best = sorted(group, key=lambda v: (-score[v], v))
            kept += best[: max(1, int(np.floor(size * ratio))) if size else 0]
        present = sorted(kept)
        history.append(present)
    return history


def test_worked_example():
    method = solved(32)
    layout = make_layout([(2, (2, 4), 3)])
    expected = (
        [0.05322, 0.11845, 0.06501, 0.10718, 0.03568, 0.09698, 0.04816, 0.07940],
        [0.06495, 0.11834, 0.19512, 0.08767],
        [0.11580, 0.10478],
    )
    kept, lengths = [[1, 3, 5, 7], [3, 5], [3]], [13]
    for number, stage in enumerate(method.stages):
        present = np.asarray(layout.visual_origin[0])
        raised = np.exp(np.array(LOGITS[number])[present])
        row = raised / (raised.sum() + np.exp(TEXT).sum())
        signals = {AttentionRows(stage.layer): jnp.asarray(row, jnp.float32)[None, None, None]}
        scores = method.scores(signals, layout, stage)
        np.testing.assert_allclose(scores[0], expected[number], atol=5.1e-6)
        layout = shorten(layout, run_stage(method, layout, signals, number))
        assert layout.visual_origin[0].tolist() == kept[number]
        lengths.append(len(TEXT) + len(kept[number]))
    assert lengths == [13, 9, 7, 6]


@pytest.mark.parametrize("per_image", [False, True])
def test_equals_the_slow_reference(per_image):
    ratios = (0.61, 0.3, 0.1)
    method = PyramidDrop((2, 3, 5), ratios, positions="original", per_image=per_image)
    tables = draw_tables(SAMPLES)
    history = run_all(method, make_layout(SAMPLES), tables)
    for b, sample in enumerate(SAMPLES):
        slow = reference(sample, [cut[b] for cut in tables], ratios, per_image)
        assert [cut[b] for cut in history] == slow
    assert [len(cut[0]) for cut in history] == ([24, 12, 4] if per_image else [25, 12, 4])
    assert 24 in history[2][2] or not per_image  # an image of one token is never empty


def test_keeps_the_best_of_what_is_present():
    # A modifier may have added tokens at an earlier cut: counts are still of the unpruned prompt.
    method = solved(32)
    layout = make_layout([((2, 4), 3)])
    chosen = Selection(jnp.arange(7)[None], jnp.ones((1, 7), bool))
    rows = jnp.arange(7.0)[None, None, None]
    layout = shorten(layout, chosen)
    kept = run_stage(method, layout, {AttentionRows(16): rows}, number=1)
    assert listed(kept) == [[5, 6]]


def test_ties_go_to_the_lowest_index_and_nan_goes_last():
    method = solved(32)
    rows = jnp.array([0.5, jnp.nan, 0.5, 0.9, 0.5, 0.1, 0.5, 0.5])[None, None, None]
    kept = run_stage(method, make_layout([((2, 4), 3)]), {AttentionRows(8): rows})
    assert listed(kept) == [[0, 2, 3, 4]]


def test_schedules_of_the_paper_and_of_others():
    default = solved(32)
    assert [(stage.layer, stage.keep_ratio) for stage in default.stages] == [
        (8, 0.5),
        (16, 0.25),
        (24, 0.125),
    ]
    # Solved, the same shares must not fall a hair below a half: counts are rounded down.
    for method in (default, solved(32, budget=15 / 32), solved(32, keep_ratio=0.125)):
        assert [method.capacity(stage, 576, 1) for stage in method.stages] == [288, 144, 72]
    assert measure(default.stages, 32) * 576 == 270.0
    other = solved(32, layers=(2, 10, 20), ratios=(0.32, 0.16, 0.08))
    assert [other.capacity(stage, 576, 1) for stage in other.stages] == [184, 92, 46]
    held = 2 * 576 + 8 * 184 + 10 * 92 + 12 * 46
    assert held / 32 == 128.0
    assert solved(28).layers == (7, 14, 21)
    assert default.requests(default.stages[1]) == (AttentionRows(16, "last"),)
    assert issubclass(PyramidDrop, Scored)
    assert PyramidDrop.select is Scored.select


@pytest.mark.parametrize(
    ("tokens", "factor", "counts", "average"),
    [
        (192, 0.55960, [322, 180, 100], 191.4),
        (128, 0.41974, [241, 101, 42], 127.4),
        (96, 0.32433, [186, 60, 19], 95.4),
        (64, 0.19158, [110, 21, 4], 63.9),
    ],
)
def test_low_budgets_on_32_layers(tokens, factor, counts, average):
    method = solved(32, budget=tokens / 576)
    assert method.layers == (2, 8, 16)
    np.testing.assert_allclose(method.ratios, [factor, factor**2, factor**3], atol=1e-5)
    assert [method.capacity(stage, 576, 1) for stage in method.stages] == counts
    held = 2 * 576 + 6 * counts[0] + 8 * counts[1] + 16 * counts[2]
    assert abs(held / 32 - average) <= 0.051


@pytest.mark.parametrize(
    ("budget", "factor"), [(1 / 3, 0.55534), (2 / 9, 0.41172), (1 / 9, 0.16884)]
)
def test_low_budgets_on_28_layers(budget, factor):
    method = solved(28, budget=budget)
    assert method.layers == (2, 7, 14)
    np.testing.assert_allclose(method.ratios[0], factor, atol=5.1e-6)


@pytest.mark.parametrize("num_layers", [3, 4, 5, 12, 28, 32, 36])
@pytest.mark.parametrize("budget", [0.11, 0.22, 1 / 3, 15 / 32, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("compact", [False, True])
def test_budgets_are_met_at_every_depth(num_layers, budget, compact):
    method = solved(num_layers, budget=budget, compact_earlier_kv=compact)
    np.testing.assert_allclose(measure(method.stages, num_layers), budget, atol=1e-6)
    layers = method.layers
    assert 0 <= layers[0] < layers[1] < layers[2] < num_layers
    if num_layers % 4 == 0 and (compact or budget >= 15 / 32):
        assert layers == tuple(num_layers * part // 4 for part in (1, 2, 3))


def test_families():
    assert solved(28, budget=0.468).layers == (2, 7, 14)
    assert solved(28, budget=0.469).layers == (7, 14, 21)
    assert solved(28, budget=0.02).layers == (0, 5, 12)  # two blocks alone hold more than that
    two = solved(28, layers=(4, 8))
    assert two.ratios == (0.5, 0.25)
    two = solved(28, layers=(4, 8), budget=0.4)
    np.testing.assert_allclose(two.ratios[1], two.ratios[0] ** 2, rtol=1e-6)
    np.testing.assert_allclose(measure(two.stages, 28), 0.4, atol=1e-6)
    np.testing.assert_allclose(solved(28, keep_ratio=0.125).ratios, [0.5, 0.25, 0.125])
    assert solved(5).layers == (1, 2, 4)
    assert solved(5, budget=0.11).layers == (0, 1, 2)
    assert solved(3).layers == (0, 1, 2)


def test_caches_of_earlier_blocks():
    method = solved(32, budget=0.125, compact_earlier_kv=True)
    assert method == solved(32, keep_ratio=0.125, compact_earlier_kv=True)
    assert method.layers == (8, 16, 24)
    assert all(stage.compact_earlier_kv for stage in method.stages)
    assert not any(stage.compact_earlier_kv for stage in solved(32).stages)


def test_positions_follow_the_model():
    flat = model_config(sections=None)
    assert [stage.renumber for stage in PyramidDrop().resolve(flat).stages] == [True] * 3
    assert [stage.renumber for stage in solved().stages] == [False] * 3
    assert all(stage.renumber for stage in solved(positions="reindex").stages)
    original = PyramidDrop(positions="original").resolve(flat)
    assert not any(stage.renumber for stage in original.stages)
    assert dataclasses.replace(original, positions=None).resolve(flat).positions == "reindex"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": "relative"}, r"positions must be one of \('original', 'reindex'\)"),
        ({"budget": 0}, r"budget must be in \(0, 1\], got 0"),
        ({"budget": 0.5, "keep_ratio": 0.5}, "keep_ratio and budget exclude each other"),
        ({"layers": (8, 4)}, "layers must ascend"),
        ({"layers": (-1, 4)}, "pyramiddrop cannot cut before layer 0"),
        ({"ratios": (0.25, 0.5)}, "ratios must not grow"),
        ({"layers": (2, 4), "ratios": (0.5,)}, "must pair up"),
        ({"ratios": (0.5,)}, r"must pair up, got \(7, 14, 21\)"),
        ({"layers": (14,), "budget": 0.4}, "cannot be reached on 28 layers"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(MethodError, match=message):
        solved(28, **fields)


def test_what_needs_a_model_says_so():
    with pytest.raises(MethodError, match="layers is not set"):
        _ = PyramidDrop().stages
    with pytest.raises(MethodError, match=r"positions is not set; give positions=\.\.\."):
        _ = PyramidDrop((2,), (0.5,)).stages
    with pytest.raises(MethodError, match="3 cuts do not fit into 2 layers"):
        solved(2)
    assert solved(2, layers=(1,)).layers == (1,)
