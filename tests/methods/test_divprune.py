"""DivPrune: the worked numbers, a slow reference, duplicates, and what forms a set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.methods.base import MethodError
from ivc_jax.methods.divprune import DivPrune, diversify, find_nearest
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import Embeddings, TokenVectors
from ivc_jax.methods.select import Segments, normalize
from ivc_jax.methods.testing import listed, run_stage

PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (2, (3, 3, 4), 2, (2, 9), 6)
SAMPLES = [PAIR, VIDEO, (4, (1, 1), 3, (2, 9)), (2, (6, 6), 6)]
BUCKET = {"text_slots": 31, "visual_slots": 60, "num_images": 4}
D = 12

# The worked example.
Z = [(1, 0), (0.95, 0.1), (0.9, 0.3), (0, 1), (0.1, 0.9), (-1, 0.2), (0.6, 0.6), (-0.8, 0.7)]
TWINS = [(1, 0), (1, 0), (0, 1), (0, 1), (1, 1), (1, 1)]

unoptimised = {"xla_backend_optimization_level": 0}
jitted = jax.jit(diversify, static_argnums=3, compiler_options=unoptimised)


def as_set(count, size):
    slots = jnp.zeros((1, count), jnp.int32)
    return Segments(slots, slots + count, 1), slots + size


def choose(vectors, size) -> list[int]:
    vectors = jnp.asarray(vectors, jnp.float32)[None]
    within, target = as_set(vectors.shape[1], size)
    return np.flatnonzero(jitted(vectors, within, target, vectors.shape[1])).tolist()


def run(method, samples, drawn, junk=np.nan, **bucket):
    """Run the method on vectors [n, D] of each sample; padding holds junk."""
    layout = make_layout(samples, **(BUCKET | bucket))
    visual = np.full((*layout.image_id.shape, np.shape(drawn[0])[-1]), junk, np.float32)
    for row, vectors in zip(visual, drawn, strict=True):
        row[: len(vectors)] = vectors
    text = jnp.zeros((len(samples), layout.text_index.shape[1], visual.shape[-1]))
    signals = {Embeddings(): TokenVectors(jnp.asarray(visual), text)}
    chosen = run_stage(method, layout, signals)
    assert chosen.weights is None
    return listed(chosen)


def draw(samples, seed=0):
    random = np.random.default_rng(seed)
    counts = [len(lay_out(sample)["image"]) for sample in samples]
    return [random.normal(size=(n, D)).astype(np.float32) + 0.3 for n in counts]


def follow(vectors, count) -> tuple[list[int], list[np.ndarray]]:
    """Follow the released steps in float64, picked tokens left out: picks, least distances."""
    vectors = np.asarray(vectors, np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    distance, order, seen = 1 - unit @ unit.T, [], []
    for _ in range(count):
        if order:
            least = distance[order].min(axis=0)
        elif len(vectors) > 1:
            least = np.sort(distance + np.diag([np.inf] * len(vectors)), axis=1)[:, 0]
        else:
            least = np.ones(1)
        seen.append(least)
        open_least = least.round(12)  # mutual neighbours tie
        open_least[order] = -np.inf
        order.append(int(np.argmax(open_least)))
    return order, seen


def reference(sample, vectors, method) -> list[int]:
    row, kept = lay_out(sample), []
    keys = np.array(row["image"]) if method.per_image else np.zeros(len(vectors), int)
    for key in np.unique(keys):
        members = np.flatnonzero(keys == key)
        count = max(1, round(method.keep_ratio * len(members)))
        kept += members[follow(vectors[members], count)[0]].tolist()
    return sorted(kept)


def test_worked_example():
    # Each size keeps one more: the order of the picks.
    kept = [choose(Z, size) for size in range(1, 9)]
    order = [5, 0, 4, 6, 7, 2]
    assert kept[:6] == [sorted(order[:size]) for size in range(1, 7)]
    assert kept[7] == list(range(8))
    found, steps = follow(Z, 4)
    assert found == order[:4]
    table = [
        [0.00549, 0.00549, 0.02342, 0.00612, 0.00612, 0.13289, 0.10557, 0.13289],
        [1.98058, 1.95466, 1.86824, 0.80388, 0.91337, 0, 1.55470, 0.13289],
        [0, 0.00549, 0.05132, 0.80388, 0.88957, 0, 0.29289, 0.13289],
        [0, 0.00549, 0.05132, 0.00612, 0, 0, 0.21913, 0.13289],
    ]
    np.testing.assert_allclose(steps, table, atol=6e-6)
    units = normalize(jnp.asarray([Z], jnp.float32))
    nearest = find_nearest(units, as_set(8, 0)[0])
    np.testing.assert_allclose(1 - nearest[0], table[0], atol=6e-6)


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [
        (0.5, [0, 4, 5, 6]),
        (0.25, [0, 5]),
        (0.75, [0, 2, 4, 5, 6, 7]),
        (0.3125, [0, 5]),  # 2.5
        (0.4375, [0, 4, 5, 6]),  # 3.5
    ],
)
def test_shares_are_rounded_half_to_even(ratio, kept):
    assert run(DivPrune(keep_ratio=ratio), [(2, (2, 4), 3)], [Z]) == [kept]


@pytest.mark.parametrize(
    ("tokens", "ratio", "count"),
    [
        (576, 0.098, 56),
        (576, 1 / 3, 192),
        (576, 1 / 9, 64),
        (25, 0.5, 12),
        (27, 0.5, 14),
        (2340, 0.098, 229),
        (1, 0.1, 1),
        (4, 0.1, 1),
    ],
)
def test_counts(tokens, ratio, count):
    method = DivPrune(keep_ratio=ratio)
    assert method.capacity(method.stages[0], tokens, 1) == count


def test_duplicates_are_kept_once_while_others_are_left():
    for size in (3, 4, 5, 6):
        kept = choose(TWINS, size)
        assert len(set(kept)) == size
        assert {TWINS[token] for token in kept} == set(TWINS)


def test_a_zero_vector_is_far_from_all():
    vectors = np.random.default_rng(0).normal(size=(8, 4))
    vectors[3] = 0
    assert choose(vectors, 4) == sorted(follow(vectors, 4)[0])
    assert choose(np.zeros((5, 4)), 2) == [0, 1]


def test_distances_that_rounding_could_make_are_ties():
    """The last token is farther from the first than the second is, by half of the bound."""
    angles = np.deg2rad([0, 80, -80.00003])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert [choose(vectors, size) for size in (1, 2)] == [[0], [0, 1]]


@pytest.mark.parametrize(
    "fields",
    [{}, {"keep_ratio": 1 / 9}, {"keep_ratio": 0.8}, {"keep_ratio": 0.3, "per_image": False}],
)
def test_equals_the_slow_reference(fields):
    method = DivPrune(**fields)
    for seed in range(3):
        drawn = draw(SAMPLES, seed)
        expected = [reference(*each, method) for each in zip(SAMPLES, drawn, strict=True)]
        assert run(method, SAMPLES, drawn) == expected


@pytest.mark.parametrize("grid", [(12, 12), (16, 18), (24, 24)])
def test_many_picks_equal_the_slow_reference(grid):
    """Chunks are the search's own, so that more tokens than one holds are looked through."""
    count = int(np.prod(grid))
    vectors = np.random.default_rng(count).normal(size=(count, 64)).astype(np.float32)
    assert choose(vectors, count // 3) == sorted(follow(vectors, count // 3)[0])


def test_a_video_is_one_set_or_a_set_a_frame():
    drawn = draw([VIDEO])
    whole = run(DivPrune(keep_ratio=0.25), [VIDEO], drawn)[0]
    assert np.histogram(whole, [0, 36, 54])[0].tolist() == [9, 4]
    frames = run(DivPrune(keep_ratio=0.25, per_frame=True), [VIDEO], drawn)[0]
    assert np.histogram(frames, [0, 12, 24, 36, 54])[0].tolist() == [3, 3, 3, 4]
    alone = [drawn[0][start : start + 12] for start in (0, 12, 24)]
    expected = [12 * i + pick for i in range(3) for pick in sorted(follow(alone[i], 3)[0])]
    assert frames[:9] == expected


def test_pooled_images_share_one_count():
    method = DivPrune(keep_ratio=0.5, per_image=False)
    drawn = draw([PAIR])
    assert len(run(method, [PAIR], drawn)[0]) == 20  # of 41; 10 and 10 alone
    assert method.capacity(method.stages[0], 41, 9) == 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio must be in"),
        ({"keep_ratio": 0.5, "budget": 0.5}, "exclude each other"),
        ({"per_image": False, "per_frame": True}, "leave per_image"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MethodError, match=message):
        DivPrune(**fields)
