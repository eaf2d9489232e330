"""PruMerge and PruMerge+: the worked numbers, counts, and a slow reference of both rules."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.merged import check_merged
from helpers.models import model_config
from helpers.received import fill, fix_attention

from ivc_jax.families import list_sizes, parse_config
from ivc_jax.methods import MethodError, parse
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.prumerge import PruMerge, _find_largest
from ivc_jax.methods.requests import TowerAttention, TowerFeatures, TowerKeys
from ivc_jax.methods.testing import listed, run_stage

PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (2, (3, 3, 4), 2, (2, 9), 6)
SAMPLES = [PAIR, VIDEO, (4, (1, 1), 3, (2, 9)), (2, (6, 6), 6)]
BUCKET = {"text_slots": 31, "visual_slots": 60, "num_images": 4}
E = 12

LLAVA = parse_config(list_sizes()["llava-1.5-7b"])

# The worked example: keys of the class token and of patches, its query, features.
CLASS_KEY, QUERY = (0.3, 0.1), (2, 0.5)
KEYS = [(2, 0), (0.4, 0.3), (-0.5, 1), (0.1, -1), (0.2, 0.9), (-0.4, 0.8), (0, -0.8), (0.5, -0.5)]
X = [(1, 2), (3, 0.5), (0.5, 1.5), (2, 2), (1, -1), (0, 1), (4, 0), (2, 1)]
ZERO = (1.34338, 2.09919)  # what token 0 becomes


def give():
    """Return the joint attention of the class token to the patches of the example."""
    logits = np.array([CLASS_KEY, *KEYS]) @ QUERY / np.sqrt(2)
    return (np.exp(logits) / np.exp(logits).sum())[1:]


def run(method, samples, given, keys, **bucket):
    """Run the method on attention [n] and keys [n, E] of each sample; padding holds junk."""
    layout = make_layout(samples, **(BUCKET | bucket))
    attention, asked = method.requests(method.stages[0])[:2]
    signals = {attention: fix_attention(layout, given), asked: fill(layout, keys, np.nan)}
    return run_stage(method, layout, signals)


def run_example(**fields):
    """Return what is kept of the worked example, and what it becomes."""
    method = PruMerge(neighbours=2, **fields)
    chosen = run(method, [(2, (2, 4), 1)], [give()], [KEYS], visual_slots=11)
    count = int(chosen.valid.sum())
    return listed(chosen)[0], np.asarray(chosen.weights)[0, :count, :8] @ np.array(X)


def test_worked_example():
    given = give()
    expected = [0.62658, 0.0725, 0.02601, 0.02996, 0.06755, 0.02791, 0.02791, 0.06294]
    np.testing.assert_allclose(given, expected, atol=5e-6)
    quarters = np.percentile(given, (25, 75))
    np.testing.assert_allclose(quarters, (0.02791, 0.06879), atol=5e-6)
    assert quarters[1] + 1.5 * (quarters[1] - quarters[0]) == pytest.approx(0.13011, abs=1e-5)
    # the extra token is in the slot of token 1, the most attended of the others
    kept, merged = run_example(adaptive=True)
    assert kept == [0, 1]
    np.testing.assert_allclose(merged, [ZERO, (0.59549, 0.15847)], atol=1e-5)


def test_worked_example_with_strided_tokens():
    kept, merged = run_example(adaptive=True, plus=True)
    assert kept == [0, 1, 2, 4, 6]
    extra = (0.4033, 0.18701)
    expected = [ZERO, extra, (0.56755, 1.46036), (1.013, -0.93308), (4.18579, 0.12285)]
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_worked_example_at_a_fixed_share():
    """The released share is that of the tokens without the extra one."""
    kept, merged = run_example(keep_ratio=3 / 8)
    assert kept == [0, 1, 4]
    one = (3.69413, 1.68561)
    np.testing.assert_allclose(merged, [ZERO, one, (0.37799, 0.12222)], atol=1e-5)
    kept, merged = run_example(keep_ratio=5 / 8, plus=True)
    assert kept == [0, 1, 2, 4, 6]
    expected = [ZERO, one, (0.56755, 1.46036), (0.25334, 0.08321), (4.18579, 0.12285)]
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def choose(given, method, total):
    """Return the selected tokens of one frame in their order, of `total` at a given share."""
    n = len(given)
    by_attention = sorted(range(n), key=lambda token: (-given[token], token))
    if method.adaptive:
        lower, upper = np.percentile(given, (25, 75))
        count = max(1, int((given > upper + 1.5 * (upper - lower)).sum()))
        best, strided = by_attention[:count], []
        if method.plus:
            strided = range(0, n - 1, max(1, n // count // 3))
        return best + [token for token in strided if token not in best], True
    wanted = 1 if total == n == 1 else total - 1
    strided = []
    if method.plus and wanted > 1:
        strided = [int((j + 0.5) * n / (wanted // 2)) for j in range(wanted // 2)]
    best = [token for token in by_attention if token not in strided]
    return best[: max(0, wanted - len(strided))] + strided, total > 0


def reference(given, keys, method, total):
    """Follow the rules on one frame in float64: {kept token: weights of all tokens}."""
    n, unit = len(given), keys / np.linalg.norm(keys, axis=1, keepdims=True)
    selected, is_kept = choose(given, method, total)
    rest = [token for token in range(n) if token not in selected]
    rows = {}
    for token in selected:
        others = [other for other in (*selected, *rest) if other != token]
        order = np.argsort(-(unit[others] @ unit[token]), kind="stable")
        near = np.array(others, int)[order[: method.neighbours]]
        rows[token] = np.zeros(n)
        rows[token][near] = given[near]
        if method.merge == "mean":
            rows[token] /= 1 + given[near].sum()
        rows[token][token] = 1 / (1 + given[near].sum()) if method.merge == "mean" else 1
    if rest and is_kept:
        slot = max(rest, key=lambda token: (given[token], -token))
        rows[slot] = np.where(np.isin(np.arange(n), rest), given, 0)
    return rows


def expect(sample, given, keys, method):
    """List {kept token: {token: weight}} of a sample, frame by frame."""
    row, expected = lay_out(sample), {}
    frames = [(image, cell[0]) for image, cell in zip(row["image"], row["grid"], strict=True)]
    for frame in sorted(set(frames)):
        members = np.array([v for v in range(len(frames)) if frames[v] == frame])
        own = given[members].astype(float), keys[members].astype(float)
        total = int(len(members) * method.keep_ratio)
        if frame[1] == 0:  # of the whole image or video two at least
            of_image = [
                int(frames.count(each) * method.keep_ratio)
                for each in set(frames)
                if each[0] == frame[0]
            ]
            total = min(len(members), total + max(0, 2 - sum(of_image)))
        for token, weights in reference(*own, method, total).items():
            expected[members[token]] = dict(zip(members, weights, strict=True))
    return expected


def draw(samples, seed):
    """Draw attention with outliers, and keys."""
    random = np.random.default_rng(seed)
    counts = [len(lay_out(sample)["image"]) for sample in samples]
    given = [np.exp(random.normal(size=n)).astype(np.float32) / n for n in counts]
    return given, [random.normal(size=(n, E)).astype(np.float32) + 0.2 for n in counts]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"keep_ratio": 0.2, "merge": "mean"},
        {"keep_ratio": 0.9, "neighbours": 3, "keys": "mean", "attention": "joined"},
        {"keep_ratio": 0.02},  # two tokens of an image
        {"keep_ratio": 0.1},  # the extra token alone of later frames
        {"keep_ratio": 1.0},
        {"adaptive": True, "neighbours": 5},
    ],
)
def test_equals_the_slow_reference(fields, plus):
    method = PruMerge(plus=plus, **fields)
    for seed in range(2):
        drawn = draw(SAMPLES, seed)
        expected = [expect(*each, method) for each in zip(SAMPLES, *drawn, strict=True)]
        check_merged(run(method, SAMPLES, *drawn), expected)


@pytest.mark.parametrize("grid", [(12, 12), (13, 17), (24, 24)])
@pytest.mark.parametrize(
    "fields",
    [{"keep_ratio": 1 / 9}, {"keep_ratio": 1 / 3, "plus": True}, {"adaptive": True, "plus": True}],
)
def test_large_pictures_equal_the_slow_reference(grid, fields):
    samples, method = [(1, grid, 1)], PruMerge(**fields)
    drawn = draw(samples, grid[1])
    check_merged(
        run(method, samples, *drawn, visual_slots=580),
        [expect(samples[0], drawn[0][0], drawn[1][0], method)],
    )


def test_what_no_outlier_says():
    # one token at least, the first of equals; with plus every twelfth too, but never the last
    samples, keys = [(1, (1, 37), 1)], [np.ones((37, 2))]
    kept = [
        listed(run(PruMerge(adaptive=True, plus=plus), samples, [np.ones(37)], keys))[0]
        for plus in (False, True)
    ]
    assert kept == [[0, 1], [0, 1, 12, 24]]
    # nor is one what rounding lifts above the fence
    lifted = [np.where(np.arange(37) % 9 == 5, 1 + 1e-6, 1.0)]
    assert listed(run(PruMerge(adaptive=True), samples, lifted, keys)) == [[0, 1]]


def test_the_largest_so_many_are_found():
    values = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    values[0, :5], values[1, 3:30], values[2, :20] = values[0, 7], -np.inf, -1.5
    for number in (1, 4, 11, 40):
        found = _find_largest(jnp.asarray(values), number)
        np.testing.assert_array_equal(found[:, 0], np.sort(values, axis=1)[:, -number])


def test_equally_near_tokens_go_by_the_list():
    # selected 4 and 2, then the others: each takes the two that come first in that list
    given = np.array([0.1, 0.2, 0.3, 0.1, 0.4, 0.1])
    method = PruMerge(keep_ratio=0.5, neighbours=2)
    chosen = run(method, [(1, (2, 3), 1)], [given], [np.ones((6, 2))])
    assert listed(chosen) == [[1, 2, 4]]
    expected = [
        [0.1, 0.2, 0, 0.1, 0, 0.1],  # the extra one
        [0.1, 0, 1, 0, 0.4, 0],
        [0.1, 0, 0.3, 0, 1, 0],
    ]
    np.testing.assert_allclose(chosen.weights[0, :3, :6], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "tokens", "plus"),
    [
        ("prumerge@192", 192, False),
        ("prumerge@128:plus=true", 128, True),
        ("prumerge@64", 64, False),
        ("prumerge@32", 32, False),
        ("prumerge@144", 144, True),
    ],
)
def test_presets_of_llava(spec, tokens, plus):
    method = parse(spec).resolve(LLAVA)
    assert method.plus == plus
    assert (method.attention, method.stages[0].merge_in) == ("joined", "tower")
    assert method.capacity(method.stages[0], 576, 1) == tokens


def test_fields():
    qwen = PruMerge().resolve(model_config(8))
    assert qwen.stages[0].merge_in == "decoder"
    wanted = TowerAttention(patches="sum"), TowerKeys(heads="joined")
    assert qwen.requests(qwen.stages[0]) == wanted
    mean = PruMerge(keys="mean", attention="joined", merge_in="tower")
    wanted = TowerAttention(heads="joined", patches="sum"), TowerKeys(), TowerFeatures()
    assert mean.requests(mean.stages[0]) == wanted
    # adaptive: room for every token
    adaptive = PruMerge(adaptive=True, plus=True)
    assert adaptive.capacity(adaptive.stages[0], 60, 3) == 60
    for fields, message in (
        ({"neighbours": 0}, "neighbours must be at least 1"),
        ({"merge": "max"}, "merge must be one of"),
        ({"keys": "values"}, "keys must be one of"),
        ({"adaptive": True, "budget": 0.5}, "the picture says how much stays"),
        ({"adaptive": True, "keep_ratio": 0.5}, "the picture says how much stays"),
        ({"keep_ratio": 0.5, "budget": 0.5}, "exclude each other"),
    ):
        with pytest.raises(MethodError, match=message):
            PruMerge(**fields)
