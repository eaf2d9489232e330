"""Samples find their visuals, and positions are those of HF's `get_rope_index`."""

import dataclasses
import functools
import types

import numpy as np
import pytest
from helpers.tiny import tiny_config

from ivc_jax.families import parse_config
from ivc_jax.inputs.batch import Batch, InputError, Visual
from ivc_jax.inputs.layout import arrange, number_sample, take_rows

CONFIG = parse_config(tiny_config())
TIMED = parse_config(tiny_config(family="qwen2_5_vl"))  # 4 time positions a second
I, V = CONFIG.image_token_id, CONFIG.video_token_id  # noqa: E741
PIXELS = np.zeros((1, 3, 4, 4))


def visual(t: int, h: int, w: int, value: float = 0) -> Visual:
    return Visual(
        np.full((t * h * w, CONFIG.vision.patch_values), value, np.float32),
        (t, h, w),
    )


def batch(tokens, images=(), videos=()) -> Batch:
    return Batch(tuple(np.array(row, np.int32) for row in tokens), tuple(images), tuple(videos))


# Name -> (tokens of each sample, image grids, video grids); merge 2, so 4 x 6 patches are 6 tokens.
CASES = {
    "text": ([[1, 2, 3]], [], []),
    "one image": ([[1, *[I] * 6, 2]], [(1, 4, 6)], []),
    "image at both ends": ([[*[I] * 6, 2, *[I] * 4]], [(1, 4, 6), (1, 4, 4)], []),
    "two unequal images": ([[1, *[I] * 6, 2, *[I] * 5, 3, 4]], [(1, 4, 6), (1, 2, 10)], []),
    "video": ([[1, *[V] * 12, 2]], [], [(3, 4, 4)]),
    "long narrow video": ([[1, *[V] * 5, 2, 3]], [], [(5, 2, 2)]),
    "mixed": (
        [[1, *[V] * 8, 2, *[I] * 6, 3, *[V] * 2, 4]],
        [(1, 4, 6)],
        [(2, 4, 4), (1, 2, 4)],
    ),
    "batch": (
        [[1, *[I] * 6, 2], [5], [1, *[V] * 4, *[I] * 4, 2, 3]],
        [(1, 4, 6), (1, 4, 4)],
        [(1, 4, 4)],
    ),
}


@pytest.fixture(scope="module")
def hf_rope_index():
    """Give a function that numbers tokens as transformers' model of a family does."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def number(config, **arrays):
        name = {"qwen2_vl": "Qwen2VLModel", "qwen2_5_vl": "Qwen2_5_VLModel"}[config.family]
        name = "Qwen3VLModel" if config.vision.timestamps else name
        model = getattr(transformers, name)
        settings = types.SimpleNamespace(vision_config=config.vision)
        numbered = types.SimpleNamespace(
            config=settings,
            get_vision_position_ids=functools.partial(model.get_vision_position_ids, None),
        )
        return model.get_rope_index(numbered, **arrays)

    return number


def compare_with_hf(hf_rope_index, config, case, side, seconds=None):
    import torch

    tokens, images, videos = {**CASES, **SLICES}[case]
    width = max(map(len, tokens)) + 2
    ids, mask = np.zeros((len(tokens), width), np.int64), np.zeros((len(tokens), width), np.int64)
    for row, sample in enumerate(tokens):
        where = slice(width - len(sample), None) if side == "left" else slice(0, len(sample))
        ids[row, where], mask[row, where] = sample, 1
    seconds = None if seconds is None else np.resize(seconds, len(videos)).astype(np.float32)
    time = {} if seconds is None else {"second_per_grid_ts": torch.from_numpy(seconds)}
    expected, deltas = hf_rope_index(
        config,
        input_ids=torch.from_numpy(ids),
        mm_token_type_ids=torch.from_numpy((ids == I) + 2 * (ids == V)),
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        attention_mask=torch.from_numpy(mask),
        **time,
    )
    flat_images = np.concatenate([np.zeros((0, 96)), *(visual(*g).patches for g in images)])
    flat_videos = np.concatenate([np.zeros((0, 96)), *(visual(*g).patches for g in videos)])
    read = Batch.from_hf(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=flat_images if images else None,
        image_grid_thw=images or None,
        pixel_values_videos=flat_videos if videos else None,
        video_grid_thw=videos or None,
        second_per_grid_ts=seconds,
    )
    for row, sample in enumerate(arrange(read, config)):
        assert sample.tokens.tolist() == tokens[row]
        valid = expected[:, row, mask[row].astype(bool)].numpy()
        np.testing.assert_array_equal(sample.positions, valid)
        assert sample.next_position == len(tokens[row]) + int(deltas[row])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_positions_equal_hf(hf_rope_index, case, side):
    compare_with_hf(hf_rope_index, CONFIG, case, side)


@pytest.mark.parametrize("rate", [4, 25])
@pytest.mark.parametrize("seconds", [None, (1.0,), (0.7, 0.04), (0.0, 5.3), (100.0,)])
@pytest.mark.parametrize("case", ["one image", "video", "long narrow video", "mixed", "batch"])
def test_absolute_time_equals_hf(hf_rope_index, case, seconds, rate):
    vision = dataclasses.replace(TIMED.vision, tokens_per_second=rate)
    config = dataclasses.replace(TIMED, vision=vision)
    compare_with_hf(hf_rope_index, config, case, "right", seconds)


STAMPED = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, timestamps=True))
# A video of three slices has three runs of placeholders, with text between them.
SLICES = {
    "slices": ([[1, *[V] * 4, 2, 3, *[V] * 4, 4, *[V] * 4, 5]], [], [(3, 4, 4)]),
    "slices and images": (
        [[*[I] * 6, *[V] * 2, 9, *[V] * 2, *[I] * 4, 3], [1, *[V] * 5, 2, *[V] * 5]],
        [(1, 4, 6), (1, 4, 4)],
        [(2, 2, 4), (2, 2, 10)],
    ),
}


@pytest.mark.parametrize("case", ["one image", "slices", "slices and images"])
def test_slices_behind_timestamps_equal_hf(hf_rope_index, case):
    compare_with_hf(hf_rope_index, STAMPED, case, "left")


def test_slices_stay_one_visual():
    tokens, _, videos = SLICES["slices"]
    (sample,) = arrange(batch(tokens, [], [visual(*videos[0])]), STAMPED)
    assert sample.segment_id.tolist() == [0] * 12
    assert sample.visual_slot.tolist() == [*range(1, 5), *range(7, 11), *range(12, 16)]
    assert sample.grid[:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(InputError, match=r"video 0 .* 3 runs of placeholders, .* found 2"):
        arrange(batch([tokens[0][:11], [1]], [], [visual(*videos[0])]), STAMPED)


def test_only_videos_of_models_with_time_keep_it():
    tokens = [[1, *[V] * 12, 2, *[I] * 4]]
    videos = [dataclasses.replace(visual(3, 4, 4), seconds=0.7)]
    images = [dataclasses.replace(visual(1, 4, 4), seconds=9.0)]
    (timed,), (plain,) = (arrange(batch(tokens, images, videos), c) for c in (TIMED, CONFIG))
    assert timed.positions[0].tolist() == [0, *[1] * 4, *[3] * 4, *[6] * 4, 3, *[4] * 4]
    assert timed.next_position == 7
    assert timed.grid[:12, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert plain.positions[0].tolist() == [0, *[1] * 4, *[2] * 4, *[3] * 4, 3, *[4] * 4]


def test_visual_space_of_a_mixed_sample():
    tokens, images, videos = CASES["mixed"]
    mixed = batch(tokens, [visual(*g) for g in images], [visual(*g) for g in videos])
    (sample,) = arrange(mixed, CONFIG)
    assert [segment.kind for segment in sample.segments] == ["video", "image", "video"]
    assert [segment.footprint.count for segment in sample.segments] == [8, 6, 2]
    assert sample.visual_slot.tolist() == [*range(1, 9), *range(10, 16), 17, 18]
    assert sample.segment_id.tolist() == [0] * 8 + [1] * 6 + [2] * 2
    assert sample.grid.tolist() == [
        *([0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]),
        *([1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]),
        *([0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]),
        *([0, 0, 0], [0, 0, 1]),
    ]
    assert sample.segments[1].visual is mixed.images[0]
    assert sample.segments[2].visual is mixed.videos[1]


def test_touching_images_are_told_apart():
    touching = batch([[1, *[I] * 10, 2]], [visual(1, 4, 6), visual(1, 4, 4)])
    (sample,) = arrange(touching, CONFIG)
    assert sample.segment_id.tolist() == [0] * 6 + [1] * 4
    assert sample.positions[2].tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 5, 4, 5, 6]
    assert sample.next_position == 7


def test_text_positions_count_up():
    positions = number_sample(4, ())
    assert positions.dtype == np.int32
    assert positions.tolist() == [[0, 1, 2, 3]] * 3


def test_rows_are_taken_with_their_visuals():
    tokens, _, _ = CASES["batch"]
    images, video = [visual(1, 4, 6, 1), visual(1, 4, 4, 2)], visual(1, 4, 4, 3)
    whole = batch(tokens, images, [video])
    part = take_rows(whole, [2, 1], CONFIG)
    assert [row.tolist() for row in part.tokens] == [tokens[2], tokens[1]]
    assert part.images == (images[1],)
    assert part.videos == (video,)
    twice = take_rows(whole, [0, 0], CONFIG)
    assert twice.images == (images[0], images[0])
    assert len(arrange(twice, CONFIG)) == 2


@pytest.mark.parametrize(
    ("tokens", "images", "message"),
    [
        (
            [[1], [1, *[I] * 5]],
            [(1, 4, 6)],
            r"sample 1: image 0 .* grid \(1, 4, 6\) expected 6 placeholders, found 5",
        ),
        ([[1, *[I] * 6]], [], "sample 0: expected 0 more image placeholders .* found 6; pass"),
        ([[1, *[I] * 7]], [(1, 4, 6)], "sample 0: expected 0 more image .* after 1 images"),
        ([[1, *[I] * 6]], [(1, 4, 6)] * 2, "expected placeholders for 2 images, found them for 1"),
        ([[1, V]], [], "sample 0: expected 0 more video placeholders"),
        ([[1, *[I] * 6]], [(1, 3, 8)], r"image 0: grid \(1, 3, 8\) must be multiples of the merge"),
    ],
)
def test_placeholders_that_do_not_match_are_named(tokens, images, message):
    with pytest.raises(InputError, match=message) as caught:
        arrange(batch(tokens, [visual(*g) for g in images]), CONFIG)
    assert "\n" not in str(caught.value)


def test_patches_of_another_model_are_named():
    wrong = dataclasses.replace(visual(1, 4, 4), patches=np.zeros((16, 5), np.float32))
    with pytest.raises(InputError, match=r"image 0: patches \(16, 5\) should be \(16, 96\)"):
        arrange(batch([[I] * 4], [wrong]), CONFIG)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": [1, 2]}, r"input_ids must be \[batch, length\]"),
        ({"input_ids": [[1]], "attention_mask": [[1, 1]]}, "attention_mask"),
        ({"input_ids": [[1], [2]], "attention_mask": [[1], [0]]}, "sample 1 has no tokens"),
        ({"input_ids": [[1]], "pixel_values": [[0.0]]}, "image_grid_thw is missing"),
        ({"input_ids": [[1]], "video_grid_thw": [[1, 2, 2]]}, "pixel_values_videos is missing"),
        (
            {"input_ids": [[1]], "pixel_values": [[0.0]] * 3, "image_grid_thw": [[1, 2, 2]]},
            r"pixel_values has shape \(3, 1\), but image_grid_thw needs 4 rows",
        ),
        (
            {"input_ids": [[1]], "pixel_values": [[0.0]], "image_grid_thw": [[0, 2, 2]]},
            "image_grid_thw must be",
        ),
        (
            {"input_ids": [[1]], "pixel_values": PIXELS, "images_spatial_crop": [1, 1]},
            r"images_spatial_crop must be \[images, 2\] and not negative, got \[1, 1\]",
        ),
        (
            {"input_ids": [[1]], "pixel_values": PIXELS, "images_spatial_crop": [[-1, -1]]},
            r"images_spatial_crop must be \[images, 2\] and not negative, got \[\[-1, -1\]\]",
        ),
        (
            {"input_ids": [[1]], "pixel_values": PIXELS, "image_sizes": [4, 4, 4]},
            r"image_sizes must be \[images, 2\]",
        ),
        (
            {"input_ids": [[1]], "second_per_grid_ts": [1.0]},
            r"second_per_grid_ts \[1.0\] must be one number, .* 0 videos",
        ),
        (
            {
                "input_ids": [[V]],
                "pixel_values_videos": [[0.0]] * 4,
                "video_grid_thw": [[1, 2, 2]],
                "second_per_grid_ts": [float("nan")],
            },
            r"second_per_grid_ts \[nan\] must be",
        ),
    ],
)
def test_contradicting_hf_arrays_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        Batch.from_hf(**arguments)


def test_no_visuals_may_be_empty_arrays():
    read = Batch.from_hf(
        input_ids=[[1, 2]], pixel_values=np.zeros((0, 96)), image_grid_thw=np.zeros((0, 3))
    )
    assert read.images == ()
    assert len(read) == 1
    assert read.tokens[0].dtype == np.int32
