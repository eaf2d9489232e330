"""Sizes of the published DeepSeek-VL2 models, as their files state them.

The files leave the id of the image placeholder to the tokenizer; here it stands beside them.
"""

from typing import Any


def _size(language: dict[str, Any], n_embed: int, image_token_id: int) -> dict[str, Any]:
    return {
        "model_type": "deepseek_vl_v2",
        "image_token_id": image_token_id,
        "tile_tag": "2D",
        "global_view_pos": "head",
        "vision_config": {
            "model_type": "vision",
            "layers": 27,
            "mlp_ratio": 3.7362,
            "patch_size": 14,
            "width": 1152,
        },
        "projector_config": {"model_type": "mlp_projector", "n_embed": n_embed},
        "language_config": {
            "model_type": "deepseek_v2",
            "hidden_size": n_embed,
            "first_k_dense_replace": 1,
            "max_position_embeddings": 4096,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "q_lora_rank": None,
            **language,
        },
    }


SIZES = {
    "deepseek-vl2-tiny": _size(
        {
            "use_mla": False,
            "num_hidden_layers": 12,
            "intermediate_size": 6848,
            "num_attention_heads": 10,
            "num_key_value_heads": 10,
            "n_routed_experts": 64,
            "moe_intermediate_size": 896,
            "topk_method": "greedy",
            "vocab_size": 129280,
        },
        *(1280, 128815),
    ),
    "deepseek-vl2-small": _size(
        {
            "num_hidden_layers": 27,
            "intermediate_size": 10944,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_routed_experts": 64,
            "moe_intermediate_size": 1408,
            "topk_method": "greedy",
            "vocab_size": 102400,
        },
        *(2048, 100003),
    ),
    "deepseek-vl2": _size(
        {
            "num_hidden_layers": 30,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "n_routed_experts": 72,
            "moe_intermediate_size": 1536,
            "topk_method": "noaux_tc",
            "n_group": 1,
            "topk_group": 1,
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.0,
            "vocab_size": 129280,
        },
        *(2560, 128815),
    ),
}
