"""Tiny Qwen2-VL and Qwen2.5-VL: `config.json`, tensor names, tokenizer and picture settings."""

import json
from pathlib import Path
from typing import Any

from helpers.files import write_settings, write_tokenizer

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_FIRST_SPECIAL = 256  # the tokenizer knows 256 bytes, then the marks
ID = {token: _FIRST_SPECIAL + number for number, token in enumerate(_SPECIAL)}
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _text_sizes() -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 272,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1024,
        "bos_token_id": ID["<|endoftext|>"],
        "eos_token_id": ID["<|im_end|>"],
        "use_sliding_window": False,
    }


def _vision_sizes(family: str, out_dim: int) -> dict[str, Any]:
    common = {"num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
    if family == "qwen2_vl":
        own = {"depth": 3, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": out_dim}
        return {**common, **own, "hidden_act": "quick_gelu"}
    # Windows of 2 x 2 merged cells: most small images have ragged borders.
    own = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": out_dim}
    own |= {"window_size": 16, "fullatt_block_indexes": [1, 3], "tokens_per_second": 4}
    return {**common, **own, "hidden_act": "silu"}


_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


def config(family: str, generation: str, tied: bool, **text: Any) -> dict[str, Any]:
    """Return the `config.json` of a tiny model with unequal M-RoPE sections.

    Args:
        generation: "old" is the flat layout of the published checkpoints, "new" the nested one.
        text: decoder sizes to change, under their Hugging Face names.
    """
    sizes = {**_text_sizes(), **text}
    vision = _vision_sizes(family, sizes["hidden_size"])
    rope = {"mrope_section": [2, 3, 3]}
    content: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "tie_word_embeddings": tied,
        "image_token_id": ID["<|image_pad|>"],
        "video_token_id": ID["<|video_pad|>"],
        "vision_start_token_id": ID["<|vision_start|>"],
        "vision_end_token_id": ID["<|vision_end|>"],
    }
    if generation == "old":
        old = {"rope_theta": 10000.0, "rope_scaling": {"type": "mrope", **rope}}
        return {**content, **sizes, **old, "vision_config": {**vision, "in_chans": 3}}
    rope |= {"rope_type": "default", "rope_theta": 10000.0}
    text_config = {"model_type": f"{family}_text", **sizes, "rope_parameters": rope}
    vision |= {"model_type": f"{family}_vision", "in_channels": 3}
    return {**content, "text_config": text_config, "vision_config": vision}


def new_name(name: str) -> str:
    """Rename a published tensor name to the later generation."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def write_processor_files(folder: Path) -> None:
    """Write a byte-level tokenizer with the Qwen2-VL marks, and settings for 4-pixel patches."""
    write_tokenizer(folder, _SPECIAL)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(_SPECIAL),
        "chat_template": _CHAT_TEMPLATE,
        "model_max_length": 1024,
    }
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": 16 * 16,
        "max_pixels": 64 * 64,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    stops = {"eos_token_id": [ID["<|im_end|>"], ID["<|endoftext|>"]], "do_sample": False}
    files = {"tokenizer_config": tokenizer_config, "preprocessor_config": images}
    write_settings(folder, **files, generation_config=stops)


def change(path: Path, **fields) -> None:
    """Replace fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
