"""Tensor names of InternVL: in the layout of its authors, and in that of transformers."""

from functools import partial

import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.families.decoders import map_decoder
from ivc_jax.weights.keymap import Rule, Transform, map_linear, map_norm

_LAYER, _BLOCK = "decoder/layers/{layer}", "vision/blocks/{layer}"


def _find_rows(part: str, config: ModelConfig) -> np.ndarray:
    """List the rows of InternLM2's `wqkv` that are queries, keys or values.

    Rows go by key heads, each behind the query heads that it serves; two of each:

        q0 q1 k0 v0  q2 q3 k1 v1      in units of head_dim
    """
    sizes = config.decoder
    groups = sizes.num_heads // sizes.num_kv_heads
    rows = np.arange(sizes.num_kv_heads * (groups + 2) * sizes.head_dim)
    rows = rows.reshape(sizes.num_kv_heads, groups + 2, sizes.head_dim)
    taken = {"q": slice(groups), "k": slice(groups, groups + 1), "v": slice(groups + 1, None)}
    return rows[:, taken[part]].ravel()


_INNER = "language_model.model.layers.{layer}"
_INTERNLM2: tuple[Rule, ...] = (
    Rule("language_model.model.tok_embeddings.weight", "decoder/embed_tokens/embedding"),
    Rule(f"{_INNER}.attention_norm.weight", f"{_LAYER}/input_layernorm/scale"),
    *(
        Rule(
            f"{_INNER}.attention.wqkv.weight",
            f"{_LAYER}/{part}_proj/weight",
            rows=partial(_find_rows, part),
        )
        for part in "qkv"
    ),
    *map_linear(f"{_INNER}.attention.wo", f"{_LAYER}/o_proj", bias=False),
    Rule(f"{_INNER}.ffn_norm.weight", f"{_LAYER}/post_attention_layernorm/scale"),
    *map_linear(f"{_INNER}.feed_forward.w1", f"{_LAYER}/mlp/gate_proj", bias=False),
    *map_linear(f"{_INNER}.feed_forward.w3", f"{_LAYER}/mlp/up_proj", bias=False),
    *map_linear(f"{_INNER}.feed_forward.w2", f"{_LAYER}/mlp/down_proj", bias=False),
    Rule("language_model.model.norm.weight", "decoder/norm/scale"),
    *map_linear("language_model.output", "decoder/lm_head", bias=False),
)

_EMBEDDED, _STACK = "vision_model.embeddings", "vision_model.encoder.layers.{layer}"
_CHAT_TOWER: tuple[Rule, ...] = (
    Rule(f"{_EMBEDDED}.class_embedding", "vision/class_token", Transform.TOKEN),
    Rule(f"{_EMBEDDED}.position_embedding", "vision/positions", Transform.ROW),
    Rule(f"{_EMBEDDED}.patch_embedding.weight", "vision/patch_embed/weight", Transform.CONVOLUTION),
    Rule(f"{_EMBEDDED}.patch_embedding.bias", "vision/patch_embed/bias"),
    *map_norm(f"{_STACK}.norm1", f"{_BLOCK}/norm1"),
    *map_norm(f"{_STACK}.norm2", f"{_BLOCK}/norm2"),
    *map_linear(f"{_STACK}.attn.qkv", f"{_BLOCK}/attn/qkv"),
    *map_linear(f"{_STACK}.attn.proj", f"{_BLOCK}/attn/proj"),
    Rule(f"{_STACK}.attn.q_norm.weight", f"{_BLOCK}/attn/q_norm/scale"),
    Rule(f"{_STACK}.attn.k_norm.weight", f"{_BLOCK}/attn/k_norm/scale"),
    Rule(f"{_STACK}.ls1", f"{_BLOCK}/ls1"),
    Rule(f"{_STACK}.ls2", f"{_BLOCK}/ls2"),
    *map_linear(f"{_STACK}.mlp.fc1", f"{_BLOCK}/mlp/fc1"),
    *map_linear(f"{_STACK}.mlp.fc2", f"{_BLOCK}/mlp/fc2"),
    *map_norm("mlp1.0", "vision/merger/ln_q"),
    *map_linear("mlp1.1", "vision/merger/mlp/fc1"),
    *map_linear("mlp1.3", "vision/merger/mlp/fc2"),
)

# Three generations: language_model.model. and vision_tower. on the hub, model.language_model. and
# model.vision_tower. as transformers saves it since.
_TOWER, _PROJECTOR = "[model.]vision_tower", "[model.]multi_modal_projector"
_HF_BLOCK = f"{_TOWER}.encoder.layer.{{layer}}"
HF: tuple[Rule, ...] = (
    *map_decoder("[model.]language_model.(model.)", "(language_model.)lm_head"),
    Rule(f"{_TOWER}.embeddings.cls_token", "vision/class_token", Transform.TOKEN),
    Rule(f"{_TOWER}.embeddings.position_embeddings", "vision/positions", Transform.ROW),
    Rule(
        f"{_TOWER}.embeddings.patch_embeddings.projection.weight",
        "vision/patch_embed/weight",
        Transform.CONVOLUTION,
    ),
    Rule(f"{_TOWER}.embeddings.patch_embeddings.projection.bias", "vision/patch_embed/bias"),
    *map_norm(f"{_HF_BLOCK}.layernorm_before", f"{_BLOCK}/norm1"),
    *map_norm(f"{_HF_BLOCK}.layernorm_after", f"{_BLOCK}/norm2"),
    *map_linear(f"{_HF_BLOCK}.attention.q_proj", f"{_BLOCK}/attn/q_proj"),
    *map_linear(f"{_HF_BLOCK}.attention.k_proj", f"{_BLOCK}/attn/k_proj"),
    *map_linear(f"{_HF_BLOCK}.attention.v_proj", f"{_BLOCK}/attn/v_proj"),
    *map_linear(f"{_HF_BLOCK}.attention.projection_layer", f"{_BLOCK}/attn/proj"),
    Rule(f"{_HF_BLOCK}.attention.q_norm.weight", f"{_BLOCK}/attn/q_norm/scale"),
    Rule(f"{_HF_BLOCK}.attention.k_norm.weight", f"{_BLOCK}/attn/k_norm/scale"),
    Rule(f"{_HF_BLOCK}.lambda_1", f"{_BLOCK}/ls1"),
    Rule(f"{_HF_BLOCK}.lambda_2", f"{_BLOCK}/ls2"),
    *map_linear(f"{_HF_BLOCK}.mlp.fc1", f"{_BLOCK}/mlp/fc1"),
    *map_linear(f"{_HF_BLOCK}.mlp.fc2", f"{_BLOCK}/mlp/fc2"),
    *map_norm(f"{_TOWER}.layernorm", "vision/final_norm"),
    *map_norm(f"{_PROJECTOR}.layer_norm", "vision/merger/ln_q"),
    *map_linear(f"{_PROJECTOR}.linear_1", "vision/merger/mlp/fc1"),
    *map_linear(f"{_PROJECTOR}.linear_2", "vision/merger/mlp/fc2"),
)

# By kind of decoder in the layout of the authors.
_SAME_NAMES = _CHAT_TOWER + map_decoder("language_model.model.", "language_model.lm_head")
CHAT = {"internlm2": _CHAT_TOWER + _INTERNLM2, "qwen2": _SAME_NAMES, "llama": _SAME_NAMES}

EXCUSED = r"(.*\.)?rotary_emb\.inv_freq|(model\.)?vision_tower\.embeddings\.mask_token"
