"""DART: the worked numbers in both orders of pivots, counts, and a slow reference."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.methods.base import MethodError
from ivc_jax.methods.budget import BudgetError, measure
from ivc_jax.methods.dart import Dart, take_unlike
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import Hidden, Keys, TokenVectors
from ivc_jax.methods.select import Segments
from ivc_jax.methods.testing import listed, run_stage

SAMPLES = [
    (3, (4, 5), 4, (3, 7), 5),
    (2, (3, 3, 4), 2, (2, 9), 3),  # fewer text tokens behind than pivots
    (4, (1, 2), 3, (2, 9), 7),
    (2, (6, 6)),  # none
]
BUCKET = {"text_slots": 31, "visual_slots": 60, "num_images": 4}
G, C, D = 2, 3, 5

# The worked example: 2 tokens of text, 10 of an image, 4 of text.
SAMPLE = (2, (2, 5), 4)
KEYS = [(1, 1), (1, -2), (0.2, -0.3), (1, 0.4), (0.5, -0.5), (2, -0.1), (0.1, 0.2), (-0.9, 0.3)]
KEYS += [(0.6, 0.6), (-1.6, 0.4), (0.3, 0), (0.7, -0.1)]
KEYS += [(0.5, 0.1), (-1, 1.5), (0.2, 0.2), (1.2, -0.7)]
STATES = [(0, 0.1), (0.1, 0), (1, 0), (0.95, 0.1), (0.9, 0.3), (0, 1), (0.1, 0.9), (-1, 0.2)]
STATES += [(0.6, 0.6), (-0.8, 0.7), (0.2, -1), (0.5, -0.5)]
STATES += [(1, 0.2), (0.3, 1), (-0.5, -0.5), (0.7, -0.1)]
LENGTHS = [2, 3, 0.5, 1.4, 1, 2.1, 0.3, 1.2, 1.2, 2, 0.3, 0.8, 0.6, 2.5, 0.4, 1.9]


def split(samples, vectors, layout, junk=np.nan):
    """Split vectors [N, ...] of every sample into the slots of a layout; padding holds junk."""
    parts = []
    for name, slots in (("visual", layout.visual_index), ("text", layout.text_index)):
        table = np.full((*slots.shape, *np.shape(vectors[0])[1:]), junk, np.float32)
        for row, sample, each in zip(table, samples, vectors, strict=True):
            where = lay_out(sample)[name]
            row[: len(where)] = np.asarray(each)[where]
        parts.append(jnp.asarray(table))
    return TokenVectors(*parts)


def run(method, samples, keys, states, **bucket):
    layout = make_layout(samples, **(BUCKET | bucket))
    asked = method.requests(method.stages[0])
    signals = {
        request: split(samples, vectors, layout)
        for request, vectors in zip(asked, (keys, states), strict=True)
    }
    return listed(run_stage(method, layout, signals))


def mark(method, order=None) -> list[int]:
    """Mark tokens of the worked example, pivots in a given order."""
    layout = make_layout([SAMPLE])
    lengths = split([SAMPLE], [np.abs(KEYS).sum(axis=1)], layout)
    states = split([SAMPLE], [STATES], layout)
    go = jax.jit(partial(method.mark, stage=method.stages[0], order=order))
    return np.flatnonzero(go(lengths, states, layout)[0]).tolist()


def cosine(a, b):
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(axis=-1) / np.maximum(norms, 1e-12)


def follow(visual, text, lengths, states, method, count) -> list[int]:
    """Follow the steps over one set of visual tokens and the text behind it, in float64."""
    rank = sorted(visual, key=lambda token: (-lengths[token], token))
    pivots = rank[: method.visual_pivots]
    pivots += sorted(text, key=lambda token: (-lengths[token], token))[: method.text_pivots]
    if method.counts == "code":
        kept, quotas = rank[: method.visual_pivots], [count // len(pivots)] * len(pivots)
    else:
        kept, left = rank[: min(count, method.visual_pivots)], count - method.visual_pivots
        quotas = [
            max(left, 0) // len(pivots) + (place < max(left, 0) % len(pivots))
            for place in range(len(pivots))
        ]
    free = [token for token in visual if token not in kept]
    for pivot, quota in zip(pivots, quotas, strict=True):
        alike = cosine(states[free], states[pivot])
        taken = [free[i] for i in np.argsort(alike, kind="stable")[:quota]]
        kept, free = kept + taken, [token for token in free if token not in taken]
    return kept


def reference(sample, keys, states, method) -> list[int]:
    row, kept = lay_out(sample), []
    lengths = np.abs(keys.astype(np.float64)).sum(axis=(1, 2))
    visual, images = np.array(row["visual"]), np.array(row["image"])
    text = [slot for slot in row["text"] if slot > visual.max()]
    for image in sorted(set(images)) if method.per_image else [None]:
        members = visual if image is None else visual[images == image]
        product = method.keep_ratio * len(members)
        count = int(product) if method.counts == "code" else max(1, round(product))
        kept += follow(members.tolist(), text, lengths, states.astype(np.float64), method, count)
    return sorted(np.searchsorted(visual, kept).tolist())


def draw(samples, seed):
    random = np.random.default_rng(seed)
    lengths = [len(lay_out(sample)["positions"]) for sample in samples]
    keys = [random.normal(size=(n, G, C)).astype(np.float32) for n in lengths]
    return keys, [random.normal(size=(n, D)).astype(np.float32) for n in lengths]


def test_lengths_of_the_worked_example():
    np.testing.assert_allclose(np.abs(KEYS).sum(axis=1), LENGTHS)
    states = np.array(STATES)
    # The pivots 3, 7 of the image and 1, 3 of the text each meet their first choice.
    pairs = {(9, 11): -0.99779, (13, 10): -0.88287, (5, 2): 0.0, (15, 7): -0.99846}
    pairs |= {(5, 10): -0.98058, (13, 7): -0.09392, (15, 6): -0.03123, (9, 10): -0.79331}
    for (pivot, token), value in pairs.items():
        assert cosine(states[pivot], states[token]) == pytest.approx(value, abs=6e-6)


@pytest.mark.parametrize(
    ("fields", "order", "kept"),
    [
        # (a): 9, 13, 5, 15, as released; then 5, 9, 13, 15
        ({"text_pivots": 2, "keep_ratio": 0.4}, (1, 2, 0, 3), [0, 3, 5, 7, 8, 9]),
        ({"text_pivots": 2, "keep_ratio": 0.4}, None, [3, 4, 5, 7, 8, 9]),
        # (b): 9, 13, 5; then 5, 9, 13
        ({"text_pivots": 1, "keep_ratio": 0.6}, (1, 2, 0), [0, 1, 2, 3, 5, 7, 8, 9]),
        ({"text_pivots": 1, "keep_ratio": 0.6}, None, [0, 1, 2, 3, 5, 7, 8, 9]),
        # (c)
        ({"text_pivots": 0, "keep_ratio": 0.4}, (1, 0), [0, 1, 3, 7, 8, 9]),
        ({"text_pivots": 0, "keep_ratio": 0.4}, None, [0, 1, 3, 7, 8, 9]),
    ],
)
def test_worked_example(fields, order, kept):
    method = Dart(visual_pivots=2, counts="code", **fields)
    assert mark(method, order) == kept
    if order is None:
        assert run(method, [SAMPLE], [KEYS], [STATES]) == [kept]


@pytest.mark.parametrize(
    ("tokens", "ratio", "exact", "code"),
    [
        (576, 192 / 576, 192, 196),
        (576, 128 / 576, 128, 132),
        (576, 64 / 576, 64, 68),
        (576, 1 - 0.667, 192, 188),
        (576, 1 - 0.778, 128, 124),
        (576, 1 - 0.889, 64, 60),
        (1296, 1 - 0.667, 432, 428),
        (1296, 1 - 0.778, 288, 284),
        (1296, 1 - 0.889, 144, 140),
        (345, 1 - 0.667, 115, 116),
        (345, 1 - 0.778, 77, 76),
        (345, 1 - 0.889, 38, 36),
    ],
)
def test_counts(tokens, ratio, exact, code):
    for counts, wanted in (("exact", exact), ("code", code)):
        method = Dart(keep_ratio=ratio, counts=counts)
        (stage,), none = method.stages, jnp.zeros((1, 1), jnp.int32)
        count = none + method._count(stage, tokens)[-1]
        alone, quotas = method.share(count, none + 4, 8)
        assert int(alone[0, 0]) + int(quotas.sum()) == wanted
        assert method.capacity(stage, tokens, 1) >= wanted


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"keep_ratio": 1 / 9},
        {"keep_ratio": 0.04},  # fewer than visual pivots
        {"keep_ratio": 0.8, "counts": "code"},
        {"keep_ratio": 0.4, "per_image": True},
        {"keep_ratio": 0.7, "per_image": True, "counts": "code", "visual_pivots": 1},
    ],
)
def test_equals_the_slow_reference(fields, seed):
    method = Dart(**fields)
    drawn = draw(SAMPLES, seed)
    expected = [reference(*each, method) for each in zip(SAMPLES, *drawn, strict=True)]
    assert run(method, SAMPLES, *drawn) == expected


def test_equal_tokens_go_by_their_index():
    ones = [np.ones((16, 2))]
    assert run(Dart(keep_ratio=0.3), [SAMPLE], ones, ones) == [[0, 1, 2]]
    assert run(Dart(keep_ratio=0.6), [SAMPLE], ones, ones) == [[0, 1, 2, 3, 4, 5]]


def test_cosines_that_rounding_could_make_are_ties():
    cosine = jnp.asarray([[[0.9, 0.1, 0.1 - 3e-7]]])
    within = Segments.by_sample(make_layout([(1, (1, 3), 1)]))
    quotas, none = jnp.ones((1, 1, 3), jnp.int32), jnp.zeros((1, 3), bool)
    assert take_unlike(cosine, quotas, none, within)[0].tolist() == [False, True, False]


def test_released_counts_are_bounded_by_the_tokens():
    method = Dart(keep_ratio=1.0, counts="code")
    assert method.capacity(method.stages[0], 10, 1) == 10


def test_a_budget_moves_the_cut_forward_as_far_as_it_must():
    for given, target, layer in ((2, 0.5, 2), (2, 0.3, 1), (0, 0.3, 0)):
        method = Dart(layer=given, budget=target).resolve(model_config(5))
        assert method.layer == layer
        assert measure(method.stages, 5) == pytest.approx(target)
    with pytest.raises(BudgetError, match="cannot be reached on 5 layers"):
        Dart(budget=0.1).resolve(model_config(5))


def test_before_the_decoder_it_goes_by_what_enters_it():
    method = Dart(layer=0)
    assert method.requests(method.stages[0]) == (Hidden(), Hidden(normed=True))
    method = Dart(layer=3)
    assert method.requests(method.stages[0]) == (Keys(2), Hidden(normed=True))
    keys, states = draw(SAMPLES, 5)
    flat = [each.reshape(len(each), -1) for each in keys]  # hidden states have one axis
    assert run(Dart(layer=0), SAMPLES, flat, states) == run(Dart(), SAMPLES, keys, states)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": -1}, "layer must not be negative"),
        ({"visual_pivots": 0}, "visual_pivots must be at least 1"),
        ({"text_pivots": -1}, "text_pivots must not be negative"),
        ({"counts": "nominal"}, "counts must be one of"),
        ({"keep_ratio": 0.5, "budget": 0.5}, "exclude each other"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MethodError, match=message):
        dataclasses.replace(Dart(), **({"keep_ratio": None} | fields))
