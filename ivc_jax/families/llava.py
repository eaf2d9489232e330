"""LLaVA-1.5: CLIP's tower, a projector of two layers, Llama; its files, pictures and sizes.

Files state what differs from the defaults of the classes that read them: of the 7B model not one
size of the decoder. Tensor names are of three generations:

    published            language_model.model.layers.3...   vision_tower.vision_model...
    4.52 to 4.57         model.language_model.layers.3...   model.vision_tower.vision_model...
    5                    the same                           model.vision_tower...
"""

from collections.abc import Mapping
from typing import Any

from ivc_jax.config import ConfigError, ModelConfig, Released, VisionConfig
from ivc_jax.families.base import Family
from ivc_jax.families.decoders import map_decoder, read_decoder
from ivc_jax.families.settings import Settings
from ivc_jax.inputs.square import Square
from ivc_jax.weights.keymap import Rule, Transform, map_linear, map_norm

_TEXT = "[model.]language_model.(model.)"
_TOWER, _PROJECTOR = "[model.]vision_tower.(vision_model.)", "[model.]multi_modal_projector"
_BLOCK, _BLOCKS = f"{_TOWER}encoder.layers.{{layer}}", "vision/blocks/{layer}"

_RULES: tuple[Rule, ...] = (
    Rule(f"{_TOWER}embeddings.class_embedding", "vision/class_token"),
    Rule(
        f"{_TOWER}embeddings.patch_embedding.weight",
        "vision/patch_embed/weight",
        Transform.CONVOLUTION,
    ),
    Rule(f"{_TOWER}embeddings.position_embedding.weight", "vision/positions"),
    *map_norm(f"{_TOWER}pre_layrnorm", "vision/stem_norm"),  # spelled so
    *map_norm(f"{_BLOCK}.layer_norm1", f"{_BLOCKS}/norm1"),
    *map_norm(f"{_BLOCK}.layer_norm2", f"{_BLOCKS}/norm2"),
    *map_linear(f"{_BLOCK}.self_attn.q_proj", f"{_BLOCKS}/attn/q_proj"),
    *map_linear(f"{_BLOCK}.self_attn.k_proj", f"{_BLOCKS}/attn/k_proj"),
    *map_linear(f"{_BLOCK}.self_attn.v_proj", f"{_BLOCKS}/attn/v_proj"),
    *map_linear(f"{_BLOCK}.self_attn.out_proj", f"{_BLOCKS}/attn/proj"),
    *map_linear(f"{_BLOCK}.mlp.fc1", f"{_BLOCKS}/mlp/fc1"),
    *map_linear(f"{_BLOCK}.mlp.fc2", f"{_BLOCKS}/mlp/fc2"),
    *map_linear(f"{_PROJECTOR}.linear_1", "vision/merger/mlp/fc1"),
    *map_linear(f"{_PROJECTOR}.linear_2", "vision/merger/mlp/fc2"),
    *map_decoder(_TEXT, "(language_model.)lm_head", bias=False),
)

# Nobody reads the norm behind the tower nor the blocks behind the feature layer; a block that runs
# and lacks one of these is missed all the same. Buffers that can be recomputed are in old files.
_EXCUSED = (
    r"(.*\.)?(rotary_emb\.inv_freq|position_ids)"
    r"|(model\.)?vision_tower\.(vision_model\.)?(post_layernorm\.(weight|bias)"
    r"|encoder\.layers\.\d+\.(layer_norm[12]|self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
    r"\.(weight|bias))"
)

# Of the class that reads these files, where they have no settings of a tower at all; and of the
# class that reads those.
_TOWER_OF_FAMILY = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_TOWER_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
# Settings that say what is not built here, and the only value that each may have.
_FIXED = {
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "multimodal_projector_bias": True,
}
# Decoder blocks: where the released evaluation cuts (VLMEvalKit/vlmeval/config.py, "ivcp_k").
_RELEASED_LAYERS = {32: 16}


def _read_config(config: Mapping[str, Any]) -> ModelConfig:
    top = Settings({"": config})
    for name, only in _FIXED.items():
        top.require(name, only)
    text = top.enter("text_config")
    if (kind := text.find("model_type", default="llama")) != "llama":
        raise ConfigError(f"decoder model_type {kind!r} is not supported in LLaVA, only llama")
    decoder = read_decoder(text, kind, any((top | text).list("tie_word_embeddings").values()))
    return ModelConfig(
        family="llava",
        vision=_read_tower(top, decoder.hidden_size),
        decoder=decoder,
        image_token_id=int(top.find("image_token_index", "image_token_id", default=32000)),
        released=Released(
            layer=_RELEASED_LAYERS.get(decoder.num_layers),
            combine="union",
            foreground_fraction=0.2,
            keep_seeds=True,
            cos_fraction=0.05,
            sin_fraction=0.05,
            key_scope="all",
        ),
    )


def _read_tower(top: Settings, out_dim: int) -> VisionConfig:
    """Read the blocks up to the one whose output is the feature; those behind it never run."""
    vision = top.enter("vision_config")
    kind = vision.find("model_type", default="clip_vision_model")
    if kind != "clip_vision_model":
        raise ConfigError(f"vision model_type {kind!r} is not supported, only clip_vision_model")
    defaults = _TOWER_DEFAULTS if vision.parts else _TOWER_OF_FAMILY
    size = {name: int(vision.find(name, default=usual)) for name, usual in defaults.items()}
    blocks = size["num_hidden_layers"]
    layer = top.find("vision_feature_layer", default=-2)
    if not isinstance(layer, int) or not -blocks <= layer + 1 <= blocks + 1:
        raise ConfigError(
            f"vision_feature_layer {layer!r} is not supported: name one of the {blocks} blocks of"
            " the tower, from 1 on or from -1 backwards, or what comes before them, 0"
        )
    if size["image_size"] % size["patch_size"]:
        raise ConfigError(
            f"vision image_size {size['image_size']} must be a multiple of patch_size"
            f" {size['patch_size']}"
        )
    return VisionConfig(
        # hidden states are the embeddings and then one a block: the last but one is after 23 of 24
        depth=layer if layer >= 0 else blocks + 1 + layer,
        embed_dim=size["hidden_size"],
        num_heads=size["num_attention_heads"],
        mlp_dim=size["intermediate_size"],
        out_dim=out_dim,
        patch_size=size["patch_size"],
        temporal_patch_size=1,
        spatial_merge_size=1,
        in_channels=int(vision.find("num_channels", default=3)),
        activation=vision.find("hidden_act", default="quick_gelu"),
        norm_eps=float(vision.find("layer_norm_eps", default=1e-5)),
        rotary=False,
        table_side=size["image_size"] // size["patch_size"],
        class_token=True,
        stem_norm=True,
        fused_qkv=False,
        merge_norm="none",
        merge_dim=out_dim,
    )


def _read_pictures(settings: Mapping[str, Any], config: ModelConfig) -> Square:
    return Square.from_hf(settings, config.vision)


# Pictures of a turn come first, each on a line of its own.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# Sizes of published models, as their files state them.
_SHARED: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 32000,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vision_config": {**_TOWER_OF_FAMILY, "model_type": "clip_vision_model"},
}
_TEXT_SHARED = {
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32064,
}
_SIZES: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": {**_SHARED, "text_config": _TEXT_SHARED},
    "llava-1.5-13b": {
        **_SHARED,
        "text_config": {
            **_TEXT_SHARED,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
    },
}

LLAVA = Family(
    name="llava",
    model_types=("llava",),
    read_config=_read_config,
    rules=_RULES,
    excused=_EXCUSED,
    read_pictures=_read_pictures,
    chat_template=_CHAT_TEMPLATE,
    sizes=_SIZES,
)
