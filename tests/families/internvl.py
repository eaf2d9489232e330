"""Tiny transformers-native InternVL, and what its files share with `internvl_chat`."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers import files
from helpers.prompts import pad_rows

SPECIAL = (
    *("<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<video>", "<ref>", "</ref>", "<box>", "</box>"),
)
ID = {token: 256 + number for number, token in enumerate(SPECIAL)}  # behind 256 bytes
SIDE, PATCH, TOKENS = 32, 4, 16  # pixels of a tile and of a patch, tokens of a tile
LARGE = "internvl_6b"  # what tests call one with the tower of 6 B parameters
TOWER_6B = {"norm_type": "rms_norm", "attention_bias": False, "use_qk_norm": True}

# As the files on the hub have it: every picture ends its line.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


def text_sizes(**changed: Any) -> dict[str, Any]:
    """Return the sizes of a tiny decoder; dynamic scaling is stated and not active."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 272,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "eos_token_id": 2,
    }
    return {**sizes, **changed}


def config(family: str, generation: str, tied: bool, **text: Any) -> dict[str, Any]:
    """Return the `config.json` of a tiny model.

    Args:
        generation: "old" is that of the files on the hub, whose rotary settings lie flat.
        text: decoder sizes to change, under their Hugging Face names.
    """
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    rope: dict[str, Any] = {"rope_parameters": {**dynamic, "rope_theta": 10000.0}}
    if generation == "old":
        rope = {"rope_theta": 10000.0, "rope_scaling": dynamic}
    vision = {
        "model_type": "internvl_vision",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "attention_bias": True,
        "image_size": [SIDE, SIDE],
        "patch_size": [PATCH, PATCH],
        # without pooling there is a norm behind the last block
        **(TOWER_6B if family == LARGE else {"use_mean_pooling": generation == "old"}),
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": family.removesuffix("_6b"),
        "tie_word_embeddings": tied,
        "image_token_id": ID["<IMG_CONTEXT>"],
        "image_seq_length": TOKENS,
        "text_config": {"model_type": "qwen2", **text_sizes(**text), **rope},
        "vision_config": vision,
    }


def new_name(name: str) -> str:
    """Rename a tensor of the files on the hub to what transformers saves now."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return "lm_head.weight" if name == "language_model.lm_head.weight" else f"model.{name}"


def write_tokenizer(folder: Path, **settings: Any) -> None:
    """Write a byte-level tokenizer with InternVL's marks."""
    files.write_tokenizer(folder, SPECIAL)
    usual = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "model_max_length": 1024,
    }
    files.write_settings(folder, tokenizer_config=usual | settings)


def write_processor_files(folder: Path) -> None:
    """Write tokenizer, chat template and picture settings as the hub has them."""
    write_tokenizer(folder, eos_token="<|im_end|>", chat_template=_CHAT_TEMPLATE)
    images = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": False,  # the processor asks for it all the same
        "min_patches": 1,
        "max_patches": 12,
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
    }
    files.write_settings(folder, preprocessor_config=images)


def hf_arrays(prompts, side: str = "left", seed: int = 0) -> dict[str, np.ndarray]:
    """Build what the processor returns for prompts of text lengths (int) and tiles ((count,))."""
    draw = np.random.default_rng(seed)
    rows, tiles = [], 0
    for parts in prompts:
        row = []
        for part in parts:
            if isinstance(part, int):
                row += draw.integers(0, 255, part).tolist()
                continue
            row += [ID["<img>"], *[ID["<IMG_CONTEXT>"]] * part[0] * TOKENS, ID["</img>"]]
            tiles += part[0]
        rows.append(row)
    arrays = pad_rows(rows, side)
    if tiles:
        pixels = draw.standard_normal((tiles, 3, SIDE, SIDE)).astype(np.float32)
        arrays["pixel_values"] = pixels
    return arrays
