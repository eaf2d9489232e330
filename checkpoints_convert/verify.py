"""Comparing a converted checkpoint with transformers: the last token's logits, in float32."""

import importlib.util
from pathlib import Path

import jax
import numpy as np

import ivc_jax
from ivc_jax.config import ModelConfig
from ivc_jax.inputs.footprint import find_footprint
from ivc_jax.model import load_params, read_config
from ivc_jax.weights.source import DTYPES, CheckpointError, read_json

_GRID = (1, 8, 12)  # frames, rows and columns of patches of the random image
_TEXT = 24  # tokens of the text-only prompt


def check_installed() -> None:
    """Complain early if the reference cannot run.

    Raises:
        CheckpointError: torch or transformers is missing.
    """
    names = ("torch", "transformers")
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise CheckpointError(
            f"--verify compares with transformers on torch; install {' and '.join(missing)}"
            " or leave --verify out"
        )


def check_reference(source: Path) -> None:
    """Complain early if the reference does not have the model.

    Raises:
        CheckpointError: an architecture that transformers does not come with.
    """
    from transformers.models.auto import modeling_auto

    kind = read_json(source / "config.json").get("model_type")
    if kind not in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise CheckpointError(
            f"--verify compares with transformers, which has no model_type {kind!r}; leave"
            " --verify out"
        )


def verify(source: Path, target: Path, dtype: str, seed: int = 0) -> dict[str, float]:
    """Return the largest absolute difference of the logits for each of two prompts.

    Args:
        source: the Hugging Face directory.
        target: the converted directory; it is read in float32.
        dtype: what `target` is stored in. The reference's weights are rounded to it, so that
            the comparison is of the conversion and not of the rounding.

    Raises:
        CheckpointError: unreadable files, or torch is missing.
    """
    check_installed()
    config = read_config(target)
    prompts = _draw_prompts(config, seed)
    # One after the other: two float32 models need not be in memory together.
    with jax.default_matmul_precision("highest"):
        ours = _run_ours(target, config, prompts)
    theirs = _run_reference(source, dtype, config, prompts)  # [vocab] a prompt, as ours
    return {name: float(np.abs(ours[name] - theirs[name]).max()) for name in prompts}


def _draw_prompts(config: ModelConfig, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Draw a prompt of text and one with an image, as a processor would return them."""
    draw = np.random.default_rng(seed)
    vision, first, last = config.vision, config.vision_start_id, config.vision_end_id
    known = (config.image_token_id, config.video_token_id, first, last)
    marks = [mark for mark in known if mark is not None]
    words = np.setdiff1d(np.arange(config.decoder.vocab_size), marks)
    if vision.rotary:  # pictures of any size, as patches
        grid, shape = _GRID, (int(np.prod(_GRID)), vision.patch_values)
        sizes = {"image_grid_thw": np.array([_GRID])}
    else:  # of one size, as pixels
        side, sizes = vision.table_side * vision.patch_size, {}
        grid, shape = (1, vision.table_side, vision.table_side), (1, vision.in_channels, side, side)
    image = [mark for mark in (first, last) if mark is not None]
    image[1:1] = [config.image_token_id] * find_footprint(grid, config).count
    tokens = np.concatenate([draw.choice(words, 5), image, draw.choice(words, 7)])
    values = draw.standard_normal(shape, dtype=np.float32)
    return {
        "text": {"input_ids": draw.choice(words, _TEXT)[None]},
        "image": {"input_ids": tokens[None], "pixel_values": values, **sizes},
    }


def _run_ours(
    target: Path, config: ModelConfig, prompts: dict[str, dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    model = ivc_jax.Model(config, load_params(target, config, DTYPES["float32"]))
    batches = {name: ivc_jax.Batch.from_hf(**prompt) for name, prompt in prompts.items()}
    return {n: np.asarray(ivc_jax.prefill(model, batch).logits[0]) for n, batch in batches.items()}


def _run_reference(
    source: Path, dtype: str, config: ModelConfig, prompts: dict[str, dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    import torch
    import transformers

    # Eager attention, so that no kernel of lower precision is chosen.
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        source, dtype="float32", attn_implementation="eager", local_files_only=True
    ).eval()
    found = {}
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(getattr(torch, dtype)).float())
        for name, prompt in prompts.items():
            arrays = {key: torch.from_numpy(array) for key, array in prompt.items()}
            if config.vision.rotary:
                # It numbers the positions of image tokens by this marker.
                arrays["mm_token_type_ids"] = (arrays["input_ids"] == config.image_token_id).int()
            found[name] = model(**arrays).logits[0, -1].float().numpy()
    return found
