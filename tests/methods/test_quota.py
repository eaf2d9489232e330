"""QuoTA: the worked example, a slow reference, and what places and grids may not change."""

from fractions import Fraction
from math import isqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.methods import MethodError, frame_grids, parse, testing
from ivc_jax.methods.base import Stage
from ivc_jax.methods.budget import BudgetError, measure
from ivc_jax.methods.drawn import make_layout
from ivc_jax.methods.quota_video import choose_frames, count_frames, quota_assign, quota_resample
from ivc_jax.methods.requests import Embeddings, Learned, Relevance, TokenVectors
from ivc_jax.methods.shares import split_by_squares
from ivc_jax.methods.testing import listed, run_stage, spread_weights

# The worked example.
P = [0.02, 0.60, 0.05, 0.90, 0.30, 0.001]
MAP = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)

VIDEO = (2, (4, 3, 5), 6)  # text, four frames of 3 x 5 tokens, text
PAIR = (3, (4, 5), 4, (3, 7), 5)
BUCKET = {"text_slots": 12, "visual_slots": 60, "num_images": 2}


assign_many = jax.jit(frame_grids.assign)


def assign(p, mask, total):
    """Assign to up to four frames, in one program for all totals."""
    p, mask = (np.pad(each, (0, 4 - len(each)))[None] for each in (np.float32(p), mask))
    grids = assign_many(p, mask, jnp.array([total], jnp.int32))
    return tuple(table[0] for table in (grids.count, grids.height, grids.width, grids.tokens))


def test_worked_shares_and_grids():
    c, h, w, n = quota_assign(P, [True] * 6, 120)
    assert c.tolist() == [0, 34, 0, 76, 8, 0]
    assert list(zip(h.tolist(), w.tolist(), strict=True)) == [
        (0, 0), (6, 5), (0, 0), (9, 8), (3, 2), (0, 0),
    ]  # fmt: skip
    assert n.tolist() == [0, 30, 0, 72, 6, 0]
    squares = np.square(P)
    share = [0.00032, 0.28506, 0.00198, 0.64138, 0.07126, 0.00000]
    np.testing.assert_allclose(squares / squares.sum(), share, rtol=0, atol=2e-5)


def test_worked_slots():
    c, h, w, n = quota_assign(P, [True] * 6, 120)
    x = jnp.zeros((6, 7, 9, 2))
    tokens, frame, (row, column), valid = quota_resample(x, h, w, n, 120)
    assert tokens.shape == (120, 2)
    assert valid.tolist() == [True] * 108 + [False] * 12
    assert [frame.tolist().index(number) for number in (1, 3, 4)] == [0, 30, 102]
    for slot, place in ((31, (3, 0, 1)), (105, (4, 1, 1))):
        assert (frame[slot], row[slot], column[slot]) == place
    assert int(c.sum()) == 118


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [
        (2, 2, [1, 2.5, 5.5, 7]),
        (2, 1, [1.75, 6.25]),
        (3, 2, [0.25, 1.75, 3.25, 4.75, 6.25, 7.75]),
        (3, 3, list(range(9))),
    ],
)
def test_worked_resizing(height, width, resized):
    grid = (jnp.array([each], jnp.int32) for each in (height, width, height * width))
    tokens, *_ = quota_resample(MAP, *grid, 12)
    np.testing.assert_allclose(tokens[: height * width, 0], resized, rtol=0, atol=2e-5)
    assert not tokens[height * width :].any()


def test_worked_frame_counts():
    seconds = (60, 1800, 3600, 7200)
    assert [count_frames(each, most=999) for each in seconds] == [97, 128, 160, 224]
    assert [count_frames(each) for each in seconds] == [97, 128, 160, 160]
    assert count_frames(3600, base=64, alpha=32) == 96
    assert choose_frames(32, 8) == (0, 4, 8, 13, 17, 22, 26, 31)
    assert choose_frames(9, 1) == (0,)


def split_exactly(weights, total):
    squares = [Fraction(each) ** 2 for each in weights]
    whole = sum(squares)
    return [int(total * square / whole) for square in squares]


def test_shares_are_exact_in_any_bucket():
    draw, split = np.random.default_rng(0), jax.jit(split_by_squares)
    for trial in range(60):
        F, total = int(draw.integers(1, 64)), int(draw.integers(1, 30000))
        tenths = draw.integers(1, 10, 64)  # decimals, whose ratios float32 misses
        p = (draw.random(64) ** 3, tenths / 10, np.full(64, draw.random()))[trial % 3]
        p = p.astype(np.float32)
        exact = [Fraction(int(t), 10) for t in tenths] if trial % 3 == 1 else map(float, p)
        found = split(p[None], np.arange(64)[None] < F, jnp.array([total], jnp.int32))[0]
        assert found[:F].tolist() == split_exactly(list(exact)[:F], total)
        assert not found[F:].any()


def test_decimals_reach_their_whole_shares():
    for total in (50, 100, 12540):
        c, *_ = assign([0.1, 0.3], [True, True], total)
        assert c.tolist() == [total // 10, total // 10 * 9, 0, 0]
    c, *_ = assign([0.7, 0.7, 0.7, 0.3], [True] * 3 + [False], 12)
    assert c.tolist() == [4, 4, 4, 0]


def test_frames_without_relevance_count_alike_and_padding_does_not():
    c, h, w, n = assign([0.0, 0.0, 0.0], [True, True, False], 13)
    assert c.tolist() == [6, 6, 0, 0]
    assert (h.tolist(), w.tolist()) == ([3, 3, 0, 0], [2, 2, 0, 0])
    assert n.tolist() == [6, 6, 0, 0]
    c, *_ = assign([np.nan, 0.5, 0.5], [True, True, False], 13)
    assert c.tolist() == [0, 13, 0, 0]


def test_square_roots_are_exact():
    count = np.r_[:400, [side**2 + more for side in range(20, 511) for more in (-1, 0, 1)]]
    count = np.r_[count, 510 * 511 + np.arange(-1, 2)]
    grids = frame_grids.make_grids(jnp.asarray(count, jnp.int32)[None])
    side = np.array([isqrt(each) for each in count])
    taller = (side * (side + 1) <= count) & (count > 0)
    np.testing.assert_array_equal(grids.width[0], side)
    np.testing.assert_array_equal(grids.height[0], side + taller)
    np.testing.assert_array_equal(grids.tokens[0], side * (side + taller))


@pytest.mark.parametrize("assigner", ["v2", "v3"])
def test_what_a_frame_cannot_hold_goes_to_the_others_once(assigner):
    # squares 64 16 16 4: of 100 they want 64 16 16 4, and there are 30 in each
    c, *_ = quota_assign([0.8, 0.4, 0.4, 0.2], [True] * 4, 100, assigner, available=30)
    assert c.tolist() == [30, 30, 30, 7]  # 70 by 16 16 4: 31 31 7, of which 30 are there
    # exactly all it holds is not too much
    c, *_ = quota_assign([0.5, 0.5], [True] * 2, 60, assigner, available=30)
    assert c.tolist() == [30, 30]


def test_v2_averages_boxes_and_v3_picks_evenly():
    one = [jnp.array([each], jnp.int32) for each in (2, 2, 4)]
    tokens, *_ = quota_resample(MAP, *one, 5, "v2")  # rows 0-1 and 1-2, columns alike
    np.testing.assert_allclose(tokens[:, 0], [2, 3, 5, 6, 0], rtol=0, atol=1e-6)
    tokens, *_ = quota_resample(MAP, *one, 5, "v3")
    assert tokens[:, 0].tolist() == [0, 2, 5, 8, 0]
    last = [jnp.array([each], jnp.int32) for each in (1, 1, 1)]
    assert quota_resample(MAP, *last, 2, "v3")[0][:, 0].tolist() == [0, 0]


# --- the method ---


def give(layout, per_frame, learned=None):
    """Give the relevance of each frame of each sample as a signal; padding holds junk."""
    table = np.full(layout.image_id.shape, np.nan, np.float32)
    image, grid = np.asarray(layout.image_id), np.asarray(layout.grid)
    for row, values in enumerate(per_frame):
        keys = [tuple(key) for key in np.stack([image[row], grid[row, :, 0]], axis=-1)]
        known = sorted({key for key in keys if key[0] >= 0})
        for slot, key in enumerate(keys):
            if key[0] >= 0:
                table[row, slot] = values[known.index(key)]
    if learned is None:
        learned = jnp.zeros_like(layout.visual_valid)
    return {Relevance(): jnp.asarray(table), Learned(): learned}


def resize_slowly(x, height, width):
    """Resize a map [H, W, D] by the published formula, in float64."""
    H, W, D = x.shape
    found = np.zeros((height, width, D))
    for r in range(height):
        for c in range(width):
            y = max(0.0, (r + 0.5) * H / height - 0.5)
            z = max(0.0, (c + 0.5) * W / width - 0.5)
            top, left = int(y + 1e-9), int(z + 1e-9)
            down, right = min(top + 1, H - 1), min(left + 1, W - 1)
            a, b = y - top, z - left
            upper = (1 - b) * x[top, left] + b * x[top, right]
            lower = (1 - b) * x[down, left] + b * x[down, right]
            found[r, c] = (1 - a) * upper + a * lower
    return found.reshape(-1, D)


def refer(sample, relevance, ratio):
    """Follow the published steps: weights over tokens [n, v], and the place of each token."""
    shapes = [(1, *part)[-3:] for part in sample if not isinstance(part, int)]
    frames = [shape[1:] for shape in shapes for _ in range(shape[0])]
    total = max(1, int(ratio * sum(H * W for H, W in frames)))
    rows, places, first = [], [], 0
    for (H, W), count in zip(frames, split_exactly(map(float, relevance), total), strict=True):
        side = isqrt(count)
        if side:
            height = side + (side * (side + 1) <= count)
            eye = np.zeros((H, W, sum(H * W for H, W in frames)))
            eye[..., first : first + H * W] = np.eye(H * W).reshape(H, W, -1)
            rows.append(resize_slowly(eye, height, side))
            row = ((np.arange(height) + 0.5) * H / height + 1e-9).astype(int)
            column = ((np.arange(side) + 0.5) * W / side + 1e-9).astype(int)
            places.append((first + row[:, None] * W + column).ravel())
        first += H * W
    return np.concatenate(rows), np.concatenate(places)


def run(spec, samples, relevance, **bucket):
    layout = make_layout(samples, **(BUCKET | bucket))
    method = parse(spec).resolve(testing.make_config())
    return layout, run_stage(method, layout, give(layout, relevance))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.95])
def test_the_method_follows_the_published_steps(ratio):
    samples = [VIDEO, PAIR, (4, (5, 6), 5), (1, (1, 1), 1, (2, 3, 3), 4)]
    draw = np.random.default_rng(5)
    frames = (4, 2, 1, 3)
    relevance = [draw.random(count, np.float32) for count in frames]
    _, chosen = run(f"quota:keep_ratio={ratio}", samples, relevance, num_images=3)
    weights = spread_weights(chosen, 60)
    for row, sample in enumerate(samples):
        slow, places = refer(sample, relevance[row], ratio)
        count = int(chosen.valid[row].sum())
        assert chosen.place[row, :count].tolist() == places.tolist()
        size = slow.shape[1]
        np.testing.assert_allclose(weights[row, :count, :size], slow, rtol=0, atol=1e-5)
        assert not weights[row, :, size:].any()
        kept = listed(chosen)[row]
        if len(set(places)) == len(places):
            assert kept == places.tolist()  # a token uses up the slot of its place


def test_one_frame_may_get_more_than_it_had():
    """A picture of 4 x 5 tokens gets 6 x 6 of 39: the slots of the other are used up as well."""
    _, chosen = run("quota:keep_ratio=0.95", [PAIR], [[0.9, 0.01]])
    assert int(chosen.valid.sum()) == 36
    places = chosen.place[0, :36].tolist()
    assert max(places) == 19
    assert len(set(places)) == 20
    kept = listed(chosen)[0]
    assert len(set(kept)) == 36  # the last of them take slots of the other picture
    assert max(kept) < 41


def test_a_budget_of_every_token_changes_nothing():
    for spec in ("quota:keep_ratio=1", "quota:total=41", "quota:total=41,assigner=v2"):
        _, chosen = run(spec, [PAIR], [[0.9, 0.01]])
        assert listed(chosen)[0] == list(range(41))
        weights = spread_weights(chosen, 60)
        np.testing.assert_array_equal(weights[0, :41, :41], np.eye(41))


def test_too_small_shares_leave_a_token_of_the_best_frame():
    _, chosen = run("quota:total=3", [VIDEO], [[0.5, 0.6, 0.6, 0.5]])
    assert chosen.place[0, chosen.valid[0]].tolist() == [15 + 7]  # the middle of the second frame


def test_learned_tokens_are_no_part_of_a_map():
    """Rows of 2 cells, each with a learned token behind: cells 0 1, 3 4."""
    layout = make_layout([(1, (2, 3), 2)])
    learned = layout.grid[..., 2] == 2
    for spec, places in (
        ("quota:total=4", [0, 1, 3, 4]),
        ("quota:total=4,assigner=v2", [0, 1, 3, 4]),
        ("quota:total=3,assigner=v3", [0, 1, 4]),
    ):
        method = parse(spec).resolve(testing.make_config())
        chosen = run_stage(method, layout, give(layout, [[0.3]], learned))
        assert listed(chosen)[0] == places


def test_ivc_tokens_come_back_as_they_are():
    layout = make_layout([VIDEO], **BUCKET)
    method = parse("quota+ivc:keep_ratio=0.9,cos_fraction=0.1,sin_fraction=0")
    method = method.resolve(testing.make_config())
    signals = give(layout, [[0.9, 0.2, 0.1, 0.1]])
    alone = run_stage(method.host, layout, signals)
    chosen = run_stage(method, layout, signals)
    marked = np.flatnonzero(method.coordinates.mark(layout, testing.ROPE)[0])
    assert len(marked) == 6
    count = int(chosen.valid[0].sum())
    places, weights = chosen.place[0, :count].tolist(), spread_weights(chosen, 60)[0]
    for token in marked:
        weight = weights[places.index(token)]
        assert (weight[token], weight.sum()) == (1, 1)
    before = set(alone.place[0, alone.valid[0]].tolist())
    assert count == int(alone.valid[0].sum()) + len(set(marked.tolist()) - before)


def test_the_stand_in_rates_frames_by_the_question():
    """Frames that point the way of the question, across it and against it."""
    layout = make_layout([(1, (3, 2, 2), 3)])
    visual = np.repeat([(1, 0), (0, 1), (-1, 0)], 4, axis=0).astype(np.float32)
    text = np.array([(9, 9), (1, 0), (2, 0), (1, 0)], np.float32)  # what is in front does not ask
    vectors = TokenVectors(jnp.asarray(visual[None]), jnp.asarray(text[None]))
    method = parse("quota:scores=cosine,total=9").resolve(testing.make_config())
    learned = jnp.zeros_like(layout.visual_valid)
    chosen = run_stage(method, layout, {Embeddings(): vectors, Learned(): learned})
    # p = 1, 0.5, 0: of 9 tokens 7.2 and 1.8
    assert np.bincount(chosen.place[0, chosen.valid[0]] // 4, minlength=3).tolist() == [6, 1, 0]


def test_ivc_prune_behind_it_sees_what_is_left():
    flat = model_config(8, sections=None)
    for pooling in ("frame", "sample"):
        method = parse(f"quota:ivc={pooling},layer=3,keep_ratio=0.6").resolve(flat)
        first, second = method.stages
        assert first == Stage(0, 0.6, renumber=True)
        assert second == Stage(3, 0.3, compact_earlier_kv=True)
        layout = make_layout([VIDEO], **BUCKET)
        (kept, _), (left, _) = (cut[0] for cut in testing.run_cuts(method, layout))
        assert set(left) <= set(kept)
        assert abs(len(left) - len(kept) / 2) <= 2  # each frame rounds on its own
    budget = parse("quota:ivc=sample,budget=0.3,layer=4").resolve(flat)
    assert measure(budget.stages, 8) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("quota:total=0", r"total must be in \[1, "),
        ("quota:total=9,keep_ratio=0.5", "give one of them"),
        ("quota:total=9,budget=0.5", "give one of them"),
        ("quota:assigner=v4", "assigner must be one of"),
        ("quota:scores=clip", "scores must be one of"),
        ("quota:ivc=all", "ivc must be one of"),
        ("quota:layer=3", "cuts before the decoder"),
        ("quota+ivc:ivc=frame", "drop one of them"),
    ],
)
def test_impossible_settings_are_one_line(spec, message):
    with pytest.raises(MethodError, match=message):
        parse(spec)


def test_a_budget_that_ivc_prune_cannot_leave_is_refused():
    with pytest.raises(BudgetError, match=r"more than ivc_keep_ratio=0\.5 leaves"):
        parse("quota:ivc=frame,budget=0.6").resolve(testing.make_config())
