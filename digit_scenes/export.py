"""Write the model as a Hugging Face Qwen2-VL checkpoint directory."""

import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from digit_scenes import tokenizer
from digit_scenes.model import IMAGE_MEAN, IMAGE_STD, make_model_config
from digit_scenes.setting import Setting
from ivc_jax.config import ModelConfig
from ivc_jax.families import QWEN2_VL
from ivc_jax.weights.keymap import to_hf_names


def make_config(config: ModelConfig, special_ids: dict[str, int]) -> dict[str, Any]:
    """Return `config.json`, in the flat form that all versions of the library read."""
    vision, decoder = config.vision, config.decoder
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "float32",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope.theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(decoder.rope.sections)},
        "max_position_embeddings": decoder.max_positions,
        "tie_word_embeddings": decoder.tie_embeddings,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "bos_token_id": special_ids["<|endoftext|>"],
        "eos_token_id": special_ids["<|im_end|>"],
        "pad_token_id": special_ids["<|endoftext|>"],
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_id,
        "vision_end_token_id": config.vision_end_id,
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": vision.depth,
            "embed_dim": vision.embed_dim,
            "num_heads": vision.num_heads,
            "mlp_ratio": vision.mlp_dim // vision.embed_dim,
            "hidden_size": vision.out_dim,
            "hidden_act": vision.activation,
            "in_channels": vision.in_channels,
            "in_chans": vision.in_channels,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        },
    }


def make_preprocessor_config(setting: Setting) -> dict[str, Any]:
    """Return `preprocessor_config.json`; the canvas passes at its own size."""
    fewest, most = min(64, setting.canvas) ** 2, max(512, setting.canvas) ** 2
    return {
        "processor_class": "Qwen2VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "min_pixels": fewest,
        "max_pixels": most,
        "size": {"shortest_edge": fewest, "longest_edge": most},
        "patch_size": setting.vision.patch_size,
        "temporal_patch_size": setting.vision.temporal_patch_size,
        "merge_size": setting.vision.spatial_merge_size,
    }


def write(
    setting: Setting,
    params: dict[str, Any],
    folder: pathlib.Path,
    *,
    card: str = "",
    log: pathlib.Path | None = None,
) -> None:
    """Write {"vision", "decoder"} parameters as a checkpoint directory (see `write_folder`)."""
    words = tokenizer.build()
    ids = tokenizer.find_special_ids(words)
    config = make_model_config(setting, ids, words.get_vocab_size())
    wanted = {"vision": params["vision"], "decoder": params["decoder"]}
    tensors = dict(to_hf_names(wanted, config, QWEN2_VL.rules))
    settings = {
        "config.json": make_config(config, ids),
        "preprocessor_config.json": make_preprocessor_config(setting),
        "generation_config.json": make_generation_config(ids),
    }
    write_folder(folder, tensors, words, settings, card=card, log=log)


def make_generation_config(special_ids: dict[str, int]) -> dict[str, Any]:
    """Return `generation_config.json`: greedy answers, which are short."""
    stop, pad = special_ids["<|im_end|>"], special_ids["<|endoftext|>"]
    return {"do_sample": False, "eos_token_id": stop, "pad_token_id": pad, "max_new_tokens": 16}


def write_folder(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    words: Tokenizer,
    settings: Mapping[str, dict[str, Any]],
    *,
    card: str = "",
    log: pathlib.Path | None = None,
    template: str = tokenizer.CHAT_TEMPLATE,
) -> None:
    """Write a checkpoint directory, tensors as float32.

    The directory appears in one step: readers see the old one or the new one, whole.

    Args:
        settings: contents of the JSON files, by name.
        card: text of README.md.
        log: training log to put beside the weights.
        template: the chat template.
    """
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    fresh.chmod(0o755)
    try:
        weights = fresh / "model.safetensors"
        floats = {name: array.astype(np.float32) for name, array in tensors.items()}
        save_file(floats, weights, metadata={"format": "pt"})
        weights.chmod(0o644)
        tokenizer.save(words, fresh, template)
        for name, content in settings.items():
            (fresh / name).write_text(json.dumps(content, indent=2) + "\n")
        (fresh / "README.md").write_text(card)
        if log is not None and log.exists():
            shutil.copyfile(log, fresh / "training_log.jsonl")
        old = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
