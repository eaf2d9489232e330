"""Sizes of published models, as their `config.json` states them: `from_hf(PRESETS[name])`.

For plans and measurements without a checkpoint; `ivc_jax.load` reads the file itself.
"""

from typing import Any

_SHARED: dict[str, Any] = {
    "num_hidden_layers": 28,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_DECODER_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
_TOWER_2: dict[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
_TOWER_2_5: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "hidden_act": "silu",
}

PRESETS: dict[str, dict[str, Any]] = {
    "qwen2-vl-2b": {
        **_SHARED,
        "model_type": "qwen2_vl",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "vision_config": {**_TOWER_2, "hidden_size": 1536},
    },
    "qwen2-vl-7b": {
        **_SHARED,
        **_DECODER_7B,
        "model_type": "qwen2_vl",
        "vision_config": {**_TOWER_2, "hidden_size": 3584},
    },
    "qwen2.5-vl-3b": {
        **_SHARED,
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128000,
        "vision_config": {**_TOWER_2_5, "out_hidden_size": 2048},
    },
    "qwen2.5-vl-7b": {
        **_SHARED,
        **_DECODER_7B,
        "model_type": "qwen2_5_vl",
        "max_position_embeddings": 128000,
        "vision_config": {**_TOWER_2_5, "out_hidden_size": 3584},
    },
}
