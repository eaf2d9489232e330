"""Patches are Hugging Face's, bit for bit; bad pictures are named."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.picture import load_picture
from ivc_jax.inputs.resize import SmartResize, process_image, process_video, smart_resize

SMALL = SmartResize(min_pixels=16 * 16, max_pixels=64 * 64, patch_size=4)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    return pixels.astype(np.uint8)


def picture(mode: str, height: int, width: int) -> Image.Image:
    if mode == "RGBA":
        return Image.fromarray(noise(height, width, 4))
    if mode == "LA":
        return Image.fromarray(noise(height, width, 4)).convert("LA")
    if mode == "P+transparency":
        paletted = Image.fromarray(noise(height, width)).convert("P")
        paletted.info["transparency"] = 3
        return paletted
    return Image.fromarray(noise(height, width)).convert(mode)


@pytest.fixture(scope="module")
def hf_images():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

    return image_processing_pil_qwen2_vl


def assert_equals_hf(hf_images, image, config: SmartResize) -> None:
    processor = hf_images.Qwen2VLImageProcessorPil(
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        patch_size=config.patch_size,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
        do_normalize=config.do_normalize,
        do_rescale=config.do_rescale,
        resample=config.resample,
    )
    expected = processor(images=[image], return_tensors="np")
    visual = process_image(image, config)
    assert visual.grid == tuple(expected["image_grid_thw"][0])
    assert visual.patches.dtype == np.float32
    np.testing.assert_array_equal(visual.patches, expected["pixel_values"])


@pytest.mark.parametrize(
    "size", [(1, 1), (28, 28), (37, 91), (224, 196), (3, 590), (601, 420), (13, 17)]
)
def test_patches_equal_hf_at_any_size(hf_images, size):
    config = SmartResize(max_pixels=28 * 28 * 64)
    assert_equals_hf(hf_images, Image.fromarray(noise(*size)), config)


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "LA", "RGBA", "P", "P+transparency", "CMYK", "1", "HSV", "YCbCr", "F"]
)
def test_patches_equal_hf_in_any_mode(hf_images, mode):
    assert_equals_hf(hf_images, picture(mode, 30, 45), SMALL)


@pytest.mark.parametrize(
    "config",
    [
        SmartResize(patch_size=4, min_pixels=256, max_pixels=4096, do_normalize=False),
        SmartResize(patch_size=4, min_pixels=256, max_pixels=4096, do_rescale=False),
        SmartResize(
            patch_size=4,
            min_pixels=256,
            max_pixels=4096,
            resample=2,
            image_mean=(0.5, 0.4, 0.3),
            image_std=(0.1, 0.2, 0.3),
        ),
    ],
)
def test_patches_equal_hf_with_other_settings(hf_images, config):
    assert_equals_hf(hf_images, Image.fromarray(noise(50, 20)), config)


def test_arrays_and_paths_are_read_like_pil_images(tmp_path):
    pixels = noise(24, 40)
    expected = process_image(Image.fromarray(pixels), SMALL).patches
    Image.fromarray(pixels).save(tmp_path / "image.png")
    for source in (pixels, tmp_path / "image.png", str(tmp_path / "image.png")):
        np.testing.assert_array_equal(process_image(source, SMALL).patches, expected)
    grey = pixels[..., 0]
    np.testing.assert_array_equal(
        process_image(grey, SMALL).patches, process_image(np.stack([grey] * 3, -1), SMALL).patches
    )
    np.testing.assert_array_equal(
        process_image(grey[..., None], SMALL).patches, process_image(grey, SMALL).patches
    )


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    rgb = np.asarray(load_picture(Image.fromarray(values)))
    np.testing.assert_array_equal(rgb[0], [[0] * 3, [1] * 3, [128] * 3, [255] * 3])
    wide = Image.fromarray(np.array([[0, 65535]], np.int32))
    np.testing.assert_array_equal(np.asarray(load_picture(wide))[0, :, 0], [0, 255])
    byte = Image.fromarray(np.array([[7, 200]], np.int32))
    np.testing.assert_array_equal(np.asarray(load_picture(byte))[0, :, 0], [7, 200])


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_picture(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_path_is_turned_upright_and_an_opened_picture_is_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    pixels, path = noise(16, 32), tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(np.asarray(load_picture(source)), np.rot90(pixels, 3))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(load_picture(opened)), pixels)
    upright = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, 3)))
    for cut in (process_image, lambda source, rule: process_video([source], rule)):
        np.testing.assert_array_equal(cut(path, SMALL).patches, cut(upright, SMALL).patches)
    plain = tmp_path / "plain.png"
    Image.fromarray(pixels).save(plain)
    np.testing.assert_array_equal(np.asarray(load_picture(plain)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_equal_hf(tmp_path, orientation):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(40, 84)).save(tmp_path / "a.jpg", exif=exif)
    theirs = Qwen2VLImageProcessorPil(min_pixels=28 * 28)
    with Image.open(tmp_path / "a.jpg") as opened:
        for source in (str(tmp_path / "a.jpg"), opened):
            expected = theirs(images=[source], return_tensors="np")
            found = process_image(source, SmartResize(min_pixels=28 * 28))
            assert [list(found.grid)] == expected["image_grid_thw"].tolist()
            np.testing.assert_array_equal(found.patches, expected["pixel_values"])


def test_patch_order_is_merge_blocks():
    # Every pixel holds the number of its 2 x 2 patch in raster order, 4 patches a row.
    raster = np.arange(16).reshape(4, 4).repeat(2, 0).repeat(2, 1).astype(np.uint8)
    config = SmartResize(patch_size=2, do_rescale=False, do_normalize=False)
    patches, grid = config.patchify(raster[None, :, :, None].repeat(3, -1))
    assert grid == (1, 4, 4)
    assert patches.shape == (16, 3 * 2 * 2 * 2)
    assert (patches == patches[:, :1]).all()
    assert patches[:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def hf_video_patchify():
    """Compile HF's patchify alone: its module cannot be imported without torchvision."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    spec = importlib.util.find_spec("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "patchify":
            scope = {"torch": torch}
            exec(compile(ast.Module([node], []), spec.origin, "exec"), scope)
            return scope["patchify"]
    raise AssertionError("patchify not found")


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_video_patches_equal_hf(frames):
    torch = pytest.importorskip("torch")
    pixels = np.stack([noise(16, 24, seed=frame) for frame in range(frames)])
    config = SmartResize(patch_size=4, do_rescale=False, do_normalize=False)
    patches, grid = config.patchify(pixels)
    videos = torch.from_numpy(pixels).permute(0, 3, 1, 2)[None]
    expected, *expected_grid = hf_video_patchify()(None, videos, 4, 2, 2)
    assert grid == tuple(expected_grid) == (-(-frames // 2), 4, 6)
    np.testing.assert_array_equal(patches, expected[0].numpy())


def test_video_of_one_still_equals_the_image():
    pixels = noise(16, 24)
    image = process_image(pixels, SMALL)
    video = process_video(np.stack([pixels] * 3), SMALL)
    assert video.grid == (2, *image.grid[1:])
    np.testing.assert_array_equal(video.patches, np.concatenate([image.patches] * 2))
    frames = process_video([Image.fromarray(pixels)] * 3, SMALL)
    np.testing.assert_array_equal(video.patches, frames.patches)


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    factor=st.sampled_from([8, 28, 32]),
    bounds=st.sampled_from([(3136, 1003520), (256, 4096), (200704, 12845056)]),
)
def test_smart_resize_keeps_its_promises(height, width, factor, bounds):
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError, match="aspect ratio"):
            smart_resize(height, width, factor, *bounds)
        return
    rows, columns = smart_resize(height, width, factor, *bounds)
    assert rows % factor == columns % factor == 0
    assert rows * columns >= bounds[0]
    # A strip of one step may leave the upper bound.
    assert rows * columns <= bounds[1] or min(rows, columns) == factor


def test_smart_resize_equals_hf(hf_images):
    draw = np.random.default_rng(0)
    for height, width in draw.integers(1, 2000, (300, 2)).tolist():
        if max(height, width) <= 200 * min(height, width):
            arguments = (height, width, 28, 3136, 28 * 28 * 300)
            assert smart_resize(*arguments) == hf_images.smart_resize(*arguments)


def test_config_reads_every_spelling_of_the_bounds():
    old = {"min_pixels": 100, "max_pixels": 200, "patch_size": 16, "image_mean": [0.5] * 3}
    assert SmartResize.from_hf(old) == SmartResize(
        min_pixels=100, max_pixels=200, patch_size=16, image_mean=(0.5,) * 3
    )
    edges = {"size": {"shortest_edge": 100, "longest_edge": 200}}
    assert SmartResize.from_hf(edges) == SmartResize(min_pixels=100, max_pixels=200)
    assert SmartResize.from_hf({"size": {"min_pixels": 100, "max_pixels": 200}}) == (
        SmartResize(min_pixels=100, max_pixels=200)
    )
    assert SmartResize.from_hf({**edges, "min_pixels": 150}) == SmartResize(
        min_pixels=150, max_pixels=200
    )
    assert SmartResize.from_hf({}) == SmartResize()
    with pytest.raises(InputError, match=r"min_pixels 300 must be in 1\.\.max_pixels = 200"):
        SmartResize.from_hf({"min_pixels": 300, "max_pixels": 200})


def _truncated(folder: Path) -> Path:
    Image.fromarray(noise(64, 64)).save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    (folder / "broken.png").write_bytes(data[: len(data) // 2])
    return folder / "broken.png"


def _written(folder: Path, data: bytes) -> Path:
    (folder / "file").write_bytes(data)
    return folder / "file"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (_truncated, "cannot be read .*; save it again"),
        (lambda folder: _written(folder, b""), "is an empty file"),
        (lambda folder: _written(folder, b"hello"), "is not an image"),
        (lambda folder: b"", "is an empty file"),
        (lambda folder: b"hello", "it is not an image"),
        (lambda folder: folder / "missing.png", "there is no file"),
        (lambda folder: folder, "cannot be read"),
        (lambda folder: np.zeros((0, 4, 3), np.uint8), "is empty"),
        (lambda folder: np.zeros((4, 4, 3), np.float32), "pass uint8"),
        (lambda folder: np.zeros((3, 4, 7), np.uint8), "pass uint8"),
        (lambda folder: 7, "is a int, not an image"),
        (lambda folder: Image.new("RGB", (0, 3)), "is empty"),
        (lambda folder: Image.new("RGB", (201, 1)), "aspect ratio 201 exceeds 200"),
    ],
)
def test_bad_pictures_are_named(tmp_path, source, message):
    with pytest.raises(InputError, match=f"^sample 1, image 2.*{message}") as caught:
        process_image(source(tmp_path), SMALL, "sample 1, image 2")
    assert "\n" not in str(caught.value)


def test_decompression_bomb_is_a_clear_error(tmp_path, monkeypatch):
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"too large to decode safely.*MAX_IMAGE_PIXELS"):
        process_image(tmp_path / "a.png", SMALL)


def test_switched_off_steps_demand_fitting_pictures():
    fixed = SmartResize(patch_size=4, do_resize=False)
    assert process_image(noise(16, 24), fixed).grid == (1, 4, 6)
    with pytest.raises(InputError, match="is 16 x 23, not multiples of 8"):
        process_image(noise(16, 23), fixed)
    with pytest.raises(InputError, match="has mode L; set do_convert_rgb"):
        process_image(Image.new("L", (16, 16)), SmartResize(patch_size=4, do_convert_rgb=False))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "has no frames"),
        (np.zeros((0, 8, 8, 3), np.uint8), "has no frames"),
        (np.zeros((8, 8, 3), np.uint8), r"pass \[frames, height, width, 3\]"),
        ("film.mp4", "is no video"),
        (Image.new("RGB", (8, 8)), "is no video"),
        ([noise(8, 8), noise(8, 16)], r"sizes \[\(8, 8\), \(16, 8\)\]"),
        ([noise(8, 8), 3], "frame 1 is a int"),
    ],
)
def test_bad_videos_are_named(frames, message):
    with pytest.raises(InputError, match=f"^sample 0, video 0.*{message}"):
        process_video(frames, SMALL, "sample 0, video 0")
