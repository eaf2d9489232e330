"""Prompts and pictures of DeepSeek-VL2: ids, shapes of mosaics, pixels, what a picture takes up."""

import json

import numpy as np
import pytest
from families.deepseek import CANDIDATES, CELLS, IMAGE, SIDE
from helpers.mosaics import count_tokens
from helpers.tiny import tiny_config
from PIL import Image, ImageOps

import ivc_jax
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.inputs.batch import Batch, InputError, Visual
from ivc_jax.inputs.footprint import find_footprint, sort_patches
from ivc_jax.inputs.layout import arrange
from ivc_jax.inputs.mosaic import Mosaic

TINY = parse_config(tiny_config(family="deepseek_vl2"))
SMALL = parse_config(list_sizes()["deepseek-vl2-small"])
MODES = ["RGB", "L", "RGBA", "P", "CMYK"]
BAR, BLOCK = "\uff5c", "\u2581"  # wide, low
BEGIN, END = (f"<{BAR}{word}{BLOCK}of{BLOCK}sentence{BAR}>" for word in ("begin", "end"))


@pytest.fixture(scope="module")
def loaded(tiny_hf):
    return ivc_jax.load(tiny_hf(family="deepseek_vl2"))


@pytest.fixture(scope="module")
def processor(loaded):
    return loaded[1]


def draw_picture(number):
    draw = np.random.default_rng(number)
    height, width = draw.integers(3, 90, 2)
    pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(MODES[number % len(MODES)])


def choose_shape(width, height, candidates):
    """Choose a shape as the released processor does: one candidate after the other."""
    best, most, least = None, 0, float("inf")
    for across, down in candidates:
        scale = min(across / width, down / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        wasted = across * down - shown
        if shown > most or (shown == most and wasted < least):
            best, most, least = (across, down), shown, wasted
    return best


@pytest.mark.parametrize("number", range(40))
def test_patches_are_those_of_padded_views(processor, number):
    picture = draw_picture(number)
    visual = processor(["?"], [[picture]]).images[0]
    rgb = picture.convert("RGB")
    across, down = choose_shape(*rgb.size, CANDIDATES)
    assert visual.tiles == (across // SIDE, down // SIDE)
    assert visual.size == rgb.size[::-1]
    grey = (127, 127, 127)
    mosaic = ImageOps.pad(rgb, (across, down), color=grey)
    boxes = [(x, y) for y in range(0, down, SIDE) for x in range(0, across, SIDE)]
    views = [ImageOps.pad(rgb, (SIDE, SIDE), color=grey)]
    views += [mosaic.crop((x, y, x + SIDE, y + SIDE)) for x, y in boxes]
    wanted = np.stack([np.asarray(view, np.float32) / 255 for view in views])
    wanted = ((wanted - 0.5) / 0.5).transpose(0, 3, 1, 2)  # [t, 3, 30, 30]
    patches = visual.patches.reshape(len(views), 49, 3, 4, 4)
    order = sort_patches(7, 7, 2)
    for place in range(49):
        row, column = divmod(int(order[place]), 7)
        cut = wanted[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_allclose(patches[:, place], cut, rtol=0, atol=1e-6)


def test_prompts_are_those_of_the_released_template(processor):
    def read(batch):
        (tokens,) = batch.tokens
        ids = tokens[np.r_[True, (tokens[1:] != IMAGE) | (tokens[:-1] != IMAGE)]]
        return processor.writer.tokenizer.decode(ids, skip_special_tokens=False)

    picture = np.zeros((30, 30, 3), np.uint8)
    asked = f"{BEGIN}<|User|>: <image>\nWhat is it?\n\n<|Assistant|>:"
    assert read(processor(["What is it?"], [[picture]])) == asked
    assert read(processor(["<image>\nWhat is it? "], [[picture]])) == asked
    assert read(processor(["What?"])) == f"{BEGIN}<|User|>: What?\n\n<|Assistant|>:"
    image = {"type": "image", "image": Image.fromarray(picture)}
    user = [image, image, {"type": "text", "text": "Alike?"}]
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure?"},
    ]
    assert read(processor([messages])) == (
        f"{BEGIN}<|User|>: <image>\n<image>\nAlike?\n\n<|Assistant|>: Yes.{END}"
        "<|User|>: Sure?\n\n<|Assistant|>:"
    )


def test_placeholders_are_as_many_as_tokens(loaded):
    model, processor = loaded
    picture = np.zeros((20, 55, 3), np.uint8)
    batch = processor(["What?"], [[picture]])
    assert batch.images[0].tiles == (2, 1)
    assert (batch.tokens[0] == IMAGE).sum() == count_tokens(2, 1)
    size = processor.measure("What?", [(55, 20)])
    assert (size.visual, size.rows) == (count_tokens(2, 1), 3)
    assert model.stop_ids == (257,)


def test_of_more_than_two_pictures_none_is_cut(processor):
    picture = np.zeros((20, 55, 3), np.uint8)
    for count, tiles in ((2, (2, 1)), (3, (1, 1))):
        batch = processor(["What?"], [[picture] * count])
        assert {visual.tiles for visual in batch.images} == {tiles}
        measured = processor.measure("What?", [(55, 20)] * count)
        assert measured.visual == (batch.tokens[0] == IMAGE).sum()


def test_videos_are_refused(loaded):
    model, processor = loaded
    with pytest.raises(InputError, match="sample 1: this model takes no videos; leave them out"):
        processor(["a", "b"], videos=[None, [np.zeros((2, 20, 20, 3), np.uint8)]])
    arrays = {"pixel_values_videos": np.zeros((49, 48)), "video_grid_thw": np.array([[1, 7, 7]])}
    batch = ivc_jax.Batch.from_hf(input_ids=np.array([[1, 2]]), **arrays)
    with pytest.raises(InputError, match="this model takes no videos, the batch has 1; leave"):
        arrange(batch, model.config)


@pytest.mark.parametrize(("slices", "tiles"), [(1, (1, 1)), (2, (1, 2))])
def test_tiles_that_are_not_as_many_as_their_shape_are_refused(slices, tiles):
    visual = Visual(np.zeros((slices, 3, SIDE, SIDE)), (slices, SIDE, SIDE), tiles=tiles)
    message = rf"image 0: {slices} slices are not a view .* {tiles[1]} tiles; pass images_spatial"
    with pytest.raises(InputError, match=message):
        arrange(Batch((np.full(41, IMAGE, np.int32),), (visual,)), TINY)


def test_candidates_are_whole_tiles():
    with pytest.raises(InputError, match=r"candidate_resolutions \[\(384, 500\)\] must be mult"):
        Mosaic.from_hf({"view_size": 384, "candidate_resolutions": [[384, 500]]})
    usual = Mosaic.from_hf({"view_size": 384})
    assert len(usual.candidate_resolutions) == 23
    assert usual.find_tiles(800, 600) == (3, 2)  # 1024 x 768 show every pixel, 768 x 576 do not
    assert usual.find_tiles(3000, 300) == (8, 1)
    assert usual.limit(4).find_tiles(3000, 300) == (4, 1)
    with pytest.raises(InputError, match="max_tiles must be at least 1, got 0"):
        usual.limit(0)


def test_the_tokenizer_knows_the_placeholder(tiny_hf, tmp_path, loaded):
    """Published files do not state its id."""
    for file in tiny_hf(family="deepseek_vl2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["image_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ivc_jax.load(tmp_path)[0].config == loaded[0].config


def test_cells_of_padding_show_nothing():
    """Half as high as wide: 192 of 384 pixels from row 96 on meet cells 3 to 10 of 28."""
    found = find_footprint((3, 27, 27), SMALL, None, (2, 1), (400, 800))
    assert found.count == 211 + 14 * 29
    frame, row, column = found.grid.T
    view = frame == 0
    shown = set(row[view & found.content].tolist())
    assert shown == set(range(3, 11))
    assert not found.content[view & (column == 14)].any()
    assert not found.content[210]
    assert found.source[[14, 210, 211 + 28]].tolist() == [-1, -2, -1]
    # the mosaic is filled: 768 x 384 for 800 x 400
    assert found.content[~view].sum() == 14 * 28
    everything = find_footprint((3, 27, 27), SMALL, None, (2, 1))
    assert everything.content.sum() == 14 * 14 * 3


def test_cells_that_lack_patches_and_rows_of_the_mosaic():
    found = find_footprint((1 + 2, 27, 27), SMALL, None, (2, 1))
    assert (found.rows, found.patches) == (3, 14 * 14 * 4)
    assert (found.patch_positions[0, :, 0] < 0).sum() == 14 * 14 * 4 - 27 * 27
    # the first row of the mosaic: 14 cells of the first tile, 14 of the second
    line = found.source[211 : 211 + 29]
    assert line.tolist() == [*range(196, 210), *range(392, 406), -1]
    assert CELLS == 4
