"""Tiny LLaVA: `config.json`, tensor names, tokenizer, picture settings and arrays."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers.files import write_settings, write_tokenizer
from helpers.prompts import pad_rows

_SPECIAL = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
ID = {token: 256 + number for number, token in enumerate(_SPECIAL)}  # behind 256 bytes
SIDE, PATCH = 24, 4  # pixels of a picture and of a patch
TOKENS = (SIDE // PATCH) ** 2  # of a picture

# As the files on the hub have it.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# Prompts of text lengths and pictures, for tests of the engine: ragged, with several pictures.
RAGGED = [(6, "image", 7), (11,), (2, "image", 3, "image", 9)]


def config(family: str, generation: str, tied: bool, **text: Any) -> dict[str, Any]:
    """Return the `config.json` of a tiny model.

    Args:
        generation: "old" is that of the files on the hub, which state little; "new" what
            transformers 5 saves.
        text: decoder sizes to change, under their Hugging Face names.
    """
    sizes = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 272,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        **text,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    content: dict[str, Any] = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": family,
        "image_token_index": ID["<image>"],
        "image_seq_length": TOKENS,
        "tie_word_embeddings": tied,
        "vision_feature_layer": -2,
    }
    if generation == "new":
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        sizes |= {"rope_parameters": rope, "num_key_value_heads": 4, "hidden_act": "silu"}
        vision |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 768}
        content |= {"projector_hidden_act": "gelu", "vision_feature_select_strategy": "default"}
    return content | {"text_config": sizes, "vision_config": vision}


def new_name(name: str) -> str:
    """Rename a published tensor to what transformers 4.52 to 4.57 saved."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return "lm_head.weight" if name == "language_model.lm_head.weight" else f"model.{name}"


def newest_name(name: str) -> str:
    """Rename a published tensor to what transformers 5 holds in memory."""
    return new_name(name).replace("vision_tower.vision_model.", "vision_tower.")


def unread_tensors() -> dict[str, np.ndarray]:
    """Return what the released files hold and nobody reads: a block and a norm of the tower."""
    shapes = {
        "self_attn.k_proj": (32, 32), "self_attn.v_proj": (32, 32), "self_attn.q_proj": (32, 32),
        "self_attn.out_proj": (32, 32), "layer_norm1": (32,), "mlp.fc1": (48, 32),
        "mlp.fc2": (32, 48), "layer_norm2": (32,),
    }  # fmt: skip
    tower = "vision_tower.vision_model"
    found = {f"{tower}.encoder.layers.3.{name}.weight": size for name, size in shapes.items()}
    found |= {f"{tower}.encoder.layers.3.{name}.bias": size[:1] for name, size in shapes.items()}
    found |= {f"{tower}.post_layernorm.{name}": (32,) for name in ("weight", "bias")}
    return {name: np.full(size, 1e3, np.float32) for name, size in found.items()}


def write_processor_files(folder: Path) -> None:
    """Write a byte-level tokenizer that puts <s> in front, the template and picture settings."""
    write_tokenizer(folder, _SPECIAL, begin="<s>")
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIDE},
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
    }
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_special_tokens": {"image_token": "<image>"},
        "model_max_length": 1024,
    }
    write_settings(
        folder,
        tokenizer_config=tokens,
        preprocessor_config=images,
        processor_config=processor,
        chat_template={"chat_template": _CHAT_TEMPLATE},
        generation_config={"bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"]},
    )


def hf_arrays(prompts, side: str = "left", seed: int = 0) -> dict[str, np.ndarray]:
    """Build what the processor returns for prompts of text lengths (int) and "image"."""
    draw = np.random.default_rng(seed)
    rows, count = [], 0
    for parts in prompts:
        row = [ID["<s>"]]
        for part in parts:
            if part == "image":
                row += [ID["<image>"]] * TOKENS
                count += 1
            else:
                row += draw.integers(0, 255, part).tolist()
        rows.append(row)
    arrays = pad_rows(rows, side)
    if count:
        pixels = draw.standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)
        arrays["pixel_values"] = pixels
    return arrays
