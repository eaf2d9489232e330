"""Foreground, and IVC-Prune by it, against worked numbers and a slow reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import C, G, gather_values, kept_sets, token_values

from ivc_jax.methods import IVCPrune
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.foreground import Foreground, fill, score_values
from ivc_jax.methods.requests import TokenVectors
from ivc_jax.methods.select import Segments
from ivc_jax.methods.testing import ROPE

# A first text, two unequal images, text between them and after them; and one large image.
PAIR = (3, (4, 5), 4, (3, 7), 5)
OTHER = (2, (6, 6), 6)

# Small programs that run once: optimising them would cost more than it saves.
jitted_foreground = jax.jit(
    score_values,
    static_argnums=(4, 5),
    compiler_options={"xla_backend_optimization_level": 0},
)


def score_foreground(values, layout, seed_count, num_seeds, query_offset):
    rules = Foreground(query_offset=query_offset)
    return jitted_foreground(
        values, layout, Segments.by_image(layout), seed_count, num_seeds, rules
    )


def softmax(logits):
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def reference_ivc(sample, values, keep_ratio=0.5, fraction=0.1, foreground=None) -> list[int]:
    """Follow the formulas token by token in float64; indices in visual space."""
    row, values = lay_out(sample), values.astype(np.float64)
    kept, frequencies = [], ROPE.frequencies
    for image in sorted(set(row["image"])):
        members = [v for v, owner in enumerate(row["image"]) if owner == image]
        slots = [row["visual"][v] for v in members]
        L = len(slots)

        def attention(slot, slots=slots):
            heads = [softmax(values[slots, h] @ values[slot, h] / np.sqrt(C)) for h in range(G)]
            return sum(heads) / G

        def top(score, count):
            return set(np.argsort(-np.asarray(score), kind="stable")[:count].tolist())

        from_text = [attention(slot) for slot in row["text"] if slot >= slots[-1] + 3]
        s = sum(from_text) / len(from_text) if from_text else np.zeros(L)
        seeds = top(s, max(1, round(0.01 * L)))
        rows = from_text + [attention(slots[seed]) for seed in seeds]
        f = sum(rows) / len(rows)
        coordinates = set()
        for wave in (np.cos, np.sin):
            t, h, w = (
                wave(np.outer(p, frequencies)).mean(1)
                for p in np.array([row["positions"][slot] for slot in slots]).T
            )
            coordinates |= top((t + (h + w)) / 3, round(fraction * L))
        if foreground is None:
            chosen = coordinates | seeds
            for token in np.argsort(-f, kind="stable").tolist():
                if len(chosen) < round(keep_ratio * L):
                    chosen.add(token)
        else:
            chosen = coordinates | top(f, round(foreground * L))
        kept += [members[token] for token in chosen]
    return sorted(kept)


# Example C: one head, four image tokens, two text tokens.
C_IMAGE = [[2, 0, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
C_TEXT = [[2, 0, 0, 0], [0, 0, 0, 2]]


def example_c():
    layout = make_layout([(1, (2, 2), 4)])
    text = [[5.0] * 4] * 3 + C_TEXT  # before the image, and the two skipped after it
    values = TokenVectors(
        jnp.array(C_IMAGE, jnp.float32)[None, :, None], jnp.array(text)[None, :, None]
    )
    return layout, values


def test_foreground_weighs_every_row_the_same():
    layout, values = example_c()
    score, seeds = score_foreground(values, layout, jnp.ones((1, 4), jnp.int32), 1, 2)
    assert seeds.tolist() == [[True, False, False, False]]
    np.testing.assert_allclose(score[0], [0.490197, 0.138396, 0.233010, 0.138396], atol=1e-6)


def test_foreground_before_the_seeds_is_the_mean_over_text():
    layout, values = example_c()
    score, _ = score_foreground(values, layout, jnp.zeros((1, 4), jnp.int32), 1, 2)
    np.testing.assert_allclose(score[0], [0.430148, 0.166297, 0.237258, 0.166297], atol=1e-6)


def test_foreground_without_text_after_the_image_comes_from_the_first_token():
    layout, values = example_c()
    score, seeds = score_foreground(values, layout, jnp.ones((1, 4), jnp.int32), 1, 9)
    assert seeds.tolist() == [[True, False, False, False]]
    np.testing.assert_allclose(score[0], [0.610296, 0.082595, 0.224515, 0.082595], atol=1e-6)


def test_fill_tops_up_the_priority_tokens():
    layout = make_layout([((4, 4), 3)], visual_slots=20)
    foreground = jnp.array([[((5 * i + 3) % 16) / 16 for i in range(20)]])
    priority = jnp.zeros((1, 20), bool).at[0, jnp.array([0, 3, 9, 11, 15])].set(True)
    within = Segments.by_image(layout)
    keep = fill(foreground, priority, jnp.full((1, 20), 8), within)
    assert np.flatnonzero(keep[0]).tolist() == [0, 2, 3, 5, 9, 11, 12, 15]
    union = within.top(foreground, jnp.full((1, 20), 6)) | priority.at[0, 9].set(False)
    assert np.flatnonzero(union[0]).tolist() == [0, 2, 3, 5, 8, 11, 12, 15]
    # A priority set above the target stays whole.
    assert fill(foreground, priority, jnp.full((1, 20), 2), within).sum() == 5


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"keep_ratio": 0.31}, {"keep_ratio": 0.31}),
        (
            {"keep_ratio": 0.05, "cos_fraction": 0.2, "sin_fraction": 0.2},
            {"keep_ratio": 0.05, "fraction": 0.2},
        ),
        ({"combine": "union"}, {"foreground": 0.4}),
        ({"combine": "union", "foreground_fraction": 0.2}, {"foreground": 0.2}),
    ],
)
def test_ivc_equals_the_slow_reference(fields, expected):
    samples = [PAIR, OTHER, (4, (1, 1), 3, (2, 9))]
    values = [token_values(sample, seed) for seed, sample in enumerate(samples)]
    layout = make_layout(samples)
    reference = [reference_ivc(s, v, **expected) for s, v in zip(samples, values, strict=True)]
    assert kept_sets(IVCPrune(layer=2, **fields), layout, values) == reference


def test_half_precision_values_are_scored_in_float32():
    values = [token_values(PAIR, 0).astype(jnp.bfloat16).astype(np.float32)]
    layout = make_layout([PAIR])
    full = gather_values(layout, values)
    half = TokenVectors(full.visual.astype(jnp.bfloat16), full.text.astype(jnp.bfloat16))
    seed_count = jnp.ones_like(layout.image_id)
    one, other = (score_foreground(v, layout, seed_count, 2, 2)[0] for v in (full, half))
    assert one.dtype == other.dtype == jnp.float32
    np.testing.assert_allclose(one, other, atol=1e-7)
