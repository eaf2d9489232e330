"""CoViPAL: the worked choice, the module against a slow reference, what is read of the prompt."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config
from helpers.modules import Given, draw_module

from ivc_jax.methods import covipal, parse
from ivc_jax.methods.base import MethodError
from ivc_jax.methods.covipal import CoViPAL, apply, choose_text, init_params
from ivc_jax.methods.drawn import draw_signals, lay_out, make_layout
from ivc_jax.methods.ppm import pool_evenly, read_sizes
from ivc_jax.methods.requests import Hidden, TokenVectors, Weights
from ivc_jax.methods.testing import check_images_apart, listed, run_stage
from ivc_jax.module_sizes import Sizes

S = [1.9, 1.2, 0.4, 1.1, 0.9, 0.6]
SAMPLES = [(3, (4, 5), 4, (3, 7), 5), (2, (3, 3, 4), 6), (4, (5, 6), 5), (9,)]
SMALL = Sizes(width=16, heads=2)
D = 6

jitted = jax.jit(
    covipal.score,
    static_argnums=(0, 4),
    compiler_options={"xla_backend_optimization_level": 0},
)


@pytest.fixture
def fixed(monkeypatch):
    """Let the module say what a test wants."""

    def fix(*rows):
        width = max(map(len, rows))
        table = np.full((len(rows), width), 99, np.float32)
        for target, row in zip(table, rows, strict=True):
            target[: len(row)] = row

        def score(sizes, params, hidden, layout, per_image):
            V = layout.visual_valid.shape[1]
            return jnp.pad(jnp.asarray(table), ((0, 0), (0, V - width)), constant_values=99)

        monkeypatch.setattr(covipal, "score", score)

    return fix


def run(method, samples, **bucket):
    layout = make_layout(samples, **bucket)
    (stage,) = method.stages
    signals = draw_signals(method.requests(stage), layout, layout)
    return listed(run_stage(method, layout, signals))


def test_worked_example_keeps_the_best_three(fixed):
    fixed(S)
    assert run(CoViPAL(keep_ratio=0.5, weights="a"), [(1, (1, 6), 2)]) == [[0, 1, 3]]


@pytest.mark.parametrize(
    ("ratio", "counts"),
    [(0.25, [1, 1, 2, 2, 4]), (0.5, [1, 1, 3, 5, 8]), (0.01, [1] * 5), (1.0, [1, 2, 6, 10, 15])],
)
def test_counts_round_half_to_even_and_are_one_at_least(fixed, ratio, counts):
    sizes = [1, 2, 6, 10, 15]
    fixed(*(-np.arange(n, dtype=float) for n in sizes))
    kept = run(CoViPAL(keep_ratio=ratio, weights=f"b{ratio}"), [(1, (1, n), 2) for n in sizes])
    assert kept == [list(range(count)) for count in counts]
    assert counts == [max(1, round(ratio * n)) for n in sizes]


def test_ties_go_to_the_lower_index_and_images_share_one_budget(fixed):
    fixed([0, 0, 0, 0, 5, 5, 5, 5, 5, 5])
    samples = [(1, (2, 2), 1, (2, 3), 2)]
    assert run(CoViPAL(keep_ratio=0.5, weights="c"), samples) == [[4, 5, 6, 7, 8]]
    method = CoViPAL(keep_ratio=0.5, weights="c", per_image=True)
    assert run(method, samples) == [[0, 1, 4, 5, 6]]


def reference(sizes, params, visual, text, grid):
    """Run the module of the docstring in float64 on one unpadded sample: scores [n]."""

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def waves(place, size):
        turns = place[:, None] / 10000.0 ** (np.arange(size // 2) / (size // 2))
        return np.concatenate([np.sin(turns), np.cos(turns)], axis=1)

    n, d, heads = len(visual), sizes.width, sizes.heads
    joined = norm(np.concatenate([visual, text]).astype(np.float64), params["norm_in"])
    u = dense(joined, params["project"])
    u += np.where(np.arange(len(u))[:, None] < n, *params["types"])
    if sizes.places:
        frame, row, column = grid.T.astype(float)
        u[:n] += np.concatenate([waves(row, d // 2), waves(column, d // 2)], axis=1)
        u[:n] += waves(frame, d)
    for number in range(sizes.blocks):
        p = params[f"block_{number}"]
        normed = norm(u, p["norm_attention"])
        seen = normed
        if sizes.cross:
            runs = np.arange(n) * sizes.pooled // n
            pools = [normed[:n][runs == r].mean(axis=0) for r in sorted(set(runs))]
            seen = np.concatenate([np.reshape(pools, (-1, d)), normed[n:]])
        q, k, v = (
            dense(x, p[name]).reshape(len(x), heads, -1)
            for x, name in ((normed, "query"), (seen, "key"), (seen, "value"))
        )
        logits = np.einsum("qhc,khc->hqk", q, k) / np.sqrt(d // heads)
        rows = np.exp(logits - logits.max(-1, keepdims=True))
        rows /= rows.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khc->qhc", rows, v).reshape(len(u), d)
        u = u + dense(mixed, p["out"])
        inner = dense(norm(u, p["norm_mlp"]), p["up"])
        inner = inner * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        u = u + dense(inner, p["down"])
    return dense(norm(u[:n], params["norm_out"]), params["score"])[:, 0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"cross": True, "pooled": 7}, {"places": False, "blocks": 1}, {"text_tokens": 3}],
    ids=str,
)
def test_the_module_is_the_reference_alone_padded_and_in_a_batch(changes):
    sizes = dataclasses.replace(SMALL, **changes)
    params, random = draw_module(sizes, D), np.random.default_rng(1)
    layout = make_layout(SAMPLES, text_slots=20, visual_slots=60, num_images=3)
    shape = (*layout.visual_valid.shape, D), (*layout.text_valid.shape, D)
    hidden = TokenVectors(*(random.normal(size=s).astype(np.float32) for s in shape))
    scores = jitted(sizes, params, hidden, layout)
    for b, sample in enumerate(SAMPLES[:3]):
        row = lay_out(sample)
        behind = [i for i, slot in enumerate(row["text"]) if slot > row["visual"][0]]
        text = hidden.text[b, behind[-sizes.text_tokens :]]
        n = len(row["visual"])
        wanted = reference(sizes, params, hidden.visual[b, :n], text, np.array(row["grid"]))
        np.testing.assert_allclose(scores[b, :n], wanted, atol=1e-5)
        assert np.std(wanted) > 0.05
    order = np.argsort(-np.asarray(scores[0, :41]), kind="stable")[: round(0.3 * 41)]
    signals = {Hidden(): hidden, Weights("d"): Given(params)}
    kept = listed(run_stage(CoViPAL(keep_ratio=0.3, weights="d", module=sizes), layout, signals))
    assert kept[0] == sorted(order.tolist())
    assert [len(row) for row in kept] == [12, 11, 9, 0]


def test_images_alone_are_scored_as_if_there_were_no_others():
    params, random = draw_module(SMALL, D), np.random.default_rng(2)
    layout = make_layout([(1, (3, 4), 2, (2, 5), 4)])
    hidden = TokenVectors(
        random.normal(size=(1, 22, D)).astype(np.float32),
        random.normal(size=(1, 7, D)).astype(np.float32),
    )
    found = jitted(SMALL, params, hidden, layout, True)[0]
    row, text = lay_out((1, (3, 4), 2, (2, 5), 4)), hidden.text[0, 1:]
    for part in (slice(0, 12), slice(12, 22)):
        grid = np.array(row["grid"])[part]
        wanted = reference(SMALL, params, hidden.visual[0, part], text, grid)
        np.testing.assert_allclose(found[part], wanted, atol=1e-5)
    check_images_apart(CoViPAL(keep_ratio=0.4, per_image=True, module=SMALL, weights="e"))


def test_text_is_the_last_behind_the_first_image():
    layout = make_layout([(3, (2, 2), 2, (1, 2), 3), (2, (1, 1), 1), (4,)], text_slots=9)
    index, valid = choose_text(layout, 4)
    assert index.shape == (3, 4)
    chosen = [np.asarray(i)[np.asarray(v)].tolist() for i, v in zip(index, valid, strict=True)]
    assert chosen == [[4, 5, 6, 7], [2], []]


def test_pooled_tokens_are_even_runs():
    valid = jnp.asarray([[True] * 6 + [False] * 2, [True] * 2 + [False] * 6])
    shares = np.asarray(pool_evenly(valid, 4))
    np.testing.assert_allclose(shares[0].argmax(axis=0)[:6], [0, 0, 1, 2, 2, 3])
    np.testing.assert_allclose(shares[0].sum(axis=1), 1)
    np.testing.assert_allclose(shares[1].sum(axis=1), [1, 0, 1, 0])
    assert not shares[..., 6:].any()


def test_a_fresh_module_prefers_nothing_and_has_the_published_size():
    params = init_params(SMALL, D, jax.random.key(0))
    random = np.random.default_rng(0).normal(size=(1, 5, D)).astype(np.float32)
    valid = jnp.ones((1, 5), bool)
    scores = apply(SMALL, params, random, random, valid, valid, jnp.zeros((1, 5, 3), jnp.int32))
    assert not np.asarray(scores).any()
    shapes = covipal.shape_params(Sizes(), 3584)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == pytest.approx(8e6, rel=0.03)  # "about 8 M parameters for D=3584"


def test_positions_stay_and_a_later_layer_solves_its_budget():
    flat = model_config(8, sections=None)
    for spec, renumber in (("covipal", False), ("covipal:positions=reindex", True)):
        (stage,) = parse(spec).resolve(flat).stages
        assert stage.renumber == renumber
    (stage,) = parse("covipal:budget=0.4").resolve(flat).stages
    assert (stage.layer, stage.keep_ratio) == (0, 0.4)
    (stage,) = parse("covipal:budget=0.5,layer=2").resolve(flat).stages
    assert stage.keep_ratio == pytest.approx((0.5 - 0.25) / 0.75)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("covipal:width=30", "width must be a multiple of heads and of 4, got 30 and 8"),
        ("covipal:heads=0", "heads must be at least 1, got 0"),
        ("covipal:layer=-1", "layer must not be negative, got -1"),
        ("covipal:keep_ratio=0", r"keep_ratio must be in \(0, 1\], got 0"),
    ],
)
def test_wrong_fields_are_one_line(spec, message):
    with pytest.raises(MethodError, match=message):
        parse(spec)
    with pytest.raises(MethodError, match="a size that the weights name"):
        read_sizes(Sizes(), {"depth": 3})
    with pytest.raises(MethodError, match="impossible sizes: blocks must be at least 1, got 0"):
        read_sizes(Sizes(), {"blocks": 0})
