"""The towers know no places, and checkpoints of every kind answer the same in transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cells import write_checkpoint
from PIL import Image

import ivc_jax
from digit_scenes import digits, files, scenes, tokenizer, tower
from digit_scenes.setting import SETTINGS
from ivc_jax.methods.base import MethodError
from ivc_jax.nn import tower as library

GRID = 4
KINDS = ("sections", "interleaved", "line")


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    """Write a checkpoint with random weights: (kind, folder)."""
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param, GRID, 2)
    return request.param, folder


@pytest.fixture(scope="module")
def picture():
    return scenes.render(np.random.default_rng(0), digits.load("test"), 6, GRID)[1]


def _encode(model, processor, pixels):
    (image,) = processor(["x"], [[pixels]]).images
    side = model.config.vision.spatial_merge_size
    place = np.arange(len(image.patches))
    if side > 1:
        # merge blocks in raster order, patches within
        block, inner = np.divmod(place, side * side)
        down, right = np.divmod(block, GRID)
        place = np.stack([down * side + inner // side, right * side + inner % side], axis=-1)
    else:
        place = np.stack(np.divmod(place, GRID), axis=-1)
    tokens, _ = library.encode(
        model.config.vision,
        model.params["vision"],
        jnp.asarray(image.patches)[None],
        jnp.asarray(place, jnp.int32)[None],
    )
    return np.asarray(tokens[0]).reshape(GRID, GRID, -1)


def test_shifting_a_picture_by_a_cell_shifts_its_tokens_and_changes_none(written, picture):
    kind, folder = written
    model, processor = ivc_jax.load(folder, dtype="float32")
    at_home = _encode(model, processor, picture)
    assert np.std(at_home.reshape(GRID**2, -1), axis=0).min() > 1e-4  # cells differ
    for rows, columns in ((1, 0), (0, 1), (2, 3)):
        moved = np.roll(picture, (16 * rows, 16 * columns), axis=(0, 1))
        shifted = _encode(model, processor, moved)
        expected = np.roll(at_home, (rows, columns), axis=(0, 1))
        if kind == "sections":
            # its blocks turn queries and keys by place and use the difference alone: rounding
            np.testing.assert_allclose(shifted, expected, rtol=0, atol=2e-6)
        else:
            np.testing.assert_array_equal(shifted, expected)


def test_a_tower_without_blocks_has_no_attention_to_rank_by(written, picture):
    kind, folder = written
    model, processor = ivc_jax.load(folder, dtype="float32")
    batch = processor(["How many red?"], [[picture]])
    if kind == "sections":
        out = ivc_jax.generate(model, batch, "scope:keep_ratio=0.5", max_new_tokens=1)
        assert len(out.kept[0]) == len(batch.tokens[0]) - GRID**2 // 2
    else:
        with pytest.raises(MethodError, match="the vision tower has no blocks"):
            ivc_jax.prefill(model, batch, "scope:keep_ratio=0.5")


def test_bank_of_cells_is_what_pictures_become(written, picture):
    _, folder = written
    model, processor = ivc_jax.load(folder, dtype="float32")
    cells = picture.reshape(GRID, 16, GRID, 16, 3).swapaxes(1, 2).reshape(-1, 16, 16, 3)
    bank = tower.encode(model.config.vision, model.params["vision"], cells)
    found = _encode(model, processor, picture).reshape(GRID**2, -1)
    np.testing.assert_allclose(bank, found, rtol=0, atol=2e-6)


def test_checkpoints_answer_as_in_transformers(written, picture):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, folder = written
    model, processor = ivc_jax.load(folder, dtype="float32")
    batch = processor(["Locate the red 7."], [[picture]])
    with jax.default_matmul_precision("highest"):
        prompt = ivc_jax.prefill(model, batch)
        out = ivc_jax.generate(model, batch, max_new_tokens=12, stop_ids=())
    name = {
        "sections": "Qwen2_5_VLForConditionalGeneration",
        "interleaved": "Qwen3VLForConditionalGeneration",
        "line": "LlavaForConditionalGeneration",
    }[kind]
    reference, report = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())  # no tensor is missing, none is left over
    ids = torch.from_numpy(batch.tokens[0][None].astype(np.int64))
    (image,) = batch.images
    if kind == "line":
        theirs = transformers.AutoProcessor.from_pretrained(folder)
        asked = "<|vision_start|><|image_pad|><|vision_end|>Locate the red 7"
        arguments = theirs(text=asked, images=[Image.fromarray(picture)], return_tensors="pt")
        np.testing.assert_array_equal(arguments["input_ids"][0], batch.tokens[0])
    else:
        arguments = {
            "input_ids": ids,
            "pixel_values": torch.from_numpy(np.array(image.patches)),
            "image_grid_thw": torch.tensor([image.grid]),
            "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        }
    with torch.no_grad():
        logits = reference.eval()(**arguments).logits[0, -1].numpy()
        answer = reference.generate(
            **arguments, max_new_tokens=12, do_sample=False, eos_token_id=None
        )
    np.testing.assert_allclose(prompt.logits[0], logits, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(out.tokens[0, :12], answer[0, len(batch.tokens[0]) :])


@pytest.mark.parametrize("kind", KINDS)
def test_centred_tokens_have_unit_length_and_a_direction_in_common(kind):
    words = tokenizer.build(GRID)
    setting = dataclasses.replace(SETTINGS[kind], grid=GRID)
    config = files.read_config(
        setting, tokenizer.find_special_ids(words), words.get_vocab_size()
    ).vision
    cells = scenes.draw_cells(np.random.default_rng(0), digits.load("test"), 40, 20)
    vision = tower.init_params(config, jax.random.key(0))["vision"]
    before = tower.encode_bank(config, vision, cells)
    after = tower.encode_bank(config, tower.centre(config, vision, cells), cells)
    middle = after.mean(axis=0)
    np.testing.assert_allclose(np.linalg.norm(middle), 0.5, rtol=1e-4)
    content = before - before.mean(axis=0)
    content /= np.sqrt(np.mean(np.sum(content**2, axis=1)))
    np.testing.assert_allclose(after - middle, content, atol=2e-4)
