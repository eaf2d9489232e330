"""Boxes of objects become marks of visual tokens, by every rule that cuts pictures."""

import dataclasses

import numpy as np
import pytest
from helpers.batches import show_pictures
from PIL import Image

import ivc_jax
from ivc_jax.inputs.batch import Batch, InputError
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.inputs.layout import take_rows
from ivc_jax.inputs.objects import mark_objects


@pytest.fixture(scope="module")
def qwen(tiny_hf):
    """A tiny Qwen2-VL: tokens of 8 x 8 pixels."""
    return ivc_jax.load(tiny_hf())


def grid_of(marks, rows, columns) -> list[str]:
    return ["".join("x" if mark else "." for mark in row) for row in marks.reshape(rows, columns)]


def mark(processor, boxes, size, rows, columns):
    marks = mark_objects(boxes, size, processor.images, processor.config)
    assert marks.dtype == bool
    return grid_of(marks, rows, columns)


def test_a_token_holds_an_object_if_any_part_of_it_is_covered(qwen):
    _, processor = qwen
    find = lambda *boxes: mark(processor, boxes, (48, 40), 5, 6)  # noqa: E731
    assert processor.images.find_size(48, 40) == (40, 48)  # as it is
    assert find((8, 8, 16, 16)) == ["......", ".x....", "......", "......", "......"]
    assert find((7.5, 8, 16.5, 16)) == ["......", "xxx...", "......", "......", "......"]
    assert find((15, 15, 17, 17)) == ["......", ".xx...", ".xx...", "......", "......"]
    # two, one of them reaching beyond the picture
    assert find((0, 0, 1, 1), (40, 30, 99, 99)) == [
        "x.....",
        "......",
        "......",
        ".....x",
        ".....x",
    ]
    assert find() == ["......"] * 5


def test_boxes_are_resized_with_the_picture(qwen):
    _, processor = qwen
    small = processor.bound(32 * 16, 32 * 16)
    assert small.images.find_size(96, 48) == (16, 32)  # a third of it
    # columns are 24 pixels of the picture: 23 to 25 and 72 to 96
    assert mark(small, [(23, 0, 25, 24)], (96, 48), 2, 4) == ["xx..", "...."]
    assert mark(small, [(72, 25, 96, 26)], (96, 48), 2, 4) == ["....", "...x"]


def test_squares_pad_or_cut_boxes_too(tiny_hf):
    _, processor = ivc_jax.load(tiny_hf(family="llava"))  # 24 x 24 pixels, tokens of 4 x 4
    rows = mark(processor.pad(True), [(0, 0, 8, 24)], (48, 24), 6, 6)
    # half as large, below 6 rows of padding: 4 x 12 pixels from (0, 6) on
    assert rows == ["......", "x.....", "x.....", "x.....", "x.....", "......"]
    rows = mark(processor.pad(False), [(0, 0, 8, 24), (13, 0, 14, 3)], (48, 24), 6, 6)
    assert rows == ["x.....", *["......"] * 5]  # 12 pixels on either side are cut off


def test_tiles_and_the_thumbnail_show_an_object_each(tiny_hf):
    _, processor = ivc_jax.load(tiny_hf(family="internvl"))
    size, side = processor.images.tile_size, processor.config.vision
    cells = size // side.patch_size // side.spatial_merge_size
    shape = (2 * size, size)  # two tiles
    assert processor.images.find_tiles(*shape) == (2, 1)
    marks = mark_objects([(size, 0, 2 * size, size)], shape, processor.images, processor.config)
    left, right, thumbnail = marks.reshape(3, cells, cells)
    assert not left.any()
    assert right.all()
    assert not thumbnail[:, : cells // 2].any()
    assert thumbnail[:, -(cells // 2) :].all()


def test_learned_tokens_hold_no_object(tiny_hf):
    model, processor = ivc_jax.load(tiny_hf(family="deepseek_vl2"))
    picture = np.full((30, 30, 3), 90, np.uint8)
    batch = processor(["What?"], [[picture]], objects=[[[(0, 0, 30, 30)]]])
    inputs = collate(batch, model.config)
    made = np.asarray(inputs.visual_source)[0] >= 0
    count = int(inputs.layout.visual_count[0])
    np.testing.assert_array_equal(np.asarray(inputs.objects)[0, :count], made[:count])
    assert not made[:count].all()


def test_many_pictures_are_marked_as_they_are_cut(tiny_hf):
    model, processor = ivc_jax.load(tiny_hf(family="deepseek_vl2"))
    rule, size = processor.images, (90, 30)
    assert rule.find_tiles(*size) != rule.share(3).find_tiles(*size)  # of three none is cut
    picture = np.full((*size[::-1], 3), 90, np.uint8)
    for count in (1, 3):
        boxes = [[(0, 0, *size)]] * count
        batch = processor(["What?"], [[picture] * count], objects=[boxes])
        assert collate(batch, model.config).objects.any()


def test_a_batch_says_for_each_sample_where_objects_are(qwen):
    model, processor = qwen
    plain = show_pictures(processor)
    assert plain.objects == ()
    assert collate(plain, model.config).objects is None
    draw = np.random.default_rng(0)
    one, two, three = (draw.integers(0, 256, (h, w, 3), np.uint8) for h, w in
                       ((30, 41), (20, 50), (64, 30)))  # fmt: skip
    prompts = ["What is it?", "Words alone.", "Is <image> like <image>, or is it not?"]
    boxes = [[[(0, 0, 9, 9)]], None, [[], [(0, 40, 30, 64), (0, 0, 3, 3)]]]
    batch = processor(prompts, [[one], None, [two, three]], objects=boxes)
    rule = processor.images
    parts = [
        mark_objects(own, (array.shape[1], array.shape[0]), rule, model.config)
        for own, array in zip([boxes[0][0], *boxes[2]], (one, two, three), strict=True)
    ]
    np.testing.assert_array_equal(batch.objects[0], parts[0])
    np.testing.assert_array_equal(batch.objects[2], np.concatenate(parts[1:]))
    assert parts[0].any()
    assert not parts[1].any()
    assert parts[2].any()

    wide = Buckets(text=(96,), visual=(144,), patches=(256,), rows=(8,), images=(4,))
    for inputs in (collate(batch, model.config), collate(batch, model.config, wide)):
        B, V = inputs.layout.visual_index.shape
        assert (inputs.objects.shape, inputs.objects.dtype) == ((B, V), bool)
        for row, marks in enumerate((batch.objects[0], [], batch.objects[2])):
            np.testing.assert_array_equal(inputs.objects[row, : len(marks)], marks)
            assert not inputs.objects[row, len(marks) :].any()

    again = take_rows(batch, [2, 0], model.config)
    np.testing.assert_array_equal(again.objects[0], batch.objects[2])
    joined = Batch.join([again, plain])
    assert [mark is None for mark in joined.objects] == [False, False, True, True, True]
    assert collate(joined, model.config).objects is None  # a picture of which nobody knows
    assert Batch.join([plain, plain]).objects == ()


def test_messages_may_have_objects_too(qwen):
    _, processor = qwen
    picture = Image.new("RGB", (48, 40), "red")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
    batch = processor([{"role": "user", "content": content}], objects=[[[(8, 8, 16, 16)]]])
    assert np.flatnonzero(batch.objects[0]).tolist() == [7]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([[], []], "objects must be a list with an entry for each prompt; pass objects="),
        ([[]], "sample 0: its objects must be a list of boxes for each of its 1 images"),
        ([[[(1, 2, 3)]]], r"sample 0, image 0: a box of an object is x1, y1, x2, y2, got \(1, 2"),
        ([[[(9, 2, 3, 4)]]], "the box 9 2 3 4 of an object has no area in a picture of 48 x 40"),
        ([[[(60, 2, 70, 4)]]], "the box 60 2 70 4 of an object has no area"),
    ],
)
def test_bad_boxes_are_named(qwen, objects, message):
    _, processor = qwen
    with pytest.raises(InputError, match=message):
        processor(["What?"], [[Image.new("RGB", (48, 40))]], objects=objects)


def test_bad_marks_are_named(qwen):
    model, processor = qwen
    picture = Image.new("RGB", (48, 40))
    with pytest.raises(InputError, match="sample 0: objects are of images, and it has a video"):
        processor(["What?"], videos=[[[picture, picture]]], objects=[[]])
    batch = processor(["What?"], [[picture]])
    with pytest.raises(InputError, match="objects has 2 entries for 1 samples"):
        dataclasses.replace(batch, objects=(None, None))
    for wrong in (np.zeros(29, bool), np.zeros(30, np.int32)):
        odd = dataclasses.replace(batch, objects=(wrong,))
        with pytest.raises(InputError, match=r"sample 0: its objects must be bool \[30\]"):
            collate(odd, model.config)
