"""Qwen2-VL and Qwen2.5-VL: their files, tensor names, pictures and published sizes.

Both generations of `config.json` are read: the flat one (decoder sizes at the top level,
`rope_theta` and `rope_scaling`) and the nested one (`text_config`, `rope_parameters`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ivc_jax.config import (
    ConfigError,
    DecoderConfig,
    ModelConfig,
    Released,
    RopeConfig,
    VisionConfig,
)
from ivc_jax.families.base import Family
from ivc_jax.families.decoders import check_activation, map_decoder, read_theta
from ivc_jax.families.settings import Settings
from ivc_jax.inputs.clip import FrameResize
from ivc_jax.inputs.resize import SmartResize
from ivc_jax.weights.keymap import Rule, Transform, map_linear, map_norm

# How text is cut before merging: contractions, words, single digits, punctuation, blanks.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Buffers that can be recomputed; some versions of the library saved them.
EXCUSED = r"(.*\.)?(rotary_emb|rotary_pos_emb)\.(original_)?inv_freq"

# Published names; the parts in brackets are in those of the later generation only:
#     model.layers.3.mlp.up_proj.weight      model.language_model.layers.3.mlp.up_proj.weight
#     visual.blocks.3.norm1.weight           model.visual.blocks.3.norm1.weight
_TEXT, _TOWER = "model.[language_model.]", "[model.]visual."
_BLOCK, _BLOCKS = f"{_TOWER}blocks.{{layer}}", "vision/blocks/{layer}"


# What one of the two lacks (biases of RMS norms, fc1 or gate_proj) has no parameter there, and its
# row is not used.
_RULES: tuple[Rule, ...] = (
    Rule(f"{_TOWER}patch_embed.proj.weight", "vision/patch_embed/weight", Transform.CONVOLUTION),
    *map_norm(f"{_BLOCK}.norm1", f"{_BLOCKS}/norm1"),
    *map_norm(f"{_BLOCK}.norm2", f"{_BLOCKS}/norm2"),
    *map_linear(f"{_BLOCK}.attn.qkv", f"{_BLOCKS}/attn/qkv"),
    *map_linear(f"{_BLOCK}.attn.proj", f"{_BLOCKS}/attn/proj"),
    *map_linear(f"{_BLOCK}.mlp.fc1", f"{_BLOCKS}/mlp/fc1"),
    *map_linear(f"{_BLOCK}.mlp.fc2", f"{_BLOCKS}/mlp/fc2"),
    *map_linear(f"{_BLOCK}.mlp.gate_proj", f"{_BLOCKS}/mlp/gate_proj"),
    *map_linear(f"{_BLOCK}.mlp.up_proj", f"{_BLOCKS}/mlp/up_proj"),
    *map_linear(f"{_BLOCK}.mlp.down_proj", f"{_BLOCKS}/mlp/down_proj"),
    *map_norm(f"{_TOWER}merger.ln_q", "vision/merger/ln_q"),
    *map_linear(f"{_TOWER}merger.mlp.0", "vision/merger/mlp/fc1"),
    *map_linear(f"{_TOWER}merger.mlp.2", "vision/merger/mlp/fc2"),
    *map_decoder(_TEXT),
)


# (family, blocks): where the released evaluation cuts (VLMEvalKit/vlmeval/config.py, "ivcp_k").
_RELEASED_LAYERS = {("qwen2_5_vl", 28): 16, ("qwen2_5_vl", 36): 22}


def _read_config(
    name: str, read_tower: Callable[[Settings], dict[str, Any]], config: Mapping[str, Any]
) -> ModelConfig:
    top = Settings({"": config})
    text, vision = top | top.enter("text_config"), top.enter("vision_config")
    if not vision.parts:
        raise KeyError("vision_config")
    # Some files state it at the top, some in text_config; either suffices.
    tied = any(text.list("tie_word_embeddings").values())
    decoder = _read_decoder(text, tied)
    return ModelConfig(
        family=name,
        vision=VisionConfig(
            depth=int(vision["depth"]),
            num_heads=int(vision["num_heads"]),
            patch_size=int(vision["patch_size"]),
            temporal_patch_size=int(vision["temporal_patch_size"]),
            spatial_merge_size=int(vision["spatial_merge_size"]),
            in_channels=int(vision.find("in_channels", "in_chans", default=3)),
            rope_theta=float(vision.enter("rope_parameters").find("rope_theta", default=10000.0)),
            **read_tower(vision),
        ),
        decoder=decoder,
        image_token_id=int(text["image_token_id"]),
        video_token_id=int(text["video_token_id"]),
        vision_start_id=int(text["vision_start_token_id"]),
        vision_end_id=int(text["vision_end_token_id"]),
        released=Released(layer=_RELEASED_LAYERS.get((name, decoder.num_layers))),
    )


def _read_tower_2(vision: Settings) -> dict[str, Any]:
    # The tower's width is embed_dim here; hidden_size is the decoder's.
    return {
        "embed_dim": int(vision["embed_dim"]),
        "mlp_dim": int(vision["embed_dim"] * vision["mlp_ratio"]),
        "out_dim": int(vision["hidden_size"]),
        "activation": vision.find("hidden_act", default="quick_gelu"),
    }


def _read_tower_2_5(vision: Settings) -> dict[str, Any]:
    # The tower's width is hidden_size here; the decoder's is out_hidden_size.
    return {
        "embed_dim": int(vision["hidden_size"]),
        "mlp_dim": int(vision["intermediate_size"]),
        "out_dim": int(vision["out_hidden_size"]),
        "activation": vision.find("hidden_act", default="silu"),
        "norm": "rmsnorm",
        "gated_mlp": True,
        "window_size": int(vision["window_size"]),
        "full_attention_blocks": tuple(int(block) for block in vision["fullatt_block_indexes"]),
        "tokens_per_second": float(vision["tokens_per_second"]),
    }


def _read_decoder(text: Settings, tied: bool) -> DecoderConfig:
    if text.find("use_sliding_window"):
        raise ConfigError("use_sliding_window=true is not supported; set it to false")
    check_activation(text)
    num_heads = int(text["num_attention_heads"])
    head_dim = int(text.find("head_dim") or text["hidden_size"] // num_heads)
    return DecoderConfig(
        num_layers=int(text["num_hidden_layers"]),
        hidden_size=int(text["hidden_size"]),
        intermediate_size=int(text["intermediate_size"]),
        num_heads=num_heads,
        num_kv_heads=int(text.find("num_key_value_heads") or num_heads),
        vocab_size=int(text["vocab_size"]),
        rope=_read_rope(text, head_dim),
        norm_eps=float(text.find("rms_norm_eps", default=1e-5)),
        tie_embeddings=tied,
        max_positions=int(text.find("max_position_embeddings", default=32768)),
    )


# Of the classes that read these files: they fill it in where a file states no sections.
_SECTIONS = (16, 24, 24)


def _read_rope(text: Settings, head_dim: int) -> RopeConfig:
    theta = read_theta(text, 1e6, ("default", "mrope"))
    sections = text.enter("rope_scaling", "rope_parameters").find("mrope_section")
    if sections is None and 2 * sum(_SECTIONS) != head_dim:
        raise ConfigError(
            f"config.json states no mrope_section, and the usual {list(_SECTIONS)} does not fit"
            f" head_dim / 2 = {head_dim // 2}; add it to rope_scaling or rope_parameters"
        )
    return RopeConfig(
        head_dim=head_dim,
        theta=theta,
        sections=tuple(int(planes) for planes in (_SECTIONS if sections is None else sections)),
    )


def _read_pictures(settings: Mapping[str, Any], config: ModelConfig) -> SmartResize:
    del config  # the settings say it all
    rule = FrameResize if "video_processor_type" in settings else SmartResize
    return rule.from_hf(settings)


# Sizes of published models, as their files state them.
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

_SIZES_2: dict[str, dict[str, Any]] = {
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
}
_SIZES_2_5: dict[str, dict[str, Any]] = {
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

_SHARED_PARTS: dict[str, Any] = {
    "rules": _RULES,
    "excused": EXCUSED,
    "read_pictures": _read_pictures,
    "word_pattern": WORDS,
}
QWEN2_VL = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    read_config=partial(_read_config, "qwen2_vl", _read_tower_2),
    sizes=_SIZES_2,
    **_SHARED_PARTS,
)
QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    read_config=partial(_read_config, "qwen2_5_vl", _read_tower_2_5),
    sizes=_SIZES_2_5,
    **_SHARED_PARTS,
)
