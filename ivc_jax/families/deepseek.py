"""DeepSeek-VL2: its files, tensor names, pictures and published sizes.

All but the smallest size have latent attention (`use_mla`); all have experts. The files state what
differs from the defaults of the classes that read them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ivc_jax.config import (
    ConfigError,
    DecoderConfig,
    ModelConfig,
    Released,
    RopeConfig,
    VisionConfig,
)
from ivc_jax.decoder_parts import ExpertsConfig, LatentConfig
from ivc_jax.families.base import Family
from ivc_jax.families.decoders import check_activation
from ivc_jax.families.deepseek_sizes import SIZES
from ivc_jax.families.settings import Settings
from ivc_jax.inputs.mosaic import Mosaic
from ivc_jax.weights.keymap import Rule, Transform, map_linear, map_norm

# The pooling head of the tower's own training.
_EXCUSED = r"vision\.attn_pool\..*|(.*\.)?rotary_emb\.inv_freq"

_LAYER, _OURS = "language.model.layers.{layer}", "decoder/layers/{layer}"
_BLOCK, _BLOCKS = "vision.blocks.{layer}", "vision/blocks/{layer}"


def _sort_planes(width: int) -> np.ndarray:
    """List the rows of a turned part so that its planes, pairs of neighbours, lie in halves."""
    return np.arange(width).reshape(-1, 2).T.ravel()  # 0 2 4 ... 1 3 5 ...


def _list_query_rows(config: ModelConfig) -> np.ndarray:
    """List the rows of all query heads, the turned part of each sorted."""
    sizes, latent = config.decoder, config.decoder.latent
    rows = np.arange(sizes.num_heads * sizes.head_dim).reshape(sizes.num_heads, -1)
    if latent is not None:
        turned = latent.plain_dim + _sort_planes(sizes.rope.head_dim)
        rows = rows[:, np.r_[: latent.plain_dim, turned]]
    return rows.ravel()


def _list_vector_rows(config: ModelConfig) -> np.ndarray:
    """List the rows of the vector and, sorted, of the key that all heads share."""
    rank = config.decoder.latent.rank
    return np.r_[:rank, rank + _sort_planes(config.decoder.rope.head_dim)]


def _list_pair_rows(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """List the rows that make keys, and those that make values; heads have both side by side."""
    sizes, latent = config.decoder, config.decoder.latent
    width = latent.plain_dim + latent.value_dim
    rows = np.arange(sizes.num_heads * width).reshape(-1, width)
    return rows[:, : latent.plain_dim].ravel(), rows[:, latent.plain_dim :].ravel()


def _map_attention() -> list[Rule]:
    """Return the rules of attention, latent and not; a model has the parameters of one."""
    name, latent = f"{_LAYER}.self_attn", f"{_OURS}/latent"
    pair = f"{name}.kv_b_proj.weight"
    return [
        Rule(f"{name}.q_proj.weight", f"{_OURS}/q_proj/weight", rows=_list_query_rows),
        Rule(f"{name}.q_proj.weight", f"{latent}/q_proj/weight", rows=_list_query_rows),
        *map_linear(f"{name}.q_a_proj", f"{latent}/q_a_proj", bias=False),
        Rule(f"{name}.q_a_layernorm.weight", f"{latent}/q_a_layernorm/scale"),
        Rule(f"{name}.q_b_proj.weight", f"{latent}/q_b_proj/weight", rows=_list_query_rows),
        Rule(
            f"{name}.kv_a_proj_with_mqa.weight",
            f"{latent}/kv_a_proj_with_mqa/weight",
            rows=_list_vector_rows,
        ),
        Rule(f"{name}.kv_a_layernorm.weight", f"{latent}/kv_a_layernorm/scale"),
        Rule(pair, f"{latent}/k_b_proj/weight", rows=lambda config: _list_pair_rows(config)[0]),
        Rule(pair, f"{latent}/v_b_proj/weight", rows=lambda config: _list_pair_rows(config)[1]),
        *map_linear(f"{name}.k_proj", f"{_OURS}/k_proj", bias=False),
        *map_linear(f"{name}.v_proj", f"{_OURS}/v_proj", bias=False),
        *map_linear(f"{name}.o_proj", f"{_OURS}/o_proj", bias=False),
    ]


def _map_feed_forward() -> list[Rule]:
    """Return the rules of ordinary feed-forward parts and of those with experts."""
    name, ours = f"{_LAYER}.mlp", f"{_OURS}/mlp"
    rules = []
    for part in ("gate_proj", "up_proj", "down_proj"):
        for kind, path in (
            ("", ""),
            ("shared_experts.", "shared_experts/"),
            ("experts.{expert}.", "experts/"),
        ):
            rules += map_linear(f"{name}.{kind}{part}", f"{ours}/{path}{part}", bias=False)
    bias = "e_score_correction_bias"
    rules.append(Rule(f"{name}.gate.weight", f"{ours}/gate/weight"))
    return [*rules, Rule(f"{name}.gate.{bias}", f"{ours}/gate/{bias}")]


_RULES: tuple[Rule, ...] = (
    Rule("vision.patch_embed.proj.weight", "vision/patch_embed/weight", Transform.CONVOLUTION),
    Rule("vision.patch_embed.proj.bias", "vision/patch_embed/bias"),
    Rule("vision.pos_embed", "vision/positions", Transform.ROW),
    *map_norm(f"{_BLOCK}.norm1", f"{_BLOCKS}/norm1"),
    *map_norm(f"{_BLOCK}.norm2", f"{_BLOCKS}/norm2"),
    *map_linear(f"{_BLOCK}.attn.qkv", f"{_BLOCKS}/attn/qkv"),
    *map_linear(f"{_BLOCK}.attn.proj", f"{_BLOCKS}/attn/proj"),
    *map_linear(f"{_BLOCK}.mlp.fc1", f"{_BLOCKS}/mlp/fc1"),
    *map_linear(f"{_BLOCK}.mlp.fc2", f"{_BLOCKS}/mlp/fc2"),
    *map_norm("vision.norm", "vision/final_norm"),
    Rule("projector.layers.0.weight", "vision/merger/mlp/fc1/weight", Transform.CELL),
    Rule("projector.layers.0.bias", "vision/merger/mlp/fc1/bias"),
    *map_linear("projector.layers.2", "vision/merger/mlp/fc2"),
    Rule("image_newline", "vision/image_newline"),
    Rule("view_seperator", "vision/view_seperator"),
    Rule("language.model.embed_tokens.weight", "decoder/embed_tokens/embedding"),
    Rule(f"{_LAYER}.input_layernorm.weight", f"{_OURS}/input_layernorm/scale"),
    *_map_attention(),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", f"{_OURS}/post_attention_layernorm/scale"),
    *_map_feed_forward(),
    Rule("language.model.norm.weight", "decoder/norm/scale"),
    *map_linear("language.lm_head", "decoder/lm_head", bias=False),
)


# Blocks: where the released evaluation cuts (VLMEvalKit/vlmeval/config.py, "ivcp_k").
_RELEASED_LAYERS = {27: 17}


def _read_config(config: Mapping[str, Any]) -> ModelConfig:
    top = Settings({"": config})
    if not config.get("language_config"):
        raise KeyError("language_config")
    text = top.enter("language_config")
    top.require("tile_tag", "2D")
    top.require("global_view_pos", "head")
    decoder = _read_decoder(text, config["language_config"])
    return ModelConfig(
        family="deepseek_vl",
        vision=_read_tower(top.enter("vision_config"), top.enter("projector_config")),
        decoder=decoder,
        image_token_id=int(top["image_token_id"]),
        # The smallest size has the rule as well, though the released code has no values there.
        released=Released(
            layer=_RELEASED_LAYERS.get(decoder.num_layers if decoder.latent else 0),
            combine="views",
            foreground_fraction=0.5,
            query_offset=1,
        ),
    )


def _read_tower(vision: Settings, projector: Settings) -> VisionConfig:
    kind = projector.find("projector_type", default="downsample_mlp_gelu")
    depth = int(projector.find("depth", default=2))
    merge = int(projector.find("downsample_ratio", default=2))
    if (kind, depth, merge) != ("downsample_mlp_gelu", 2, 2):
        raise ConfigError(
            f"projector_config {kind!r} of depth {depth} and downsample_ratio {merge} is not"
            " supported, only 'downsample_mlp_gelu' of depth 2 and ratio 2"
        )
    width = int(vision.find("width", default=1024))
    out_dim = int(projector.find("n_embed", default=2048))
    size = int(vision.find("image_size", default=384))
    patch = int(vision.find("patch_size", default=16))
    return VisionConfig(
        depth=int(vision.find("layers", default=24)),
        embed_dim=width,
        num_heads=int(vision.find("heads", default=16)),
        mlp_dim=int(width * vision.find("mlp_ratio", default=4)),
        out_dim=out_dim,
        patch_size=patch,
        temporal_patch_size=1,
        spatial_merge_size=merge,
        activation="gelu_tanh",
        patch_bias=True,
        rotary=False,
        table_side=size // patch,
        final_norm=True,
        view_size=size,
        merge_norm="none",
        merge_dim=int(out_dim * projector.find("mlp_ratio", default=1)),
        pixel_mean=Mosaic.image_mean,
        pixel_std=Mosaic.image_std,
    )


def _read_decoder(text: Settings, content: Mapping[str, Any]) -> DecoderConfig:
    scaling = text.enter("rope_scaling", "rope_parameters")
    if scaling.find("rope_type", "type", default="default") != "default":
        raise ConfigError("rope_scaling of a DeepSeek decoder is not supported; it must be null")
    for name in ("attention_bias", "mlp_bias"):
        if text.find(name):
            raise ConfigError(f"{name}=true is not supported; set it to false")
    check_activation(text)
    hidden = int(text.find("hidden_size", default=4096))
    num_heads = int(text.find("num_attention_heads", default=32))
    latent = _read_latent(text, content) if text.find("use_mla", default=True) else None
    turned = hidden // num_heads
    if latent is not None:
        turned = int(text.find("qk_rope_head_dim", default=64))
    theta = float((text | scaling).find("rope_theta", default=10000.0))
    return DecoderConfig(
        num_layers=int(text.find("num_hidden_layers", default=30)),
        hidden_size=hidden,
        intermediate_size=int(text.find("intermediate_size", default=11008)),
        num_heads=num_heads,
        num_kv_heads=int(text.find("num_key_value_heads", default=num_heads)),
        vocab_size=int(text.find("vocab_size", default=102400)),
        rope=RopeConfig(turned, theta),
        norm_eps=float(text.find("rms_norm_eps", default=1e-6)),
        tie_embeddings=bool(text.find("tie_word_embeddings")),
        max_positions=int(text.find("max_position_embeddings", default=2048)),
        qkv_bias=False,
        latent=latent,
        experts=_read_experts(text),
    )


def _read_latent(text: Settings, content: Mapping[str, Any]) -> LatentConfig:
    # null says that there is none, and nothing that it is the default
    query_rank = content.get("q_lora_rank", 1536)
    return LatentConfig(
        rank=int(text.find("kv_lora_rank", default=512)),
        query_rank=None if query_rank is None else int(query_rank),
        plain_dim=int(text.find("qk_nope_head_dim", default=128)),
        value_dim=int(text.find("v_head_dim", default=128)),
    )


_ROUTERS = ("greedy", "gready", "group_limited_greedy", "noaux_tc")  # the second is a default


def _read_experts(text: Settings) -> ExpertsConfig | None:
    count = text.find("n_routed_experts")
    if count is None:
        return None
    if text.find("moe_layer_freq", default=1) != 1:
        raise ConfigError("moe_layer_freq must be 1: every block behind the dense ones has experts")
    router = text.find("topk_method", default="gready")
    if router not in _ROUTERS:
        raise ConfigError(f"topk_method {router!r} is not one of {', '.join(_ROUTERS)}")
    grouped = router in ("group_limited_greedy", "noaux_tc")
    width = int(text.find("moe_intermediate_size", default=1407))
    return ExpertsConfig(
        count=int(count),
        chosen=int(text["num_experts_per_tok"]),
        hidden_dim=width,
        shared_dim=width * int(text.find("n_shared_experts", default=0)),
        dense_layers=int(text.find("first_k_dense_replace", default=0)),
        score=text.find("scoring_func", default="softmax"),
        biased=router == "noaux_tc",
        groups=int(text.find("n_group", default=1)) if grouped else 1,
        chosen_groups=int(text.find("topk_group", default=1)) if grouped else 1,
        renormalize=bool(text.find("norm_topk_prob")),
        scale=float(text.find("routed_scaling_factor", default=1.0)),
    )


def _read_pictures(settings: Mapping[str, Any], config: ModelConfig) -> Mosaic:
    return Mosaic.from_hf({**settings, "view_size": config.vision.view_size})


# A line break follows a picture, unless the text brings blanks of its own. An answer that is given
# already ends in eos_token.
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n{% else %}"
    "{% set user = message['role'] == 'user' %}"
    "{{ '<|User|>: ' if user else '<|Assistant|>: ' }}"
    "{% if message['content'] is string %}{{ message['content'].strip() }}{% else %}"
    "{% set said = namespace(text='', picture=false) %}{% for part in message['content'] %}"
    "{% set text = '<image>' if part['type'] == 'image' else part['text'] %}"
    "{% if said.picture and not text[:1].isspace() %}{% set said.text = said.text + '\n' %}"
    "{% endif %}{% set said.text = said.text + text %}"
    "{% set said.picture = part['type'] == 'image' %}{% endfor %}"
    "{{ said.text.strip() }}{% endif %}{{ '\n\n' if user else eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)

DEEPSEEK_VL2 = Family(
    name="deepseek_vl",
    model_types=("deepseek_vl_v2",),
    read_config=_read_config,
    rules=_RULES,
    excused=_EXCUSED,
    read_pictures=_read_pictures,
    chat_template=_CHAT_TEMPLATE,
    image_token="<image>",
    end_token="<\uff5cend\u2581of\u2581sentence\uff5c>",  # a wide bar, a low block
    sizes=SIZES,
)
