"""FSR against worked numbers and a slow reference: what is focused, scanned and merged."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.methods import MethodError, select
from ivc_jax.methods.budget import measure
from ivc_jax.methods.drawn import FixedAttention, lay_out, make_layout
from ivc_jax.methods.fsr import FSR, focus, join_scores, refine, scan
from ivc_jax.methods.requests import Hidden, TokenVectors, TowerAttention
from ivc_jax.methods.select import Segments, split_over_frames
from ivc_jax.methods.testing import listed, run_stage

# Text, two unequal images, text between them and after them; a video of three frames; one image.
PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (2, (3, 3, 4), 6)
OTHER = (4, (6, 6), 2)
D = 6

SALIENCY = [0.30, 0.05, 0.10, 0.60, 0.02, 0.20, 0.08, 0.15, 0.04, 0.46]
RELEVANCE = [0.20, 0.12, 0.26, 0.30, 0.10, 0.14, 0.22, 0.11, 0.18, 0.28]
VECTORS = [
    *([1, 0, 0], [0, 1, 0], [0.9, 0.1, 0.2], [1, 0.1, 0], [0, 0, 1]),
    *([0.2, 0.9, 0.1], [0.1, 0.8, 0.3], [-0.5, 0.2, 0.8], [0.6, 0.6, 0.1], [0.8, 0, 0.4]),
]


# Programs that run once: optimising them would cost more than it saves.
jitted = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
jitted_joint, jitted_focus = jitted(join_scores), jitted(focus, static_argnums=3)
jitted_scan, jitted_refine = jitted(scan, static_argnums=4), jitted(refine, static_argnums=3)


def signals_of(layout, received, visual, text) -> dict:
    V = layout.visual_valid.shape[1]
    rows = jnp.broadcast_to(jnp.asarray(received, jnp.float32)[:, None], (len(received), V, V))
    vectors = TokenVectors(jnp.asarray(visual, jnp.float32), jnp.asarray(text, jnp.float32))
    return {TowerAttention(): FixedAttention(rows, layout), Hidden(): vectors}


def draw(sample, seed) -> tuple[np.ndarray, np.ndarray]:
    """Draw the received attention and the vectors of every slot of a sample."""
    slots = len(lay_out(sample)["positions"])
    random = np.random.default_rng(seed)
    return random.random(slots) ** 4, random.normal(size=(slots, D)) + 0.3


def drawn_signals(layout, drawn, padding=np.nan) -> dict:
    """Split what was drawn by the layout."""
    table = np.full((len(drawn), layout.positions.shape[2], D + 1), padding)
    for target, (received, vectors) in zip(table, drawn, strict=True):
        target[: len(vectors)] = np.concatenate([received[:, None], vectors], axis=1)
    rows = np.arange(len(table))[:, None]
    visual = np.array(table[rows, layout.visual_index])
    visual[~np.asarray(layout.visual_valid)] = padding
    text = np.array(table[rows, layout.text_index])
    text[~np.asarray(layout.text_valid)] = padding
    return signals_of(layout, visual[..., 0], visual[..., 1:], text[..., 1:])


def cosine(one, other) -> float:
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def reference_fsr(vectors, saliency, relevance, count, mass=0.9, ratio=1.0):
    """Follow the formulas token by token; the kept tokens of a segment and its weights [K, n]."""

    def scaled(scores):
        return (scores - scores.min()) / (scores.max() - scores.min() + 1e-12)

    joint = scaled(saliency) * (1 if relevance is None else scaled(relevance) ** 3)
    order = np.argsort(-joint, kind="stable")
    reached = np.cumsum(joint[order]) >= mass * joint.sum() - 1e-9
    kept = order[: min(np.argmax(reached) + 1, count)].tolist()
    focused = len(kept)
    while len(kept) < count:
        rest = [i for i in range(len(joint)) if i not in kept]
        gaps = [min(1 - cosine(vectors[i], vectors[j]) for j in kept) for i in rest]
        kept.append(rest[int(np.argmax(gaps))])
    anchors, dropped = kept[focused:], [i for i in range(len(joint)) if i not in kept]
    owners = {}
    for i in dropped if anchors else []:
        near = [cosine(vectors[i], vectors[j]) for j in anchors]
        owners[i] = (max(near), anchors[int(np.argmax(near))])
    taken = sorted(owners, key=lambda i: -owners[i][0])[: int(ratio * len(anchors))]
    rows = np.zeros((count, len(joint)))
    for row, j in zip(rows, sorted(kept), strict=True):
        group = [j] + [i for i in taken if owners[i][1] == j]
        row[group] = np.maximum(joint[group], 1e-6)
        row /= row.sum()
    return sorted(kept), rows


def reference_sample(sample, drawn, method):
    """Run the reference on each frame of a sample."""
    row, (received, vectors) = lay_out(sample), drawn
    after = [slot for slot in row["text"] if slot > row["visual"][0]]
    mean = vectors[after].mean(axis=0)
    kept, parts = [], np.zeros((0, 0))
    for image in range(max(row["image"]) + 1):
        frames = [cell[0] for cell, owner in zip(row["grid"], row["image"], strict=True)]
        inside = [v for v, owner in enumerate(row["image"]) if owner == image]
        split = sorted({frames[v] for v in inside}) if method.per_frame else [None]
        total = max(1, int(method.keep_ratio * len(inside)))
        for number, frame in enumerate(split):
            members = [v for v in inside if frame in (None, frames[v])]
            slots = [row["visual"][v] for v in members]
            count = total // len(split) + (number < total % len(split))
            relevance = None
            if method.relevance == "embedding":
                near = [cosine(vectors[slot], mean) for slot in slots]
                relevance = method.relevance_sign * np.array(near)
            own, rows = reference_fsr(
                vectors[slots],
                received[slots],
                relevance,
                count,
                method.focus_mass,
                method.merge_ratio,
            )
            kept += [members[0] + i for i in own]
            joined = np.zeros((len(parts) + count, members[0] + len(members)))
            joined[: len(parts), : parts.shape[1]] = parts
            joined[len(parts) :, members[0] :] = rows
            parts = joined
    return kept, parts


def example(relevance=None):
    layout = make_layout([((2, 5), 3)], visual_slots=12)
    within = Segments.by_image(layout)
    saliency, given = (
        jnp.array([[*row, 9, jnp.nan]], jnp.float32) for row in (SALIENCY, relevance or SALIENCY)
    )
    joint = jitted_joint(saliency, given if relevance else None, within)
    vectors = jnp.array([[*VECTORS, [9, 9, 9], [jnp.nan] * 3]], jnp.float32)
    return layout, within, joint, vectors


def test_worked_example_focuses_scans_and_merges():
    _, within, joint, vectors = example(RELEVANCE)
    expected = [0.06034, 0.00005, 0.07062, 1, 0, 0.00248, 0.02234, 0.00003, 0.00221, 0.55303]
    np.testing.assert_allclose(joint[0], [*expected, 0, 0], atol=2e-5)
    np.testing.assert_allclose(joint.sum(), 1.71111, atol=2e-5)
    target = jnp.full((1, 12), 5)
    focused = jitted_focus(joint, within, target, 0.9)
    assert np.flatnonzero(focused[0]).tolist() == [3, 9]

    covers = [jitted_scan(vectors, focused, within, target.at[:].set(k), 5) for k in (2, 3, 4, 5)]
    order = [set(np.flatnonzero(cover.keep[0]).tolist()) for cover in covers]
    assert [new - old for old, new in itertools.pairwise(order)] == [{7}, {1}, {8}]
    cover = covers[-1]
    assert np.flatnonzero(cover.anchor[0]).tolist() == [1, 7, 8]
    rest = [0, 2, 4, 5, 6]
    assert cover.owner[0, rest].tolist() == [8, 8, 7, 1, 1]
    near = [0.70225, 0.78249, 0.82956, 0.97049, 0.92998]
    np.testing.assert_allclose(cover.closeness[0, rest], near, atol=2e-5)

    chosen = jitted_refine(cover, joint, within, 5)
    assert listed(chosen) == [[1, 3, 7, 8, 9]]
    sources = [np.flatnonzero(row).tolist() for row in chosen.weights[0]]
    assert sources == [[1, 5, 6], [3], [4, 7], [8], [9]]
    tokens = chosen.weights[0, :, :10] @ jnp.array(VECTORS)
    expected = [[0.10977, 0.81040, 0.27942], [1, 0.1, 0], [-0.48277, 0.19311, 0.80689]]
    np.testing.assert_allclose(tokens, [*expected, [0.6, 0.6, 0.1], [0.8, 0, 0.4]], atol=2e-5)


def test_worked_example_without_relevance_scans_nothing():
    layout, within, joint, vectors = example()
    np.testing.assert_allclose(joint.sum(), 3.10345, atol=2e-5)
    assert jitted_focus(joint, within, jnp.full((1, 12), 10), 0.9).sum() >= 5
    text = np.full((1, 3, 3), np.nan)
    given = signals_of(layout, [[*SALIENCY, 9, np.nan]], vectors, text)
    chosen = run_stage(FSR(), layout, given)
    assert listed(chosen) == [[0, 3, 5, 7, 9]]
    np.testing.assert_array_equal(chosen.weights, select.keep_weights(chosen, 12))


@pytest.mark.parametrize(
    "method",
    [
        FSR(keep_ratio=0.6),
        FSR(keep_ratio=0.4, focus_mass=0.3, merge_ratio=20.0),
        FSR(keep_ratio=0.3, relevance="embedding", focus_mass=0.8, per_frame=False),
        FSR(keep_ratio=0.2, relevance="embedding", relevance_sign=-1.0, focus_mass=0.5),
    ],
    ids=lambda method: f"{method.focus_mass}-{method.relevance}",
)
def test_fsr_equals_the_slow_reference(method):
    samples = [PAIR, VIDEO, OTHER]
    drawn = [draw(sample, seed) for seed, sample in enumerate(samples)]
    layout = make_layout(samples, text_slots=20, visual_slots=50)
    chosen = run_stage(method, layout, drawn_signals(layout, drawn))
    scanned = 0
    for b, kept in enumerate(listed(chosen)):
        expected, weights = reference_sample(samples[b], drawn[b], method)
        assert kept == expected
        given = np.asarray(chosen.weights[b, : len(kept)])
        np.testing.assert_allclose(given[:, : weights.shape[1]], weights, atol=1e-5)
        assert not given[:, weights.shape[1] :].any()
        assert not np.asarray(chosen.weights[b, len(kept) :]).any()
        scanned += (weights > 0).sum() - len(kept)
    assert scanned > 3  # tokens merged: the scan was at work


def test_flat_scores_and_equal_vectors_fall_to_the_lowest_index():
    layout = make_layout([((3, 4), 2)])
    given = signals_of(layout, np.ones((1, 12)), np.ones((1, 12, 3)), np.ones((1, 2, 3)))
    chosen = run_stage(FSR(keep_ratio=0.5), layout, given)
    assert listed(chosen) == [[0, 1, 2, 3, 4, 5]]
    # One token in focus, five anchors: the earliest takes in the first five of the rest.
    np.testing.assert_allclose(chosen.weights[0, 1], [0, 1 / 6] + [0] * 4 + [1 / 6] * 5 + [0])


def test_a_video_splits_its_count_over_the_frames():
    layout = make_layout([(1, (4, 2, 3), 2, (2, 2), 1)], visual_slots=30)
    counts = select.round_counts(0.45, 30, "floor")  # 10 of 24, 1 of 4
    target = split_over_frames(layout, counts)
    assert target[0].tolist() == [3] * 12 + [2] * 12 + [1] * 4 + [0] * 2


def test_budget_is_the_keep_ratio_and_positions_follow_the_model():
    for budget in (0.5, 0.33, 0.22, 0.11, 1.0):
        method = FSR(budget=budget).resolve(model_config(5))
        assert abs(measure(method.stages, 5) - budget) < 1e-6
        assert method.budget is None
    assert not FSR().resolve(model_config(5)).stages[0].renumber
    assert FSR().resolve(model_config(5, sections=None)).stages[0].renumber
    assert FSR(positions="reindex").resolve(model_config(5)).stages[0].renumber
    assert FSR().resolve(model_config(5)) == FSR(keep_ratio=0.5, positions="original")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio"),
        ({"keep_ratio": 0.5, "budget": 0.5}, "exclude each other"),
        ({"alpha": -1.0}, "alpha must not be negative"),
        ({"merge_ratio": -1.0}, "merge_ratio must not be negative"),
        ({"focus_mass": 1.2}, "focus_mass must be in"),
        ({"relevance": "clip"}, "relevance must be one of"),
        ({"relevance_sign": 0.5}, "relevance_sign must be 1 or -1"),
        ({"positions": "compact"}, "positions must be one of"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MethodError, match=message):
        FSR(**fields)


def test_no_array_of_all_tokens_against_all():
    layout, method = make_layout([(2, (7, 9), 3)]), FSR(keep_ratio=0.2)
    vectors = TokenVectors(jnp.zeros((1, 63, D)), jnp.zeros((1, 5, D)))

    def select(saliency):
        signals = {TowerAttention(): lambda: saliency, Hidden(): vectors}
        return method.select(signals, layout, method.stages[0], 12)

    assert "63,63" not in jax.jit(select).lower(jnp.zeros((1, 63))).as_text().replace("x", ",")
