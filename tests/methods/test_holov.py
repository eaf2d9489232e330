"""HoloV: the worked numbers, a slow reference, and the counts of images and frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.methods.base import MethodError
from ivc_jax.methods.budget import measure
from ivc_jax.methods.drawn import FixedAttention, lay_out, make_layout
from ivc_jax.methods.holov import (
    HoloV,
    count_crops,
    cut_crops,
    score_holistically,
    share_quotas,
)
from ivc_jax.methods.requests import Hidden, TokenVectors, TowerAttention
from ivc_jax.methods.scope import Scope
from ivc_jax.methods.select import Segments
from ivc_jax.methods.testing import listed, run_stage

PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (2, (3, 3, 4), 2, (2, 9), 6)
SAMPLES = [PAIR, VIDEO, (4, (1, 1), 3, (2, 9)), (2, (6, 6), 6)]
BUCKET = {"rows": 5, "text_slots": 31, "visual_slots": 60, "num_images": 4}
D = 6

# The worked example: three crops of four tokens.
Z = [(1, 0), (0.8, 0.6), (0, 1), (1, 0.2), (0, 1), (0.1, 1), (-0.2, 1), (0.9, 0.1)]
Z += [(1, 1), (1, 0.9), (-1, 0.5), (0.2, -1)]
A = [0.05, 0.11, 0.07, 0.17, 0.06, 0.05, 0.04, 0.09, 0.12, 0.10, 0.08, 0.06]
H = [0.18569, 0.20623, 0.10897, 0.29911, 0.13762, 0.12096, 0.12743, 0.09399]
H += [0.27080, 0.24936, 0.10556, 0.09428]

fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
jitted_scores = fast(score_holistically, static_argnums=3)
jitted_quotas, jitted_cut = fast(share_quotas), fast(cut_crops)


def make_signals(layout, tokens, attention, junk=9.0):
    """Give tokens [n, D] and attention [n] of every sample as signals; padding holds junk."""
    B, V = layout.image_id.shape
    hidden = np.full((B, V, np.shape(tokens[0])[-1]), junk, np.float32)
    received = np.full((B, V), junk, np.float32)
    for b, (vectors, values) in enumerate(zip(tokens, attention, strict=True)):
        hidden[b, : len(vectors)], received[b, : len(values)] = vectors, values
    matrix = jnp.broadcast_to(jnp.asarray(received)[:, None], (B, V, V))
    visual = jnp.asarray(hidden)
    return {
        Hidden(): TokenVectors(visual, jnp.zeros((B, layout.text_valid.shape[1], visual.shape[2]))),
        TowerAttention(): FixedAttention(matrix, layout),
    }


def draw(sample, seed=0):
    """Draw tokens with a common direction, and attention with a heavy tail, of one sample."""
    count, generator = len(lay_out(sample)["image"]), np.random.default_rng([seed, 5])
    tokens = generator.normal(size=(count, D)) + generator.normal(size=D)
    attention = np.exp(1.5 * generator.normal(size=count)) / max(count, 1)
    return tokens.astype(np.float32), attention.astype(np.float32)


def run(method, samples, drawn, junk=9.0, bucket=BUCKET):
    """Run the method in a bucket that all tests share, so that it compiles once."""
    rows = [*samples, *[(5,)] * (bucket.get("rows", len(samples)) - len(samples))]
    layout = make_layout(rows, **{name: size for name, size in bucket.items() if name != "rows"})
    signals = make_signals(layout, *zip(*drawn, strict=True), junk=junk)
    chosen = run_stage(method, layout, signals)
    assert chosen.weights is None
    return listed(chosen)[: len(samples)]


def shares(weights, amount, open_crops):
    """Round down shares of an amount, and give what is left to the largest."""
    total = sum(weights[c] for c in open_crops)
    parts = [weights[c] / total if c in open_crops else 0.0 for c in range(len(weights))]
    given = [int(np.floor(amount * part * (1 + 1e-6))) for part in parts]
    for c in sorted(open_crops, key=lambda c: (-parts[c], c))[: amount - sum(given)]:
        given[c] += 1
    return given


def reference_frame(z, a, k, method) -> list[int]:
    """Follow the published steps for one frame in float64."""
    n = len(z)
    number = method.crops or max(1, 1024 * n // (576 * max(k, 1)))
    number = min(number, n)
    sizes = [n // number + (c < n % number) for c in range(number)]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    score = np.zeros(n)
    for start, size in zip(starts, sizes, strict=True):
        variance = np.zeros(size)
        for i in range(size):
            row = [0.0] * size
            for j in set(range(size)) - {i}:
                u, v = z[start + i], z[start + j]
                row[j] = u @ v / (np.linalg.norm(u) + 1e-6) / (np.linalg.norm(v) + 1e-6)
            mean = sum(row) / max(size - 1, 1)
            variance[i] = sum((cosine - mean) ** 2 for cosine in row) / max(size - 1, 1)
        if size == 1:
            variance[:] = 0
        crop = slice(start, start + size)
        scale = np.abs(a[crop]).mean() / (variance.mean() + 1e-6)
        score[crop] = a[crop] + method.alpha * scale * variance
    weights = [
        score[start : start + size].mean() ** method.sharpness
        for start, size in zip(starts, sizes, strict=True)
    ]
    quota = shares(weights, k, set(range(number)))
    for _ in range(number):
        excess = sum(max(q - size, 0) for q, size in zip(quota, sizes, strict=True))
        quota = [min(q, size) for q, size in zip(quota, sizes, strict=True)]
        if not excess:
            break
        room = [size - q for q, size in zip(quota, sizes, strict=True)]
        pull = [weight * free for weight, free in zip(weights, room, strict=True)]
        more = shares(pull, excess, {c for c in range(number) if room[c]})
        quota = [q + extra for q, extra in zip(quota, more, strict=True)]
    key, kept = (score if method.inner == "score" else a), []
    for start, size, q in zip(starts, sizes, quota, strict=True):
        order = np.argsort(-key[start : start + size], kind="stable")
        kept += (start + order[:q]).tolist()
    return sorted(kept)


def reference(sample, tokens, attention, method) -> list[int]:
    row, kept = lay_out(sample), []
    total = len(row["image"])
    whole = max(1, int(np.floor(total * method.keep_ratio)))
    keys = [(image, cell[0]) for image, cell in zip(row["image"], row["grid"], strict=True)]
    for key in sorted(set(keys)):
        members = [v for v in range(total) if keys[v] == key]
        k = whole * len(members) // total
        k = max(k, 1) if key[1] == 0 else k
        z, a = tokens[members].astype(np.float64), attention[members].astype(np.float64)
        kept += [members[i] for i in reference_frame(z, a, k, method)]
    return kept


def example_crops(number=3, count=12):
    layout = make_layout([(1, (1, count), 2)])
    within = Segments.by_image(layout)
    return within, jitted_cut(within, jnp.full((1, count), number, jnp.int32))


def test_scores_of_the_worked_example():
    _, crops = example_crops()
    tokens, attention = jnp.array([Z], jnp.float32), jnp.array([A])
    score = jitted_scores(tokens, attention, crops, 1.0)
    np.testing.assert_allclose(score[0], H, atol=1e-5)
    # The mean score of a crop is twice its mean attention, whatever the similarities.
    np.testing.assert_allclose(crops.mean(score)[0, ::4], [0.2, 0.12, 0.18], atol=1e-5)
    variance = [0.29900, 0.21204, 0.08587, 0.28450, 0.33227, 0.30373, 0.37423, 0.01709]
    variance += [0.46710, 0.46263, 0.07916, 0.10619]
    scale = np.repeat(np.reshape(A, (3, 4)).mean(1) / np.reshape(variance, (3, 4)).mean(1), 4)
    np.testing.assert_allclose((score[0] - attention[0]) / scale, variance, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0, 1, 3, 4, 8, 9]),
        ({"inner": "attention", "alpha": 0.09}, [1, 2, 3, 7, 8, 9]),
    ],
)
def test_kept_tokens_of_the_worked_example(fields, expected):
    layout = make_layout([(1, (3, 4), 2)], visual_slots=15)
    signals = make_signals(layout, [Z], [A])
    method = HoloV(keep_ratio=0.5, crops=3, **fields)
    assert listed(run_stage(method, layout, signals)) == [expected]


@pytest.mark.parametrize(
    ("weights", "amount", "expected"),
    [
        ([0.4, 0.24, 0.36], 6, [3, 1, 2]),
        ([0.8, 0.15, 0.05], 6, [4, 2, 0]),
        ([0.9, 0.06, 0.04], 8, [4, 3, 1]),
        ([0.01, 0.06, 0.02], 3, [0, 3, 0]),  # 6 / 9 * 3 is whole, in float32 just below
        ([1.0, 0.0, 0.0], 9, [4, 3, 2]),  # nobody with room has weight: equal parts
        ([0.0, 0.0, 0.0], 7, [3, 2, 2]),
        ([np.nan, 1.0, 0.0], 5, [1, 4, 0]),
        ([1e-3, 1e-6, 1e-9], 12, [4, 4, 4]),
    ],
)
def test_quotas(weights, amount, expected):
    within, crops = example_crops()
    weight = jnp.repeat(jnp.array([weights], jnp.float32), 4, axis=1)
    quota = jitted_quotas(weight, jnp.full((1, 12), amount, jnp.int32), crops, within)
    assert quota.tolist() == [np.repeat(expected, 4).tolist()]


def test_crops_are_runs_and_the_first_are_longer():
    layout = make_layout([(1, (1, 7), 2, (2, 1, 3), 1)], visual_slots=15)
    number = jnp.array([[3] * 7 + [9] * 3 + [2] * 3 + [0] * 2])
    crops = jitted_cut(Segments.by_frame(layout), number)
    assert crops.number.tolist() == [[0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 6, 7, -1, -1]]
    assert crops.count[0, :13].tolist() == [3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 2, 2, 1]


@pytest.mark.parametrize(
    ("tokens", "kept", "number"),
    [(576, 192, 5), (576, 128, 8), (576, 64, 16), (1296, 432, 5), (1296, 288, 8), (1296, 144, 16)],
)
def test_number_of_crops_follows_the_budget(tokens, kept, number):
    assert count_crops(jnp.array([[tokens]]), jnp.array([[kept]])).tolist() == [[number]]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"keep_ratio": 1 / 9},
        {"keep_ratio": 0.8, "sharpness": 3.0},
        {"keep_ratio": 0.3, "inner": "attention", "alpha": 0.09},
        {"keep_ratio": 0.6, "crops": 4, "alpha": 2.0},
        {"keep_ratio": 0.02},
    ],
)
def test_equals_the_slow_reference(fields):
    method = HoloV(**fields)
    for seed in range(3):
        drawn = [draw(sample, 10 * seed + i) for i, sample in enumerate(SAMPLES)]
        expected = [reference(s, *d, method) for s, d in zip(SAMPLES, drawn, strict=True)]
        assert run(method, SAMPLES, drawn) == expected


def test_every_frame_keeps_its_share_of_the_sample():
    drawn = [draw(VIDEO), draw(PAIR)]
    kept = run(HoloV(), [VIDEO, PAIR], drawn)
    counts = np.histogram(kept[0], [0, 12, 24, 36, 54])[0]
    assert counts.tolist() == [6, 6, 6, 9]
    # floor(20 * 20 / 41) and floor(20 * 21 / 41): less than floor(20 / 2) and floor(21 / 2).
    assert np.histogram(kept[1], [0, 20, 41])[0].tolist() == [9, 10]
    few = run(HoloV(keep_ratio=0.02), [VIDEO], drawn[:1])
    assert np.histogram(few[0], [0, 12, 24, 36, 54])[0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("kind", [HoloV, Scope])
def test_the_budget_is_the_keep_ratio(kind):
    model = model_config()
    for share in (0.1, 0.2, 1 / 3, 0.5, 0.7, 1.0):
        method = kind(budget=share).resolve(model)
        assert (method.keep_ratio, method.budget) == (share, None)
        assert measure(method.stages, model.decoder.num_layers) == pytest.approx(share, abs=1e-12)
        assert method.resolve(model) == method
    assert kind().resolve(model).stages == (*kind().stages,)
    assert kind().stages[0].keep_ratio == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio must be in"),
        ({"budget": 1.5}, "budget must be in"),
        ({"keep_ratio": 0.5, "budget": 0.5}, "exclude each other"),
        ({"alpha": -1.0}, "alpha must not be negative"),
        ({"sharpness": -1.0}, "sharpness must not be negative"),
        ({"inner": "variance"}, "inner must be one of"),
        ({"crops": 0}, "crops must be at least 1"),
        ({"positions": "new"}, "positions must be one of"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MethodError, match=message):
        HoloV(**fields)
