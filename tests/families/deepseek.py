"""Tiny DeepSeek-VL2: `config.json`, tensor names, tokenizer and picture settings."""

from pathlib import Path
from typing import Any

from helpers.files import write_settings, write_tokenizer

# The first two are written with a wide bar and a low block, as published.
_SPECIAL = (
    *(f"<\uff5c{word}\u2581of\u2581sentence\uff5c>" for word in ("begin", "end")),
    *("<image>", "<|User|>", "<|Assistant|>"),
    *("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"),
)
_FIRST_SPECIAL = 256  # the tokenizer knows 256 bytes, then the marks
IMAGE = _FIRST_SPECIAL + 2
# 30 pixels are 7 patches of 4, two pixels are left over; 7 patches are 4 cells, cut at the border.
SIDE, CELLS = 30, 4
CANDIDATES = [(30, 30), (30, 60), (60, 30), (60, 60), (90, 30)]  # (width, height)

_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "topk_method": "greedy",
    "vocab_size": 272,
    "max_position_embeddings": 1024,
}
_LATENT = {
    "use_mla": True,
    "kv_lora_rank": 24,
    "q_lora_rank": None,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
_PLAIN = {
    **{"use_mla": False, "kv_lora_rank": None, "q_lora_rank": None},
    **{"qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0},
}
_BIASED = {
    **{"q_lora_rank": 20, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    **{"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.0},
}
# The small size, the tiny one and the largest: latent attention, none, another router.
_KINDS = {
    "deepseek_vl2": _LATENT,
    "deepseek_vl2_tiny": _PLAIN,
    "deepseek_vl2_base": _LATENT | _BIASED,
}


def config(family: str, generation: str, tied: bool, **text: Any) -> dict[str, Any]:
    """Return the `config.json` of a tiny model; there is one generation of them.

    Args:
        family: a key of `_KINDS`.
        text: decoder sizes to change, under their Hugging Face names.
    """
    del generation
    return {
        "architectures": ["DeepseekVLV2ForCausalLM"],
        "model_type": "deepseek_vl_v2",
        "image_token_id": IMAGE,
        "tile_tag": "2D",
        "global_view_pos": "head",
        "candidate_resolutions": CANDIDATES,
        "vision_config": {
            **{"model_type": "vision", "layers": 3, "width": 32, "heads": 2, "mlp_ratio": 1.7},
            **{"patch_size": 4, "image_size": SIDE},
        },
        "projector_config": {
            **{"model_type": "mlp_projector", "input_dim": 32},
            **{"n_embed": text.get("hidden_size", _TEXT["hidden_size"])},
        },
        "language_config": {
            **{"model_type": "deepseek_v2", "tie_word_embeddings": tied},
            **_TEXT,
            **_KINDS[family],
            **text,
        },
    }


def new_name(name: str) -> str:
    """Return a published tensor name; no other generation has been published."""
    return name


def write_processor_files(folder: Path) -> None:
    """Write a byte-level tokenizer with the family's marks, and its picture settings."""
    write_tokenizer(folder, _SPECIAL)
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": _SPECIAL[0],
        "eos_token": _SPECIAL[1],
        "model_max_length": 1024,
    }
    # In one flat file, as published.
    processor = {
        "processor_class": "DeepseekVLV2Processor",
        "candidate_resolutions": CANDIDATES,
        "patch_size": 4,
        "downsample_ratio": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "normalize": True,
        "image_token": "<image>",
        "sft_format": "deepseek",
    }
    write_settings(folder, tokenizer_config=tokenizer_config, processor_config=processor)
