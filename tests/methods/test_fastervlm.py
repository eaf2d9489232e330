"""FasterVLM: the worked numbers, a slow reference, and the rounding of frames."""

import numpy as np
import pytest
from helpers.models import model_config
from helpers.received import fix_attention, list_frames, rank_down

from ivc_jax.methods import parse
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.fastervlm import FasterVLM
from ivc_jax.methods.requests import TowerAttention
from ivc_jax.methods.testing import listed, run_stage

MEANS = [[0.100, 0.150, 0.030, 0.100, 0.110, 0.120], [0.210, 0.120, 0.190, 0.160, 0.165, 0.085]]
SAMPLES = [(2, (8, 8), 3), (1, (5, 7), 2, (3, 3), 4), (2, (4, 3, 5), 6), (1, (1, 1), 3)]
# All tests share it, so that each ratio compiles once.
BUCKET = {"text_slots": 30, "visual_slots": 70, "num_images": 3}


def run(keep_ratio, samples, attention):
    layout = make_layout([*samples, *[(5,)] * (4 - len(samples))], **BUCKET)
    method = FasterVLM(keep_ratio=keep_ratio).resolve(model_config(4))
    signals = {TowerAttention(): fix_attention(layout, attention)}
    return listed(run_stage(method, layout, signals))[: len(samples)]


@pytest.mark.parametrize(("keep", "kept"), [(3, [[1, 4, 5], [0, 2, 4]]), (2, [[1, 5], [0, 2]])])
def test_worked_example(keep, kept):
    assert run(keep / 6, [(1, (2, 3), 1)] * 2, MEANS) == kept
    # two images of one sample, each with its own budget
    both = run(keep / 6, [(1, (2, 3), 1, (2, 3), 2)], [np.concatenate(MEANS)])
    assert both == [kept[0] + [6 + token for token in kept[1]]]


def test_heads_are_averaged_and_not_the_largest():
    largest = [0.15, 0.20, 0.04, 0.15, 0.12, 0.18]  # 0 and 3 tie: the lower index stays
    assert run(0.5, [(1, (2, 3), 1)], [largest]) == [[0, 1, 5]]


def test_patches_of_a_token_are_averaged():
    patches = np.array([[0.10, 0.20, 0.10, 0.00], [0.15, 0.05, 0.10, 0.12]])
    np.testing.assert_allclose(patches.mean(axis=1), [0.1, 0.105])
    assert run(0.5, [(1, (1, 2), 1)], [patches.mean(axis=1)]) == [[1]]


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [(576, 0.25, 144), (576, 0.1, 58), (576, 0.05, 29), (345, 0.1, 34), (256, 0.5, 128)],
)
def test_published_counts(count, ratio, kept):
    method = FasterVLM(keep_ratio=ratio).resolve(model_config(4))
    stage = method.stages[0]
    assert method._count(stage, count)[count] == kept
    assert method.capacity(stage, count, 1) >= kept


def reference(sample, attention, ratio):
    row, kept = lay_out(sample), []
    frames = list_frames(sample)
    images = np.array(row["image"])
    for tokens, _, first in frames:
        image = images[tokens[0]]
        count = max(round(ratio * len(tokens)), int(first))
        peers = [f for f in frames if images[f[0][0]] == image]
        total = max(1, round(ratio * float((images == image).sum())))
        own = [max(round(ratio * len(f[0])), int(f[2])) for f in peers]
        if sum(own) > total:  # frames of one size share it out, the first ones one more
            number = [f[0] for f in peers].index(tokens)
            count = total // len(peers) + (number < total % len(peers))
        order = rank_down([attention[token] for token in tokens])
        kept += [tokens[i] for i in order[:count]]
    return sorted(kept)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.3, 0.5, 0.77, 1.0])
def test_equals_a_slow_reference(ratio):
    random = np.random.default_rng(7)
    drawn = [random.random(len(lay_out(sample)["image"])) for sample in SAMPLES]
    together = run(ratio, SAMPLES, drawn)
    for row, (sample, attention) in enumerate(zip(SAMPLES, drawn, strict=True)):
        assert together[row] == reference(sample, attention.astype(np.float32), ratio)
        assert together[row] == run(ratio, [sample], [attention])[0]


def test_frames_that_round_up_share_the_count_of_their_video():
    frames = (1, (4, 1, 3), 2)
    (kept,) = run(0.5, [frames], [np.arange(12.0)])
    assert kept == [1, 2, 4, 5, 8, 11]  # 2 2 1 1 of six, not 2 2 2 2
    (kept,) = run(0.4, [frames], [np.arange(12.0)])
    assert kept == [2, 5, 8, 11]  # one each, though five of twelve would be 0.4


def test_presets_and_pore():
    assert parse("fastervlm@29").resolve(model_config(4)).keep_ratio == 29 / 576
    assert parse("fastervlm+pore:sigma=1.0").host == FasterVLM()
