"""Every alternative of IVC-Prune's settings against a slow reference, sample by sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import kept_sets, token_values
from helpers.reference import SAMPLES, Slow

from ivc_jax.methods import (
    FastV,
    IVCPrune,
    MethodError,
    Uniform,
    WithIVC,
    describe,
    parse,
    select,
)
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.foreground import Foreground, score_attention, score_values
from ivc_jax.methods.requests import AttentionRows, RopeSettings, TokenVectors
from ivc_jax.methods.select import Segments
from ivc_jax.methods.testing import listed, run_stage

SCORE = {"theta": 30.0, "position_offset": 1000, "frequencies": "middle"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"seed_fraction": 0.13, "seed_rounding": "ceil"},
        {"seed_fraction": 0.3, "keep_ratio": 0.3, "keep_seeds": False},
        {"seed_fraction": 0.3, "combine": "union", "keep_seeds": True},
        {"queries": "all"},
        {"query_offset": 0},
        {"key_scope": "all"},
        {"key_scope": "all", "scope": "sample", "queries": "all"},
        {"scope": "sample"},
        {"positions": "relative"},
        {"positions": "index"},
        {"axes": "hw", "scope": "sample"},
        {"per_frame": True},
        {"per_frame": True, "combine": "union", "seed_fraction": 0.1, "keep_seeds": True},
        {"quirks": "official"},
    ],
    ids=lambda fields: ",".join(f"{name}={value}" for name, value in fields.items()) or "default",
)
def test_kept_sets_equal_the_slow_reference(fields):
    method = IVCPrune(layer=2, **fields)
    values = [token_values(sample, seed) for seed, sample in enumerate(SAMPLES)]
    layout = make_layout(SAMPLES, text_slots=20, visual_slots=60, num_images=3)
    pairs = zip(SAMPLES, values, strict=True)
    assert kept_sets(method, layout, values) == [Slow(*pair, method).kept() for pair in pairs]


def token_attention(sample, seed) -> np.ndarray:
    """Draw causal attention of every token of a sample: [H, slots, slots]."""
    length = len(lay_out(sample)["positions"])
    rows = np.tril(np.random.default_rng(seed).random((3, length, length), np.float32))
    return rows / rows.sum(axis=2, keepdims=True)


def text_rows(layout, attention):
    """Gather [B, H, T, V] by the layout; rows and columns of padding hold nines."""
    text, visual = np.asarray(layout.text_index), np.asarray(layout.visual_index)
    table = zip(attention, text, visual, strict=True)
    rows = np.stack([of[:, queries[:, None], keys] for of, queries, keys in table])
    known = layout.text_valid[:, None, :, None] & layout.visual_valid[:, None, None]
    return jnp.where(known, rows, 9.0)


@pytest.mark.parametrize(
    "fields",
    [
        # Four text tokens follow the last sample's images: with offset 4 nothing asks the last.
        {"seed_fraction": 0.2, "query_offset": 4, "keep_ratio": 0.4, **SCORE},
        {"scope": "sample", "queries": "all", "combine": "union", "keep_seeds": True},
    ],
    ids=["fill", "pooled union"],
)
def test_foreground_by_attention_equals_the_slow_reference(fields):
    method = IVCPrune(layer=2, foreground="attention", **fields)
    (stage,) = method.stages
    assert method.requests(stage) == (AttentionRows(1, "text"), RopeSettings())
    attention = [token_attention(sample, seed) for seed, sample in enumerate(SAMPLES)]
    layout = make_layout(SAMPLES, text_slots=20, visual_slots=60, num_images=3)
    chosen = run_stage(method, layout, {AttentionRows(1, "text"): text_rows(layout, attention)})
    pairs = zip(SAMPLES, attention, strict=True)
    assert listed(chosen) == [Slow(*pair, method).kept() for pair in pairs]


def test_attention_scores_are_means_of_the_rows_and_zero_where_nothing_asks():
    layout = make_layout([(1, (1, 3), 3), (1, (1, 3), 1)], visual_slots=4)
    rows = np.full((2, 2, 4, 4), 0.5, np.float32)  # 2 heads, 4 text slots
    rows[0, :, 2, :3] = [[0.2, 0.3, 0.0], [0.0, 0.1, 0.4]]
    rows[0, :, 3, :3] = [[0.0, 0.2, 0.6], [0.4, 0.0, 0.0]]
    rows[..., 3] = np.nan  # padding
    run = jax.jit(score_attention, static_argnums=4)
    two = jnp.full_like(layout.image_id, 2)
    rules = Foreground(query_offset=1)  # past the end mark
    scores, seeds = run(jnp.asarray(rows), layout, Segments.by_image(layout), two, rules)
    np.testing.assert_allclose(scores, [[0.15, 0.15, 0.25, 0], [0, 0, 0, 0]], atol=1e-7)
    # Ties go to the lowest index.
    assert seeds.tolist() == [[True, False, True, False], [True, True, False, False]]


@pytest.mark.parametrize(
    "fields", [{"quirks": "official"}, {"key_scope": "all"}, {"score_dtype": "bfloat16"}]
)
def test_attention_excludes_what_only_values_have(fields):
    with pytest.raises(MethodError, match="leave quirks, key_scope and score_dtype"):
        IVCPrune(foreground="attention", **fields)


def test_ivc_modifier_takes_the_same_score_options():
    layout, host = make_layout(SAMPLES), Uniform(layer=2, keep_ratio=0.05)
    slow = [Slow(sample, np.zeros(0), IVCPrune(**SCORE)) for sample in SAMPLES]
    expected = [
        sorted(set(kept).union(*map(one.coordinates, one.images)))
        for one, kept in zip(slow, kept_sets(host, layout), strict=True)
    ]
    assert kept_sets(WithIVC(host, **SCORE), layout) == expected


def test_score_options_are_checked_and_written_back():
    spec = "ivc:keep_ratio=0.5,frequencies=low,foreground=attention,theta=100.0,position_offset=9"
    method = IVCPrune(frequencies="low", foreground="attention", theta=100, position_offset=9)
    assert parse(spec) == method
    assert describe(method) == spec
    modified = WithIVC(FastV(), theta=100.0, position_offset=9)
    assert parse("fastv+ivc:theta=100,position_offset=9") == parse(describe(modified)) == modified
    for kind in ("ivc", "fastv+ivc", "ivc_removal"):
        for bad in ("0.5", "inf", "nan"):
            with pytest.raises(MethodError, match=f"theta must be a finite base .*got {bad}"):
                parse(f"{kind}:theta={bad}")
        with pytest.raises(MethodError, match="position_offset must not be negative, got -1"):
            parse(f"{kind}:position_offset=-1")
    with pytest.raises(MethodError, match=r"foreground must be one of \('values', 'attention'\)"):
        parse("ivc:foreground=keys")


def scored(values, layout, score_dtype="float32", **rules):
    counts = jnp.ones_like(layout.image_id)
    rules, within = Foreground(**rules), Segments.by_image(layout)
    return score_values(values, layout, within, counts, 1, rules, score_dtype)[0]


# One head, four image tokens, two text tokens, and three slots of padding that no key may reach.
def six_tokens():
    image = [[2, 0, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    layout = make_layout([((2, 2), 2)], text_slots=4, visual_slots=5)
    visual = jnp.array([*image, [9] * 4], jnp.float32)
    text = jnp.array([[2, 0, 0, 0], [0, 0, 0, 2], [9] * 4, [9] * 4], jnp.float32)
    return TokenVectors(visual[None, :, None], text[None, :, None]), layout


def test_softmax_over_all_tokens_of_the_prompt():
    values, layout = six_tokens()
    found = scored(values, layout, query_offset=0, key_scope="all")
    expected = [0.267242, 0.059432, 0.115320, 0.059432]
    np.testing.assert_allclose(found[0, :4], expected, atol=1e-6)
    before = score_values(
        values,
        layout,
        Segments.by_image(layout),
        jnp.zeros_like(layout.image_id),
        1,
        Foreground(query_offset=0, key_scope="all"),
    )[0]
    expected = [0.220611, 0.064753, 0.106669, 0.064753]
    np.testing.assert_allclose(before[0, :4], expected, atol=1e-6)


def test_half_precision_rounds_rows_heads_and_means():
    """With one head and one query the score is the row itself, rounded and averaged."""
    values, layout = six_tokens()
    found = np.asarray(scored(values, layout, query_offset=1, score_dtype="bfloat16")[0, :4])
    half = lambda x: np.asarray(x, np.float32).astype(jnp.bfloat16).astype(np.float32)  # noqa: E731
    seed = half([0.61029595, 0.08259454, 0.22451496, 0.08259454])
    # Four equal keys: the text row is flat, and the lowest token is the seed.
    np.testing.assert_array_equal(found, half((half([0.25] * 4) + seed) / 2))


def test_frames_are_counted_by_runs():
    layout = make_layout(SAMPLES, visual_slots=60)
    frames = Segments.by_frame(layout)
    assert frames.number[2].tolist() == [*np.repeat([0, 1, 2], 12), *[3] * 10, *[-1] * 14]
    assert frames.count[2].tolist() == [*[12] * 36, *[10] * 10, *[0] * 14]
    assert Segments.by_image(layout).first[0, :41].tolist() == [*[0] * 20, *[20] * 21]


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["image", "sample"])
def test_capacity_per_frame_holds_the_worst_split(ratio, scope):
    method = IVCPrune(layer=1, keep_ratio=ratio, scope=scope, per_frame=True)
    (stage,) = method.stages
    quota = select.round_counts(ratio, 60)
    coordinates = 2 * select.round_counts(0.1, 60)
    for frame in range(1, 61):
        most = 60 // frame * max(int(quota[frame]), int(coordinates[frame]))
        assert method.capacity(stage, 60, 2) >= min(60, most + 1)


def test_values_without_visual_slots_are_fine():
    layout = make_layout([(5,)])
    for fields in ({"per_frame": True}, {"scope": "sample"}, {"quirks": "official"}):
        assert kept_sets(IVCPrune(layer=2, **fields), layout, num_keep=0) == [[]]


def test_jitted_scores_do_not_depend_on_padding():
    values, layout = six_tokens()
    tight = make_layout([((2, 2), 2)])
    unpadded = TokenVectors(values.visual[:, :4], values.text[:, :2])
    run = jax.jit(lambda v, where: scored(v, where, query_offset=0, key_scope="all"))
    np.testing.assert_allclose(run(values, layout)[0, :4], run(unpadded, tight)[0], atol=1e-7)
