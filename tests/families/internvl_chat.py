"""Tiny InternVL in the layout of its authors: InternLM2 inside ("old") or Qwen2 ("new")."""

from pathlib import Path
from typing import Any

from families.internvl import ID, SIDE, text_sizes, write_tokenizer
from families.qwen import change
from helpers.files import write_settings

LARGE = "internvl_chat_6b"
TOWER_6B = {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}

# For text alone, as in the published folders.
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def config(family: str, generation: str, tied: bool, **text: Any) -> dict[str, Any]:
    """Return the `config.json` of a tiny model; files leave the id of the placeholder out."""
    inner = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    if generation == "new":
        inner = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    dynamic = {"type": "dynamic", "factor": 2.0}
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 2 * SIDE,  # what is forced wins
        "patch_size": 4,
        "norm_type": "layer_norm",
        "qkv_bias": True,
        "qk_normalization": False,
        **(TOWER_6B if family == LARGE else {}),
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": family.removesuffix("_6b"),
        "image_token_id": ID["<IMG_CONTEXT>"],
        "force_image_size": SIDE,
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "ps_version": "v2",
        "template": "internvl2_5",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "llm_config": {
            **inner,
            **text_sizes(**text),
            "tie_word_embeddings": tied,
            "rope_theta": 10000.0,
            "rope_scaling": dynamic,
        },
        "vision_config": vision,
    }


def new_name(name: str) -> str:
    """Return the name as it is: there is one generation."""
    return name


def write_processor_files(folder: Path) -> None:
    """Write a tokenizer that begins with a bos_token, and the settings of the published folders.

    The tokenizer alone knows the placeholder of pictures there.
    """
    change(folder / "config.json", image_token_id=None)
    specials = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    write_tokenizer(folder, **specials, chat_template=_CHAT_TEMPLATE)
    images = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": SIDE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": SIDE,
    }
    stops = {"eos_token_id": 2, "_from_model_config": True}
    write_settings(folder, preprocessor_config=images, generation_config=stops)
