"""Square pictures against transformers' CLIP and LLaVA processors, bit for bit."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from ivc_jax.config import VisionConfig
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.layout import Visual
from ivc_jax.inputs.patches import cut_patches
from ivc_jax.inputs.resize import process_image
from ivc_jax.inputs.square import Square

LARGE = parse_config(list_sizes()["llava-1.5-7b"]).vision
SMALL = dataclasses.replace(LARGE, patch_size=4, table_side=6)
MODES = ("RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr")
SIZES = ((1, 1), (7, 300), (91, 37), (24, 24), (23, 25), (601, 420), (13, 17), (480, 640))
# every mode with some sizes, every size with some modes
PICTURES = [
    (size, MODES[(number + row) % 8]) for row, size in enumerate(SIZES) for number in (0, 3)
]
PICTURES += [((31 + 7 * row, 90 - 5 * row), mode) for row, mode in enumerate(MODES)]


def draw(size, mode):
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (*size, 4), np.uint8)
    if mode in ("RGBA", "LA"):
        return Image.fromarray(pixels).convert(mode)
    return Image.fromarray(pixels[..., :3]).convert(mode)


def settings(vision: VisionConfig, **changes):
    side = vision.table_side * vision.patch_size
    return {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        **changes,
    }


@pytest.fixture(scope="module")
def processors():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    return {False: CLIPImageProcessorPil, True: LlavaImageProcessorPil}


def compare(processors, picture, vision, pad):
    stated = settings(vision, **({"do_pad": True} if pad else {}))
    pixels = processors[pad](**stated)(images=[picture], return_tensors="np")["pixel_values"]
    found = process_image(picture, Square.from_hf(stated, vision))
    patches, grid = cut_patches(pixels, vision.patch_size, 1, 1)
    assert found.grid == grid == (1, vision.table_side, vision.table_side)
    np.testing.assert_array_equal(found.patches, patches)


@pytest.mark.parametrize("pad", [False, True], ids=["cut", "padded"])
@pytest.mark.parametrize(("size", "mode"), PICTURES)
def test_patches_equal_transformers(processors, size, mode, pad):
    compare(processors, draw(size, mode), SMALL, pad)


@pytest.mark.parametrize("pad", [False, True], ids=["cut", "padded"])
@pytest.mark.parametrize("size", [(375, 500), (336, 336), (612, 409), (50, 337)])
def test_patches_equal_transformers_at_the_published_size(processors, size, pad):
    compare(processors, draw(size, "RGB"), LARGE, pad)


def test_a_wide_picture_by_hand():
    """Left and right quarters go, or grey of the mean comes above and below."""
    pixels = np.zeros((24, 48, 3), np.uint8)
    pixels[:, 12:36] = 255
    plain = {"do_normalize": False, "image_mean": [0.5, 0.5, 0.5]}
    rule = Square.from_hf(settings(SMALL, **plain), SMALL)
    assert (process_image(Image.fromarray(pixels), rule).patches == 1).all()
    padded = process_image(Image.fromarray(pixels), rule.pad(True))
    picture = padded.patches.reshape(6, 6, 3, 4, 4)[:, :, 0]  # [row, column, y, x]
    assert (picture[0] == np.float32(127 / 255)).all()
    assert (picture[-1] == np.float32(127 / 255)).all()
    np.testing.assert_array_equal(picture[2, 2:4], np.ones((2, 4, 4), np.float32))
    assert not picture[2, 0].any()
    assert isinstance(padded, Visual)
    shown = np.asarray(rule.show(Image.fromarray(pixels)))
    assert shown.shape == (24, 24, 3)
    assert (shown == 255).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 20}}, "size of the preprocessor is .* takes 24 x 24 pixels"),
        ({"size": 20}, "size of the preprocessor is 20"),
        ({"crop_size": {"height": 24, "width": 30}}, "crop_size of the preprocessor"),
        ({"do_center_crop": False}, "do_center_crop=false leaves pictures unequal"),
        ({"do_resize": False}, "do_resize=false leaves pictures unequal"),
    ],
)
def test_settings_of_another_tower_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Square.from_hf(settings(SMALL, **changes), SMALL)


def test_older_spellings_are_read():
    rule = Square.from_hf({"size": 24, "crop_size": 24}, SMALL)
    assert rule == Square.from_hf(settings(SMALL), SMALL) == Square.from_hf({}, SMALL)
    assert Square.from_hf({"size": {"height": 24, "width": 24}}, SMALL) == rule
