"""The model of a setting, the codes its word embeddings start from, and its patches.

Words that name the same thing start from the same code, and numbers from a code that changes
smoothly with the value, so that the tower can be taught in the decoder's own language: a visual
token of a red 7 is made to look like the words 'red' and '7'.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from digit_scenes.scenes import COLOUR_NAMES
from digit_scenes.setting import Setting
from ivc_jax.config import DecoderConfig, ModelConfig, RopeConfig, VisionConfig

STEP = 10  # distance between neighbouring coordinate words, in thousandths of the canvas
NUM_BINS = 1000 // STEP + 1
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def make_decoder_config(setting: Setting, vocab_size: int) -> DecoderConfig:
    """Return the sizes of the decoder for a tokenizer."""
    return DecoderConfig(
        num_layers=setting.layers,
        hidden_size=setting.width,
        intermediate_size=setting.intermediate,
        num_heads=setting.heads,
        num_kv_heads=setting.heads,
        vocab_size=vocab_size,
        rope=RopeConfig(
            head_dim=setting.width // setting.heads,
            theta=setting.theta,
            sections=setting.sections,
        ),
        tie_embeddings=True,
        max_positions=4096,
    )


def make_model_config(
    setting: Setting, special_ids: dict[str, int], vocab_size: int
) -> ModelConfig:
    """Return the sizes of the whole model for a tokenizer."""
    return ModelConfig(
        family="qwen2_vl",
        vision=setting.vision,
        decoder=make_decoder_config(setting, vocab_size),
        image_token_id=special_ids["<|image_pad|>"],
        video_token_id=special_ids["<|video_pad|>"],
        vision_start_id=special_ids["<|vision_start|>"],
        vision_end_id=special_ids["<|vision_end|>"],
    )


@functools.cache
def draw_codes(width: int) -> dict[str, np.ndarray]:
    """Return unit-length codes of width D.

    They are "label" [11, D], "colour" [9, D], "number" [101, D] and "axis" [2, D].
    The last label and the last colour stand for background. The product of two number codes falls
    smoothly with the distance of their values (random Fourier features of a mixture of widths).
    """
    random = np.random.default_rng(20240607)
    label = random.normal(size=(11, width))
    colour = random.normal(size=(len(COLOUR_NAMES) + 1, width))
    spread = np.repeat([0.5 / 30, 0.5 / 80, 0.5 / 300], width // 6)  # radians per thousandth
    turn = random.normal(size=width // 2) * spread * 2
    phase = np.arange(0, 1001, STEP)[:, None] * turn  # [101, D / 2]
    number = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    # turned at random, so that no axis of the code means a frequency
    number = number @ np.linalg.qr(random.normal(size=(width, width)))[0]
    axis = random.normal(size=(2, width))
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    return {
        "label": unit(label),
        "colour": unit(colour),
        "number": unit(number),
        "axis": unit(axis),
    }


def patchify(pixels: jax.Array, vision: VisionConfig) -> jax.Array:
    """Cut uint8 pictures [R, S, S, 3] into normalised patches [R, P, values], merge-block order."""
    R, size = pixels.shape[:2]
    patch, merge = vision.patch_size, vision.spatial_merge_size
    cells = size // (patch * merge)
    x = (pixels / 255.0 - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_STD)
    x = x.reshape(R, cells, merge, patch, cells, merge, patch, 3)
    x = x.transpose(0, 1, 4, 2, 5, 7, 3, 6)  # [R, row, column, 2, 2, channel, y, x]
    x = x.reshape(R, -1, 3, 1, patch * patch)
    # A still picture is a video of two equal frames.
    return jnp.repeat(x, vision.temporal_patch_size, axis=3).reshape(R, x.shape[1], -1)


def list_patch_positions(size: int, vision: VisionConfig) -> np.ndarray:
    """Return (row, column) of each patch of a square picture, [P, 2], merge-block order."""
    merge = vision.spatial_merge_size
    cells = size // (vision.patch_size * merge)
    grid = np.stack(np.meshgrid(*2 * [np.arange(cells * merge)], indexing="ij"), axis=-1)
    grid = grid.reshape(cells, merge, cells, merge, 2).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, 2).astype(np.int32)
