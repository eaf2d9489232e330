"""What the `config.json` and the processor files of a checkpoint say, for each kind of model.

The towers see one cell at a time by construction: Qwen2.5-VL's attends within windows of one merged
cell, the other two have no block that runs (LLaVA's feature is what the tower embeds), and tables
of places, where a family has one, are zeros.
"""

from typing import Any

from digit_scenes.glyphs import CELL
from digit_scenes.setting import Setting
from ivc_jax.config import ModelConfig
from ivc_jax.families import find_family

_PATCH = CELL // 2  # of the Qwen families, which merge 2 x 2 patches
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def make_config(setting: Setting, ids: dict[str, int], vocab_size: int) -> dict[str, Any]:
    """Return `config.json`.

    Args:
        ids: of the special tokens (`tokenizer.find_special_ids`).
    """
    write = {"sections": _sections, "interleaved": _interleaved, "line": _line}[setting.kind]
    marks = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    decoder = {
        "vocab_size": vocab_size,
        "hidden_size": setting.width,
        "intermediate_size": setting.intermediate,
        "num_hidden_layers": setting.layers,
        "num_attention_heads": setting.heads,
        "num_key_value_heads": setting.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "attention_dropout": 0.0,
    }
    pads = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    shared = {"torch_dtype": "float32", "tie_word_embeddings": False}
    return {**shared, **write(setting, decoder, marks, pads)}


def _sections(setting: Setting, decoder: dict, marks: dict, pads: dict) -> dict[str, Any]:
    # the flat form, which all versions of transformers read
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **decoder,
        **marks,
        **pads,
        "rope_theta": setting.theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(setting.sections)},
        "use_sliding_window": False,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": setting.width,
            "hidden_act": "silu",
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": _PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": CELL,
            "fullatt_block_indexes": [],
        },
    }


def _interleaved(setting: Setting, decoder: dict, marks: dict, pads: dict) -> dict[str, Any]:
    rope = {"mrope_interleaved": True, "mrope_section": list(setting.sections)}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **pads,
        "text_config": {
            "model_type": "qwen3_vl_text",
            **decoder,
            **marks,
            "head_dim": setting.head_dim,
            "attention_bias": False,
            "rope_theta": setting.theta,
            "rope_scaling": {"rope_type": "default", **rope},
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 0,
            "deepstack_visual_indexes": [],
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": setting.width,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "patch_size": _PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 1,
        },
    }


def _line(setting: Setting, decoder: dict, marks: dict, pads: dict) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": pads["image_token_id"],
        "image_seq_length": setting.grid**2,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama",
            **decoder,
            **marks,
            "head_dim": setting.head_dim,
            "rope_theta": setting.theta,
            "attention_bias": False,
            "mlp_bias": False,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 256,
            "intermediate_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": setting.canvas,
            "patch_size": CELL,
            "projection_dim": 256,
            "hidden_act": "quick_gelu",
            "vocab_size": 49408,
        },
    }


def read_config(setting: Setting, ids: dict[str, int], vocab_size: int) -> ModelConfig:
    """Return the sizes of the model that these files describe."""
    config = make_config(setting, ids, vocab_size)
    return find_family(config).read_config(config)


def make_processor_files(setting: Setting, ids: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Return the other files by name; a picture passes at its own size."""
    files = {"generation_config.json": _make_generation_config(ids)}
    picture: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    if setting.kind == "line":
        side = {"height": setting.canvas, "width": setting.canvas}
        picture |= {
            "processor_class": "LlavaProcessor",
            "image_processor_type": "CLIPImageProcessor",
            "do_center_crop": True,
            "crop_size": side,
            "size": {"shortest_edge": setting.canvas},
            **_CLIP,
        }
        files["processor_config.json"] = {
            "processor_class": "LlavaProcessor",
            "image_token": "<|image_pad|>",
            "patch_size": CELL,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        }
    else:
        fewest, most = min(64, setting.canvas) ** 2, max(512, setting.canvas) ** 2
        interleaved = setting.kind == "interleaved"
        picture |= {
            "processor_class": "Qwen3VLProcessor" if interleaved else "Qwen2_5_VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": fewest,
            "max_pixels": most,
            "size": {"shortest_edge": fewest, "longest_edge": most},
            "patch_size": _PATCH,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **(_HALF if interleaved else _CLIP),
        }
    return {"preprocessor_config.json": picture, **files}


def _make_generation_config(ids: dict[str, int]) -> dict[str, Any]:
    """Return `generation_config.json`: greedy answers, which are short."""
    stop, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    return {"do_sample": False, "eos_token_id": stop, "pad_token_id": pad, "max_new_tokens": 16}
