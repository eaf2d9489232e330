"""VisionZip: the worked numbers, the released counts, a slow reference, the class token."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.merged import check_merged
from helpers.models import model_config
from helpers.received import fill, fix_attention, list_frames

from ivc_jax.families import list_sizes, parse_config
from ivc_jax.methods import MethodError, parse, testing
from ivc_jax.methods.drawn import draw_signals, lay_out, make_layout
from ivc_jax.methods.requests import ClassFeatures, TowerAttention, TowerFeatures, TowerKeys
from ivc_jax.methods.testing import listed, run_stage
from ivc_jax.methods.visionzip import VisionZip

PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (2, (3, 3, 4), 2, (2, 9), 6)
SAMPLES = [PAIR, VIDEO, (4, (1, 1), 3, (2, 9)), (2, (6, 6), 6)]
BUCKET = {"text_slots": 31, "visual_slots": 60, "num_images": 4}
C = 12

LLAVA = parse_config(list_sizes()["llava-1.5-7b"])

# The worked examples: attention summed over both heads, keys, features.
RECEIVED = [0.06, 0.22, 0.08, 0.30, 0.08, 0.18, 0.08, 0.28, 0.22]
METRIC = [(1, 0), (0.9, 0.1), (0.8, 0.6), (0, 1), (0.1, 1), (1, 1), (-0.2, 1), (1, -0.1)]
METRIC += [(0.6, 0.2)]
X = [(1, 2), (3, 0.5), (0.5, 1.5), (2, 2), (1, -1), (0, 1), (4, 0), (2, 1), (-1, 3)]


def run(method, samples, received, metric, **bucket):
    """Run the method on attention [n] and keys [n, C] of each sample; padding holds junk."""
    layout = make_layout(samples, **(BUCKET | bucket))
    signals = dict.fromkeys(method.requests(method.stages[0]), jnp.zeros(()))
    signals[TowerAttention()] = fix_attention(layout, received)
    signals[method._keys] = fill(layout, metric, np.nan)
    return run_stage(method, layout, signals)


def merge(chosen, features, of_class=None):
    """Give what the kept tokens of a single sample become, class tokens included."""
    count = int(chosen.valid.sum())
    merged = np.asarray(chosen.weights)[0, :count, : len(features)] @ np.array(features)
    if of_class is not None:
        merged[np.asarray(chosen.becomes_class)[0, :count]] = of_class
    return merged


def reference(received, metric, dominant, contextual, merge="sum"):
    """Follow the released steps on one set in float64: {kept token: weights of all tokens}."""
    n = len(received)
    best = sorted(sorted(range(n), key=lambda token: (-received[token], token))[:dominant])
    rest = [token for token in range(n) if token not in best]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    rows = {token: np.eye(n)[token] for token in best + targets}
    groups = {target: [] for target in targets}
    for token in rest:
        if token not in targets:
            groups[targets[int(np.argmax(unit[targets] @ unit[token]))]].append(token)
    for target, group in groups.items():
        if merge == "mean":
            rows[target] = np.isin(np.arange(n), [target, *group]) / (1 + len(group))
        elif group:
            rows[target][group] = 1 / len(group)
    return rows


def test_worked_example_with_a_class_token():
    # floor(.67 * 9) = 6 tokens: the class token, three patches, two contextual ones
    method = VisionZip(keep_ratio=0.67, contextual=0.23, class_token=True)
    chosen = run(method, [(2, (3, 3), 1)], [RECEIVED], [METRIC], visual_slots=11)
    # of 0 2 4 5 6 8 the targets are 0 and 5; the class token takes the slot of 2
    assert listed(chosen) == [[0, 1, 2, 3, 5, 7]]
    assert np.flatnonzero(chosen.becomes_class[0]).tolist() == [2]
    expected = [(0, 5), (3, 0.5), (9, 9), (2, 2), (1.83333, 1.16667), (2, 1)]
    np.testing.assert_allclose(merge(chosen, X, (9, 9)), expected, atol=1e-5)
    cosine = np.array(METRIC) @ np.array(METRIC).T
    length = np.linalg.norm(METRIC, axis=1)
    cosine /= np.outer(length, length)
    table = [(0.8, 0.98995), (0.0995, 0.77396), (-0.19612, 0.5547), (0.94868, 0.89443)]
    np.testing.assert_allclose(cosine[[2, 4, 6, 8]][:, [0, 5]], table, atol=1e-5)


def test_worked_example_with_an_empty_group():
    method = VisionZip(keep_ratio=0.67, contextual=0.34, class_token=True)
    chosen = run(method, [(2, (3, 3), 1)], [RECEIVED], [METRIC], visual_slots=11)
    assert listed(chosen) == [[0, 1, 2, 3, 5, 7]]
    assert np.flatnonzero(chosen.becomes_class[0]).tolist() == [1]
    expected = [(2, 3.75), (9, 9), (0.5, 1.5), (2, 2), (2.5, 0.5), (2, 1)]
    np.testing.assert_allclose(merge(chosen, X, (9, 9)), expected, atol=1e-5)


def test_worked_example_without_a_class_token():
    received = [0.2, 0.9, 0.1, 0.7, 0.3, 0.25, 0.6, 0.15, 0.05, 0.4]
    metric, features = [(0.5, 0.5), *METRIC], [(9, 9), *X]
    method = VisionZip(keep_ratio=0.65, contextual=0.2)
    chosen = run(method, [(2, (2, 5), 1)], [received], [metric])
    assert listed(chosen) == [[0, 1, 3, 5, 6, 9]]
    assert chosen.becomes_class is None
    expected = [(11.5, 9.75), (1, 2), (0.5, 1.5), (4, 0), (0, 1), (-1, 3)]
    np.testing.assert_allclose(merge(chosen, features), expected, atol=1e-5)
    mean = VisionZip(keep_ratio=0.65, contextual=0.2, merge="mean")
    chosen = run(mean, [(2, (2, 5), 1)], [received], [metric])
    thirds = [np.mean([features[i] for i in group], axis=0) for group in ((0, 2, 8), (5, 4, 7))]
    np.testing.assert_allclose(merge(chosen, features)[[0, 3]], thirds, atol=1e-5)


def count_tokens(n, ratio, contextual, first=True):
    """Return dominant and contextual tokens of a frame of n."""
    folded, total = max(1, int(contextual * n)), int(ratio * n)
    if max(total, int(contextual * n)) < 1:
        return 0, int(first)
    return max(0, total - folded), folded


def expect(sample, received, metric, method):
    """List {kept token: weights} of a sample, frame by frame."""
    expected = {}
    for members, _, first in list_frames(sample):
        counts = count_tokens(len(members), method.keep_ratio, method.contextual, first)
        if sum(counts):
            values = received[members].astype(float), metric[members].astype(float)
            for token, weights in reference(*values, *counts, method.merge).items():
                expected[members[token]] = dict(zip(members, weights, strict=True))
    return expected


def draw(samples, seed):
    random = np.random.default_rng(seed)
    counts = [len(lay_out(sample)["image"]) for sample in samples]
    received = [random.random(n).astype(np.float32) for n in counts]
    return received, [random.normal(size=(n, C)).astype(np.float32) + 0.2 for n in counts]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"keep_ratio": 0.2, "merge": "mean"},
        {"keep_ratio": 0.7, "contextual": 0.3, "keys": "rotated"},
        {"keep_ratio": 0.02},  # one token of an image
        {"keep_ratio": 0.1, "contextual": 0.4},  # contextual tokens alone
        {"keep_ratio": 0.9, "contextual": 1.0},  # more targets than there are tokens left
    ],
)
def test_equals_the_slow_reference(fields):
    method = VisionZip(**fields)
    for seed in range(2):
        drawn = draw(SAMPLES, seed)
        expected = [expect(*each, method) for each in zip(SAMPLES, *drawn, strict=True)]
        check_merged(run(method, SAMPLES, *drawn), expected)


@pytest.mark.parametrize("grid", [(12, 12), (16, 18), (24, 24)])
@pytest.mark.parametrize("share", [1 / 3, 1 / 9])
def test_large_pictures_equal_the_slow_reference(grid, share):
    samples, method = [(1, grid, 1)], VisionZip(keep_ratio=share, contextual=0.16 * share)
    drawn = draw(samples, grid[1])
    expected = [expect(samples[0], drawn[0][0], drawn[1][0], method)]
    check_merged(run(method, samples, *drawn, visual_slots=580), expected)


@pytest.mark.parametrize("spec", ["visionzip@64", "visionzip+ivc:contextual=0.2"])
def test_promises_with_a_class_token(spec):
    testing.check_method(parse(spec), LLAVA)


def test_ivc_tokens_leave_the_class_token_where_it_is():
    method = parse("visionzip+ivc:keep_ratio=0.25").resolve(LLAVA)
    layout = make_layout(SAMPLES, **BUCKET)
    signals = draw_signals(method.requests(method.stages[0]), layout, layout)
    both, alone = (run_stage(each, layout, signals) for each in (method, method.host))
    for row, kept in enumerate(listed(alone)):
        of_class = np.array(kept)[np.asarray(alone.becomes_class)[row, : len(kept)]]
        assert len(of_class)
        united = np.array(listed(both)[row])
        assert len(united) > len(kept)
        found = united[np.asarray(both.becomes_class)[row, : len(united)]]
        np.testing.assert_array_equal(found, of_class)


@pytest.mark.parametrize(("tokens", "split"), [(192, (162, 30)), (128, (108, 20)), (64, (54, 10))])
def test_splits_of_llava_are_the_released_ones(tokens, split):
    method = parse(f"visionzip@{tokens}").resolve(LLAVA)
    assert method.class_token
    assert method.stages[0].merge_in == "tower"
    assert ClassFeatures() in method.requests(method.stages[0])
    assert count_tokens(576, method.keep_ratio, method.contextual) == split
    samples = [(1, (24, 24), 1)]
    received, metric = draw(samples, tokens)
    size = {"visual_slots": 576, "num_images": 1}
    chosen = run(method, samples, received, metric, **size)
    # one of the dominant tokens is the class token
    rows = reference(received[0], metric[0].astype(float), split[0] - 1, split[1])
    taken = min(set(range(576)) - set(rows))
    assert listed(chosen)[0] == sorted([*rows, taken])
    assert chosen.index.shape[1] == tokens
    place = listed(chosen)[0].index(taken)
    assert np.flatnonzero(chosen.becomes_class[0]).tolist() == [place]
    expected = [
        np.eye(576)[token] if token == taken else rows[token] for token in listed(chosen)[0]
    ]
    np.testing.assert_allclose(chosen.weights[0], expected, atol=1e-6)


def test_keep_ratio_one_keeps_all_as_it_is():
    method = VisionZip(keep_ratio=1.0, class_token=True)
    chosen = run(method, SAMPLES, *draw(SAMPLES, 0))
    assert chosen.weights is None
    assert chosen.becomes_class is None
    assert [len(kept) for kept in listed(chosen)] == [41, 54, 19, 36]


@pytest.mark.parametrize("noise", [0, 0.004])  # 6e-7 of a cosine
def test_equal_tokens_stay_in_order(noise):
    received, metric = [np.ones(36)], np.ones((1, 36, C))
    metric[0, 6, 0] += noise  # the first target
    chosen = run(VisionZip(keep_ratio=0.25, contextual=0.1), [(2, (6, 6), 6)], received, metric)
    # six dominant; of the other 30 every tenth, the first takes all that are no targets
    assert listed(chosen) == [[*range(7), 16, 26]]
    assert (np.asarray(chosen.weights)[0, 6] > 0).sum() == 28


def test_keys_that_are_not_numbers_stay_in_their_image():
    received, metric = draw(SAMPLES, 0)
    calm = run(VisionZip(), SAMPLES, received, metric)
    metric[0][-3:] = np.nan  # of the second image
    hurt = run(VisionZip(), SAMPLES, received, metric)
    np.testing.assert_array_equal(hurt.weights[0, :10], calm.weights[0, :10])


def test_fields():
    qwen = VisionZip().resolve(model_config(8))
    assert not qwen.class_token
    assert qwen.stages[0].merge_in == "decoder"
    assert qwen.requests(qwen.stages[0]) == (TowerAttention(), TowerKeys())
    rotated = VisionZip(keys="rotated", merge_in="tower")
    assert rotated.requests(rotated.stages[0])[1:] == (TowerKeys(rotated=True), TowerFeatures())
    for fields, message in (
        ({"contextual": 1.5}, "contextual"),
        ({"merge": "max"}, "merge must be one of"),
        ({"keys": "values"}, "keys must be one of"),
        ({"keep_ratio": 0.5, "budget": 0.5}, "exclude each other"),
    ):
        with pytest.raises(MethodError, match=message):
            VisionZip(**fields)
    with pytest.raises(MethodError, match="class_token=true needs a tower that has one"):
        VisionZip(class_token=True).resolve(model_config(8))
