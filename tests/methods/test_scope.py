"""SCOPE: the worked numbers, a slow reference, and what the lazy search may not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.methods.base import MethodError
from ivc_jax.methods.drawn import FixedAttention, lay_out, make_layout
from ivc_jax.methods.requests import TowerAttention, TowerFeatures
from ivc_jax.methods.scope import Scope, cover
from ivc_jax.methods.testing import listed, run_stage

PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (2, (3, 3, 4), 2, (2, 9), 6)
SAMPLES = [PAIR, VIDEO, (4, (1, 1), 3, (2, 9)), (2, (6, 6), 6)]
BUCKET = {"rows": 5, "text_slots": 31, "visual_slots": 60, "num_images": 4}
E = 6

# The worked example.
F = [(1, 0), (0.95, 0.1), (0.9, 0.3), (0, 1), (0.1, 0.9), (-1, 0.2), (0.6, 0.6), (-0.8, 0.7)]
A = [0.30, 0.28, 0.10, 0.06, 0.05, 0.07, 0.04, 0.10]

jitted_cover = jax.jit(cover, compiler_options={"xla_backend_optimization_level": 0})


def make_signals(layout, features, attention, junk=9.0):
    """Give features [n, E] and attention [n] of every sample as signals; padding holds junk."""
    B, V = layout.image_id.shape
    vectors = np.full((B, V, np.shape(features[0])[-1]), junk, np.float32)
    received = np.full((B, V), junk, np.float32)
    for b, (rows, values) in enumerate(zip(features, attention, strict=True)):
        vectors[b, : len(rows)], received[b, : len(values)] = rows, values
    matrix = jnp.broadcast_to(jnp.asarray(received)[:, None], (B, V, V))
    return {
        TowerFeatures(): jnp.asarray(vectors),
        TowerAttention(): FixedAttention(matrix, layout),
    }


def draw(sample, seed=0):
    """Draw features with a common direction, and attention with a heavy tail, of one sample."""
    count, generator = len(lay_out(sample)["image"]), np.random.default_rng([seed, 3])
    features = generator.normal(size=(count, E)) + generator.normal(size=E)
    attention = np.exp(generator.normal(size=count)) / max(count, 1)
    return features.astype(np.float32), attention.astype(np.float32)


def run(method, samples, drawn, junk=9.0, bucket=BUCKET):
    """Run the method in a bucket that all tests share, so that it compiles once."""
    rows = [*samples, *[(5,)] * (bucket.get("rows", len(samples)) - len(samples))]
    layout = make_layout(rows, **{name: size for name, size in bucket.items() if name != "rows"})
    signals = make_signals(layout, *zip(*drawn, strict=True), junk=junk)
    chosen = run_stage(method, layout, signals)
    assert chosen.weights is None
    return listed(chosen)[: len(samples)]


def greedy(features, saliency, count) -> tuple[list[int], list[np.ndarray], float]:
    """Follow the published steps in float64: order of picks, gains of each step, coverage."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosine, covered, order, gains = unit @ unit.T, np.zeros(len(unit)), [], []
    for _ in range(count):
        gain = np.maximum(cosine - covered[:, None], 0).sum(axis=0)
        score = gain * saliency
        score[order] = -np.inf
        order.append(int(np.argmax(score)))
        gains.append(gain)
        covered = np.maximum(covered, cosine[:, order[-1]])
    return order, gains, covered.sum()


def reference(sample, features, attention, method) -> list[int]:
    row, kept = lay_out(sample), []
    keys = [(image, cell[0]) for image, cell in zip(row["image"], row["grid"], strict=True)]
    features, attention = features.astype(np.float64), attention.astype(np.float64)
    if method.saliency == "norm":
        attention = np.linalg.norm(features, axis=1)
    for key in sorted(set(keys)):
        members = [v for v in range(len(keys)) if keys[v] == key]
        count = int(np.floor(len(members) * method.keep_ratio))
        count = max(count, 1) if key[1] == 0 else count
        order = greedy(features[members], attention[members] ** method.alpha, count)[0]
        kept += [members[i] for i in order]
    return sorted(kept)


def pick(features, saliency, count) -> list[int]:
    features, saliency = jnp.asarray(features, jnp.float32), jnp.asarray(saliency, jnp.float32)
    slots = jnp.zeros((1, len(features)), jnp.int32)
    return np.flatnonzero(
        jitted_cover(features[None], saliency[None], slots, slots + count)
    ).tolist()


@pytest.mark.parametrize(
    ("alpha", "order", "coverage"),
    [(1.0, [1, 7, 3, 2], 7.74992), (0.0, [6, 5, 1, 3], 7.83207), (0.5, [1, 7, 3, 6], None)],
)
def test_worked_example(alpha, order, coverage):
    features, attention = np.array(F), np.array(A)
    # Each count keeps one more token: the order of the picks.
    kept = [pick(F, attention**alpha, count) for count in (1, 2, 3, 4)]
    assert kept == [sorted(order[:count]) for count in (1, 2, 3, 4)]
    reference_order, gains, total = greedy(features, attention**alpha, 4)
    assert reference_order == order
    if coverage:
        assert total == pytest.approx(coverage, abs=1e-5)
    if alpha == 1:
        third = np.delete(gains[2], [1, 7])
        np.testing.assert_allclose(
            third, [0.00549, 0.14061, 0.76401, 0.76763, 0.13289, 0.48086], atol=1e-5
        )
    layout = make_layout([(2, (2, 4), 3)], visual_slots=11)
    signals = make_signals(layout, [F], [A])
    assert listed(run_stage(Scope(alpha=alpha), layout, signals)) == [sorted(order)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"keep_ratio": 1 / 9},
        {"keep_ratio": 0.8, "alpha": 2.0},
        # Not 0: two tokens that cover nothing but each other would gain the same.
        {"keep_ratio": 0.3, "alpha": 0.2},
        {"keep_ratio": 0.6, "saliency": "norm"},
        {"keep_ratio": 0.02},
    ],
)
def test_equals_the_slow_reference(fields):
    method = Scope(**fields)
    for seed in range(3):
        drawn = [draw(sample, 10 * seed + i) for i, sample in enumerate(SAMPLES)]
        expected = [reference(s, *d, method) for s, d in zip(SAMPLES, drawn, strict=True)]
        assert run(method, SAMPLES, drawn) == expected


def test_picks_many_tokens_in_the_order_of_a_full_search():
    generator = np.random.default_rng(0)
    smooth = np.cumsum(generator.normal(size=(300, 8)), axis=0) / 3 + generator.normal(size=8)
    saliency = np.exp(generator.normal(size=300))
    order = greedy(smooth.astype(np.float32).astype(np.float64), saliency, 150)[0]
    for count in (1, 10, 75, 150):
        assert pick(smooth, saliency, count) == sorted(order[:count])


def test_ties_go_to_the_first_token():
    # Sixty copies of four vectors: a pick covers its copies, which then gain nothing.
    copies = np.tile(np.eye(4), (15, 1))
    assert pick(copies, np.ones(60), 4) == [0, 1, 2, 3]
    assert pick(copies, np.ones(60), 9) == list(range(9))
    last = np.where(np.arange(60) >= 40, 2.0, 1.0)
    assert pick(copies, last, 4) == [40, 41, 42, 43]
    assert pick(copies, last, 6) == [0, 1, 40, 41, 42, 43]
    assert pick(copies, np.zeros(60), 3) == [0, 1, 2]


def test_every_frame_keeps_its_own_share():
    drawn = [draw(VIDEO), draw(PAIR)]
    kept = run(Scope(), [VIDEO, PAIR], drawn)
    assert np.histogram(kept[0], [0, 12, 24, 36, 54])[0].tolist() == [6, 6, 6, 9]
    assert np.histogram(kept[1], [0, 20, 41])[0].tolist() == [10, 10]
    few = run(Scope(keep_ratio=0.02), [VIDEO], drawn[:1])
    assert np.histogram(few[0], [0, 12, 24, 36, 54])[0].tolist() == [1, 0, 0, 1]


def test_frames_do_not_see_each_other():
    drawn = [draw(VIDEO)]
    before = run(Scope(), [VIDEO], drawn)[0]
    drawn[0][0][12:24] *= -1  # the second frame turns around, which changes no cosine within it
    assert run(Scope(), [VIDEO], drawn)[0] == before


def test_norm_needs_no_attention():
    method = Scope(saliency="norm")
    assert method.requests(method.stages[0]) == (TowerFeatures(),)
    method = Scope()
    assert method.requests(method.stages[0]) == (TowerFeatures(), TowerAttention())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio must be in"),
        ({"keep_ratio": 0.5, "budget": 0.5}, "exclude each other"),
        ({"alpha": -1.0}, "alpha must not be negative"),
        ({"saliency": "entropy"}, "saliency must be one of"),
        ({"positions": "new"}, "positions must be one of"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MethodError, match=message):
        Scope(**fields)
