"""Collation: the padded arrays in full, and padding that changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.tiny import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from ivc_jax.families import parse_config
from ivc_jax.inputs.batch import Batch, InputError, Visual
from ivc_jax.inputs.bucket import Buckets, choose_shape, collate, list_steps, pad
from ivc_jax.inputs.layout import arrange

CONFIG = parse_config(tiny_config())
WINDOWED = parse_config(tiny_config(family="qwen2_5_vl"))  # windows of 2 x 2 merged cells
I, V = CONFIG.image_token_id, CONFIG.video_token_id  # noqa: E741
AREA, VALUES = CONFIG.vision.merge_area, CONFIG.vision.patch_values
TIGHT = Buckets(text=(4,), visual=(6,), patches=(20,), rows=(2,), images=(2,))


def visual(t: int, h: int, w: int, first: int = 0) -> Visual:
    """Number the patches from `first` on; every value of a patch is its number."""
    numbers = first + np.arange(t * h * w, dtype=np.float32)
    return Visual(np.repeat(numbers[:, None], VALUES, axis=1), (t, h, w))


def batch(tokens, images=(), videos=()) -> Batch:
    return Batch(tuple(np.array(row, np.int32) for row in tokens), tuple(images), tuple(videos))


def leaves(inputs) -> dict[str, np.ndarray]:
    """Name the arrays, those of the layout too."""
    own = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    layout = own.pop("layout")
    return own | {field.name: getattr(layout, field.name) for field in dataclasses.fields(layout)}


def test_two_samples_are_padded_as_drawn():
    inputs = collate(batch([[1, I, I, I, I, 2], [1, 2]], [visual(1, 4, 4, 100)]), CONFIG, TIGHT)
    unseen = [[-1, -1, -1]]
    expected = {
        "tokens": [[1, I, I, I, I, 2, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0, 0, 0]],
        "next_position": [4, 2],
        "visual_source": [[0, 1, 2, 3, 0, 0], [0] * 6],
        "visual": None,
        "deepstack": None,
        "objects": None,
        "relevance": None,
        "visual_index": [[1, 2, 3, 4, 0, 0], [0] * 6],
        "visual_valid": [[True] * 4 + [False] * 2, [False] * 6],
        "visual_origin": [[0, 1, 2, 3, 0, 0], [0] * 6],
        "image_id": [[0, 0, 0, 0, -1, -1], [-1] * 6],
        "grid": [[[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], *unseen * 2], unseen * 6],
        "content": [[True] * 4 + [False] * 2, [False] * 6],
        "tiles": [[[1, 1]] * 4 + [[0, 0]] * 2, [[0, 0]] * 6],
        "image_count": [[4, 4, 4, 4, 0, 0], [0] * 6],
        "visual_count": [4, 0],
        "text_index": [[0, 5, 0, 0], [0, 1, 0, 0]],
        "text_valid": [[True, True, False, False]] * 2,
        "positions": [
            [[0, 1, 1, 1, 1, 3, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
            [[0, 1, 1, 2, 2, 3, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
            [[0, 1, 2, 1, 2, 3, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
        ],
        "lengths": [6, 2],
        "num_images": 2,
        "visual_slots": 6,
        "num_positions": 10,
    }
    found = leaves(inputs)
    patches, patch_positions = found.pop("patches"), found.pop("patch_positions")
    assert {name: np.asarray(value).tolist() for name, value in found.items()} == expected
    assert patches.shape == (2, 20, VALUES)
    assert patches[0, :, 0].tolist() == [*range(100, 116), 0, 0, 0, 0]
    assert not patches[1].any()
    block = [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert patch_positions[0].tolist() == [
        *block,
        *([row, column + 2] for row, column in block),
        *([row + 2, column] for row, column in block),
        *([row + 2, column + 2] for row, column in block),
        *[[-1, -1]] * 4,
    ]
    assert (patch_positions[1] == -1).all()


def test_dtypes_are_those_of_the_contract():
    found = leaves(collate(batch([[1, I, I, I, I, 2]], [visual(1, 4, 4)]), CONFIG))
    kinds = {"patches": np.float32, "content": np.bool_}
    kinds |= {"visual_valid": np.bool_, "text_valid": np.bool_}
    assert found.pop("visual") is found.pop("deepstack") is None  # the tower has not run
    # nobody says where objects are, nor how relevant a frame is
    assert found.pop("objects") is found.pop("relevance") is None
    for name, value in found.items():
        if name not in ("num_images", "num_positions", "visual_slots"):
            assert isinstance(value, np.ndarray)
            assert value.dtype == kinds.get(name, np.int32), name


def test_text_alone_has_no_visual_space():
    inputs = collate(batch([[1, 2, 3]]), CONFIG)
    assert inputs.tokens.shape == (1, 16)
    assert inputs.layout.visual_index.shape == inputs.visual_source.shape == (1, 0)
    assert inputs.layout.grid.shape == (1, 0, 3)
    assert inputs.patches.shape == (0, 0, VALUES)
    assert inputs.patch_positions.shape == (0, 0, 2)
    assert (inputs.layout.num_images, inputs.layout.num_positions) == (1, 16)


def test_placeholders_alone_still_get_text_slots():
    inputs = collate(batch([[I] * 4], [visual(1, 4, 4)]), CONFIG)
    assert inputs.layout.text_index.shape == (1, 16)
    assert not inputs.layout.text_valid.any()


def ragged() -> Batch:
    tokens = [
        [1, *[I] * 6, 2, 3, *[V] * 8, 4],
        [5],
        [*[V] * 3, *[I] * 4, 6, *[I] * 5, 7, 8],
    ]
    images = [visual(1, 4, 6, 100), visual(1, 4, 4, 200), visual(1, 2, 10, 300)]
    return batch(tokens, images, [visual(2, 4, 4, 400), visual(3, 2, 2, 500)])


def gathered(inputs, sample: int) -> list[float]:
    """Merge as the tower does (neighbouring patches join) and gather the first patch of each."""
    merged = inputs.patches.reshape(-1, AREA, VALUES)[:, 0, 0]
    valid = inputs.layout.visual_valid[sample]
    return merged[inputs.visual_source[sample][valid]].tolist()


def test_visual_tokens_find_their_patches():
    inputs = collate(ragged(), CONFIG)
    four = lambda first, count: [float(first + 4 * index) for index in range(count)]  # noqa: E731
    assert gathered(inputs, 0) == four(100, 6) + four(400, 8)
    assert gathered(inputs, 1) == []
    assert gathered(inputs, 2) == four(500, 3) + four(200, 4) + four(300, 5)
    # Three images and two slices plus three of the videos: eight rows of at most 24 patches.
    assert inputs.patches.shape[:2] == (8, 64)
    counts = (inputs.patch_positions[..., 0] >= 0).sum(axis=1)
    assert counts.tolist() == [24, 16, 16, 4, 4, 4, 16, 20]


def test_windows_are_padded_as_drawn():
    grid = visual(1, 6, 6, 100)
    inputs = collate(batch([[1, *[I] * 9, 2]], [grid]), WINDOWED)
    assert inputs.patches.shape == (1, 64, VALUES)
    # First patches of the cells a to i, three a row; a window has four places for cells.
    a, b, c, d, e, f, g, h, i = range(100, 136, 4)
    cells = [a, b, d, e, c, f, 0, 0, g, h, 0, 0, i, 0, 0, 0]
    assert inputs.patches[0, ::4, 0].tolist() == cells
    assert gathered(inputs, 0) == [a, b, c, d, e, f, g, h, i]
    rows, columns = inputs.patch_positions[0].T
    assert (rows[::4] // 2 * 3 + columns[::4] // 2).tolist() == [
        *(0, 1, 3, 4, 2, 5, -4, -4, 6, 7, -4, -4, 8, -4, -4, -4)
    ]
    assert rows[4:8].tolist() == [0, 0, 1, 1]
    assert columns[4:8].tolist() == [2, 3, 2, 3]
    assert ((inputs.patches[0, :, 0] == 0) == (rows == -1)).all()


def test_windows_gather_in_raster_order():
    plain, inputs = collate(ragged(), CONFIG), collate(ragged(), WINDOWED)
    for sample in range(3):
        assert gathered(inputs, sample) == gathered(plain, sample)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_windows_are_those_of_transformers(frames, rows, columns, side):
    torch = pytest.importorskip("torch")
    vision_utils = pytest.importorskip("transformers.vision_utils")
    vision = dataclasses.replace(WINDOWED.vision, window_size=side * 8)
    config = dataclasses.replace(WINDOWED, vision=vision)
    grid = (frames, 2 * rows, 2 * columns)
    index, ends = vision_utils.get_vision_window_index(torch.tensor([grid]), 2, side * 8, 4)
    theirs = {frozenset(part.tolist()) for part in index.tensor_split(ends[1:-1].long() // 4)}
    count = frames * rows * columns
    inputs = collate(batch([[V] * count], videos=[visual(*grid)]), config)
    window = inputs.visual_source[0, :count] // side**2
    ours = {frozenset(np.flatnonzero(window == number).tolist()) for number in set(window)}
    assert ours == theirs


def test_absolute_time_takes_positions_beyond_the_slots():
    video = dataclasses.replace(visual(2, 4, 4), seconds=40.0)
    source = batch([[1, *[V] * 8, 2]], videos=[video])
    inputs = collate(source, WINDOWED)
    assert inputs.next_position[0] == 162
    assert inputs.tokens.shape == (1, 32)
    assert inputs.layout.num_positions == 192
    assert collate(source, CONFIG).layout.num_positions == 32
    with pytest.raises(InputError, match="162 position ids, the largest bucket holds 100"):
        collate(source, WINDOWED, Buckets(positions=(100,)))
    far = dataclasses.replace(video, seconds=1e30)
    with pytest.raises(InputError, match="the model's limit is 1024 positions"):
        collate(batch(source.tokens, videos=[far]), WINDOWED)


def test_visual_index_text_index_and_tokens_agree():
    source, inputs = ragged(), collate(ragged(), CONFIG)
    layout = inputs.layout
    for sample, tokens in enumerate(source.tokens):
        seen = layout.visual_index[sample][layout.visual_valid[sample]]
        text = layout.text_index[sample][layout.text_valid[sample]]
        assert sorted([*seen, *text]) == list(range(len(tokens)))
        assert set(inputs.tokens[sample][seen]) <= {I, V}
        assert not {I, V} & set(inputs.tokens[sample][text])
    assert layout.image_count[2, :12].tolist() == [3] * 3 + [4] * 4 + [5] * 5


def test_a_larger_bucket_holds_the_same():
    small = collate(ragged(), CONFIG)
    large = collate(
        ragged(),
        CONFIG,
        Buckets(text=(100,), visual=(50,), patches=(201,), rows=(11,), images=(8,)),
    )
    assert large.patches.shape[:2] == (11, 204)  # rounded up to whole merged tokens
    assert large.tokens.shape == (3, 150)
    assert (large.layout.num_images, large.layout.num_positions) == (8, 150)
    valid = {"visual": [14, 0, 12], "text": [4, 1, 3], "slot": small.layout.lengths.tolist()}
    names = {
        "visual": ("visual_index", "visual_valid", "image_id", "grid", "image_count"),
        "text": ("text_index", "text_valid"),
        "slot": ("tokens", "positions"),
    }
    one, other = leaves(small), leaves(large)
    one["positions"], other["positions"] = (
        layout["positions"].transpose(1, 2, 0) for layout in (one, other)
    )
    for kind, fields in names.items():
        for name in fields:
            for sample, count in enumerate(valid[kind]):
                np.testing.assert_array_equal(
                    one[name][sample][:count], other[name][sample][:count]
                )
    for sample in range(3):
        assert gathered(small, sample) == gathered(large, sample)
    for name in ("lengths", "visual_count", "next_position"):
        np.testing.assert_array_equal(one[name], other[name])


def test_a_sample_alone_equals_itself_in_company():
    source = ragged()
    alone = collate(batch([source.tokens[2]], source.images[1:], source.videos[1:]), CONFIG)
    together = collate(source, CONFIG)
    assert gathered(alone, 0) == gathered(together, 2)
    count = alone.layout.visual_count[0]
    for name in ("visual_index", "image_id", "grid", "image_count"):
        np.testing.assert_array_equal(
            getattr(alone.layout, name)[0, :count], getattr(together.layout, name)[2, :count]
        )
    length = alone.layout.lengths[0]
    np.testing.assert_array_equal(
        alone.layout.positions[:, 0, :length], together.layout.positions[:, 2, :length]
    )


def test_samples_share_the_rows_of_a_picture():
    one, other = visual(1, 4, 4, 100), visual(2, 4, 4, 200)
    tokens = [[1, *[I] * 4, 2], [3, *[I] * 4], [*[V] * 8, *[I] * 4], [*[V] * 8]]
    samples = arrange(batch(tokens, [one, one, one], [other, other]), CONFIG)
    apart = pad(samples, CONFIG, choose_shape(samples, CONFIG, Buckets()))
    shape = dataclasses.replace(choose_shape(samples, CONFIG, Buckets()), rows=3)
    shared = pad(samples, CONFIG, shape, share=True)
    assert apart.patches.shape[0] == 7
    assert shared.patches[:, 0, 0].tolist() == [100, 200, 216]
    for sample in range(4):
        assert gathered(shared, sample) == gathered(apart, sample)


def test_inputs_of_one_bucket_share_a_program():
    one = collate(batch([[1, *[I] * 6, 2]], [visual(1, 4, 6)]), CONFIG)
    other = collate(batch([[1, 5, *[I] * 4, 2, 3]], [visual(1, 4, 4)]), CONFIG)
    traces = []
    reading = jax.jit(lambda inputs: traces.append(1) or inputs.tokens.sum())
    reading(one), reading(other)
    assert len(traces) == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2**17), st.sampled_from([1, 16, 32, 64]), st.sampled_from([1, 2, 8]))
def test_ladder_wastes_less_than_a_part(count, first, parts):
    sizes = list_steps(first, 2**17, parts)
    assert list(sizes) == sorted(set(sizes))
    bucket = min(size for size in sizes if size >= count)
    assert bucket == first or parts * (bucket - count) < count
    octaves = [sum(start < size <= 2 * start for size in sizes) for start in (64, 2**10, 2**16)]
    assert octaves == [parts] * 3  # programs for pictures of any sizes


def test_text_slots_stay_within_the_model():
    short = dataclasses.replace(
        CONFIG, decoder=dataclasses.replace(CONFIG.decoder, max_positions=40)
    )
    assert collate(batch([[1] * 40]), short).tokens.shape == (1, 40)
    with pytest.raises(InputError, match=r"sample 1 \(41 tokens\) reaches .* is 40 positions"):
        collate(batch([[1], [1] * 41]), short)
    # An image spends the positions of its longer side, not one for each token.
    assert collate(batch([[*[I] * 36, 2]], [visual(1, 12, 12)]), short).next_position[0] == 7


@pytest.mark.parametrize(
    ("source", "buckets", "message"),
    [
        (batch([]), {}, "the batch is empty"),
        (
            batch([[1], [1, 2, 3]]),
            {"text": (1, 2)},
            r"sample 1 \(3 tokens\) has 3 text tokens, the largest bucket holds 2",
        ),
        (ragged(), {"visual": (8,)}, "sample 0 .* has 14 visual tokens, .* holds 8"),
        (ragged(), {"patches": (16,)}, "sample 0 .* has 24 patches a row, .* holds 16"),
        (ragged(), {"rows": (4,)}, "the batch of 3 samples has 8 patch rows, .* holds 4"),
        (ragged(), {"images": (2,)}, "sample 2 .* has 3 images, .* holds 2"),
    ],
)
def test_what_exceeds_the_buckets_is_named(source, buckets, message):
    with pytest.raises(InputError, match=message) as caught:
        collate(source, CONFIG, Buckets(**buckets))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sizes", [(), (0, 4), (8, 4), (4, 4)])
def test_impossible_buckets_are_errors(sizes):
    with pytest.raises(InputError, match="buckets visual="):
        Buckets(visual=sizes)
