"""CDPruner: the worked numbers, a slow reference, exhausted kernels, and what forms a set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.methods.base import MethodError
from ivc_jax.methods.cdpruner import CDPruner, maximise, scale
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import Embeddings, TokenVectors
from ivc_jax.methods.select import Segments
from ivc_jax.methods.testing import listed, run_stage

PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (2, (3, 3, 4), 2, (2, 9), 6)
SAMPLES = [PAIR, VIDEO, (4, (1, 1), 3, (2, 9)), (2, (6, 6), 6)]  # the third has no text behind
BUCKET = {"text_slots": 31, "visual_slots": 60, "num_images": 4}
D = 24

# The worked example.
F = [(1, 0, 0, 0.2), (0.9, 0.1, 0, 0.2), (0, 1, 0, 0.1), (0, 0.8, 0.6, 0), (0.2, 0, 1, 0)]
F += [(-0.5, 0.5, 0, 1)]
COSINE = [1, 0.8, 0, 0.6, -1, 0.28]

unoptimised = {"xla_backend_optimization_level": 0}
jitted = jax.jit(maximise, static_argnums=4, compiler_options=unoptimised)


def as_set(count) -> Segments:
    slots = jnp.zeros((1, count), jnp.int32)
    return Segments(slots, slots + count, 1)


def choose(vectors, cosine, size, theta=None) -> list[int]:
    vectors, within = jnp.asarray(vectors, jnp.float32)[None], as_set(len(vectors))
    relevance, near = scale(jnp.asarray(cosine, jnp.float32)[None], within, theta)
    counts = jnp.full((1, len(cosine)), size, jnp.int32)
    keep = jitted(vectors, relevance, within, counts, len(cosine), near)
    return np.flatnonzero(keep).tolist()


def follow(vectors, cosine, count, theta=None) -> tuple[list[int], list[np.ndarray]]:
    """Divide determinants in float64: picks, and gains before each."""
    vectors, cosine = np.asarray(vectors, np.float64), np.asarray(cosine, np.float64)
    width = np.ptp(cosine)
    r = (cosine - cosine.min() + 1e-6) / width if width > 1e-5 else np.ones(len(cosine))
    r = r if theta is None else np.exp(theta / (2 * (1 - theta)) * r)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    kernel, order, seen = (r[:, None] * unit) @ (r[:, None] * unit).T, [], []
    for _ in range(count):
        left = [token for token in range(len(r)) if token not in order]
        # The Schur complements of the picked tokens.
        known, own = kernel[np.ix_(order, order)], kernel[order]
        gain = np.diag(kernel) - (own * np.linalg.solve(known, own)).sum(axis=0)
        gain[order] = -np.inf
        seen.append(gain)
        if gain.max() <= 1e-6 * np.diag(kernel).max():
            rest = sorted(left, key=lambda token: (-r[token], token))
            return order + rest[: count - len(order)], seen
        order.append(int(np.argmax(gain)))
    return order, seen


def draw(samples, seed=0, width=D):
    """Draw vectors of visual and text tokens of each sample."""
    random, parts = np.random.default_rng(seed), []
    for sample in samples:
        row = lay_out(sample)
        sizes = len(row["image"]), len(row["text"])
        parts.append([random.normal(size=(n, width)).astype(np.float32) for n in sizes])
    return parts


def run(method, samples, drawn, junk=np.nan):
    layout = make_layout(samples, **BUCKET)
    tables = []
    for place, slots in enumerate((layout.visual_index, layout.text_index)):
        table = np.full((*slots.shape, drawn[0][0].shape[1]), junk, np.float32)
        for row, parts in zip(table, drawn, strict=True):
            row[: len(parts[place])] = parts[place]
        tables.append(jnp.asarray(table))
    return listed(run_stage(method, layout, {Embeddings(): TokenVectors(*tables)}))


def compare(visual, text) -> np.ndarray:
    visual, text = (
        each / np.linalg.norm(each, axis=1, keepdims=True)
        for each in (visual.astype(np.float64), text.astype(np.float64))
    )
    return (visual @ text.T).mean(axis=1)


def reference(sample, vectors, method) -> list[int]:
    row, kept = lay_out(sample), []
    keys = [(image, cell[0]) for image, cell in zip(row["image"], row["grid"], strict=True)]
    behind = np.array(row["text"]) > max(row["visual"])
    text = vectors[1][behind] if behind.any() else vectors[1]
    cosine = compare(vectors[0], text) * (-1 if method.negate else 1)
    for key in sorted(set(keys)):
        members = np.array([token for token in range(len(keys)) if keys[token] == key])
        count = max(int(len(members) * method.keep_ratio), key[1] == 0)
        picks = follow(vectors[0][members], cosine[members], count, method.theta)[0]
        kept += members[picks].tolist()
    return sorted(kept)


def test_worked_example_negated():
    negated = np.negative(COSINE)
    order, gains = follow(F, negated, 4)
    assert order == [4, 2, 5, 1]
    table = [
        [0, 0.01000, 0.25000, 0.04000, 1, 0.12960],
        [0, 0.00964, 0.25000, 0.02615, -np.inf, 0.12877],
        [0, 0.00947, -np.inf, 0.00081, -np.inf, 0.09797],
        [0, 0.00881, -np.inf, 0.00080, -np.inf, -np.inf],
    ]
    np.testing.assert_allclose(gains, table, atol=6e-6)
    relevance, _ = scale(jnp.asarray(negated, jnp.float32)[None], as_set(6))
    np.testing.assert_allclose(relevance[0], np.add([0, 0.1, 0.5, 0.2, 1, 0.36], 5e-7), atol=1e-7)
    kept = {size: choose(F, negated, size) for size in range(2, 7)}
    assert kept == {
        2: [2, 4],
        3: [2, 4, 5],
        4: [1, 2, 4, 5],
        5: [1, 2, 3, 4, 5],  # four dimensions are used up
        6: [0, 1, 2, 3, 4, 5],
    }


def test_worked_example_as_it_is():
    # Each size keeps one more: the order of the picks.
    order = [0, 3, 5, 2]
    kept = [choose(F, COSINE, size) for size in range(1, 5)]
    assert kept == [sorted(order[:size]) for size in range(1, 5)]
    relevance, _ = scale(jnp.asarray([COSINE], jnp.float32), as_set(6))
    np.testing.assert_allclose(relevance[0], [1, 0.9, 0.5, 0.8, 0, 0.64], atol=6e-7)


def test_worked_example_with_a_weight():
    negated, theta = np.negative(COSINE), 0.5
    relevance, _ = scale(jnp.asarray(negated, jnp.float32)[None], as_set(6), theta)
    wanted = [1, 1.05127, 1.28403, 1.10517, 1.64872, 1.19722]
    np.testing.assert_allclose(relevance[0], wanted, atol=6e-6)
    order, gains = follow(F, negated, 3, theta)
    assert order == [4, 2, 5]
    second = [0.96302, 1.06514, 1.64872, 0.79861, -np.inf, 1.42414]
    np.testing.assert_allclose(gains[1], second, atol=6e-6)
    assert choose(F, negated, 3, theta) == [2, 4, 5]


def test_tokens_alike_to_the_text_have_no_relevance():
    relevance, _ = scale(jnp.full((1, 6), 0.3), as_set(6))
    np.testing.assert_array_equal(relevance, np.ones((1, 6)))


def test_gains_that_rounding_could_make_are_ties():
    """The last token gains more than the second does, by half of the bound."""
    angles = np.deg2rad([0, 60, -60.00003])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert choose(vectors, np.zeros(3), 2) == [0, 1]
    # A thousandth of a cosine is stretched to all of the relevance, and its rounding too.
    assert choose(np.eye(3), [0.3, 0.301, 0.301 + 6e-8], 1) == [1]


def test_a_vector_that_is_no_number_spoils_its_own_image_alone():
    drawn = draw([PAIR])
    whole = run(CDPruner(), [PAIR], drawn)[0]
    drawn[0][0][30] = np.nan  # of the second image, which begins at 20
    spoilt = run(CDPruner(), [PAIR], drawn)[0]
    assert len(spoilt) == len(whole)
    assert spoilt[:10] == whole[:10]
    assert 30 not in spoilt
    # Nor does it end the search there.
    assert choose([(1, 0), (np.nan, np.nan), (1, 0.1), (0, 1)], np.zeros(4), 2) == [0, 3]


@pytest.mark.parametrize(
    "fields",
    [{}, {"keep_ratio": 1 / 9}, {"keep_ratio": 0.8, "theta": 0.7}, {"negate": True}],
)
def test_equals_the_slow_reference(fields):
    method = CDPruner(**fields)
    for seed in range(3):
        drawn = draw(SAMPLES, seed)
        expected = [reference(*each, method) for each in zip(SAMPLES, drawn, strict=True)]
        assert run(method, SAMPLES, drawn) == expected


@pytest.mark.parametrize("grid", [(12, 12), (16, 18), (24, 24)])
def test_many_picks_equal_the_slow_reference(grid):
    """More picks than one block of the factor has rows."""
    count, random = int(np.prod(grid)), np.random.default_rng(sum(grid))
    vectors, cosine = random.normal(size=(count, 128)), random.uniform(-0.2, 0.3, count)
    vectors, cosine = vectors.astype(np.float32), cosine.astype(np.float32)
    for size in (count // 9, 70):
        assert choose(vectors, cosine, size) == sorted(follow(vectors, cosine, size)[0])


@pytest.mark.parametrize("size", [20, 64, 65, 80, 143, 144])
def test_an_exhausted_kernel_goes_on_by_relevance(size):
    random = np.random.default_rng(1)
    vectors, cosine = random.normal(size=(144, 16)), random.uniform(-1, 1, 144)
    kept = choose(vectors, cosine, size)
    assert kept == sorted(follow(vectors, cosine, size)[0])
    assert len(kept) == size


def test_duplicates_come_last():
    twins = np.repeat(np.eye(4), 3, axis=0)
    assert choose(twins, np.zeros(12), 4) == [0, 3, 6, 9]
    assert choose(twins, np.zeros(12), 6) == [0, 1, 2, 3, 6, 9]


def test_every_frame_keeps_its_own_share():
    drawn = draw([VIDEO])
    kept = run(CDPruner(), [VIDEO], drawn)[0]
    assert np.histogram(kept, [0, 12, 24, 36, 54])[0].tolist() == [6, 6, 6, 9]
    few = run(CDPruner(keep_ratio=0.02), [VIDEO], drawn)[0]
    assert np.histogram(few, [0, 12, 24, 36, 54])[0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("theta", [-0.1, 1.0])
def test_bad_fields_are_named(theta):
    with pytest.raises(MethodError, match=r"theta must be in \[0, 1\)"):
        CDPruner(theta=theta)
