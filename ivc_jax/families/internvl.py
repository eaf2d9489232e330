"""InternVL2.5 and InternVL3 in both layouts of their files: `internvl_chat` and `internvl`.

`internvl_chat` is that of the authors. Its decoder is InternLM2, whose queries, keys and values are
one tensor, or Qwen2 or Llama under the names of transformers. `internvl` is that of transformers.

A picture is stretched over a grid of tiles and cut, and shown once more as a whole:

    2 x 1 tiles       0 | 1   and the thumbnail   2       <img> 256 ids, 256 ids, 256 ids </img>
"""

from collections.abc import Mapping
from typing import Any

from ivc_jax.config import ConfigError, DecoderConfig, ModelConfig, Released, VisionConfig
from ivc_jax.families.base import Family
from ivc_jax.families.decoders import read_decoder
from ivc_jax.families.internvl_sizes import CHAT_SIZES, HF_SIZES
from ivc_jax.families.internvl_tensors import CHAT, EXCUSED, HF
from ivc_jax.families.qwen import WORDS as QWEN2_WORDS
from ivc_jax.families.settings import Settings
from ivc_jax.inputs.footprint import Footprint
from ivc_jax.inputs.sampling import SampleMiddles
from ivc_jax.inputs.tiles import Tiles
from ivc_jax.weights.keymap import Rule

_NORMS = {"layer_norm": "layernorm", "rms_norm": "rmsnorm"}
_MERGE = 2  # pixel shuffle by a half
_8B = 32, 4096, 92553  # blocks, width and vocabulary of the decoder of InternVL2.5-8B

# `architectures` of llm_config, and what the decoder is then.
_KINDS = {
    "InternLM2ForCausalLM": "internlm2",
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
}


def _find_kind(config: Mapping[str, Any]) -> str:
    """Return the kind of decoder in the file of an `internvl_chat`."""
    inner = config.get("llm_config") or {}
    name = (inner.get("architectures") or ["InternLM2ForCausalLM"])[0]
    if name not in _KINDS:
        raise ConfigError(f"llm_config.architectures {name!r} is not one of {', '.join(_KINDS)}")
    return _KINDS[name]


def _choose_chat_rules(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    return CHAT[_find_kind(config)]


def _read_chat_config(config: Mapping[str, Any]) -> ModelConfig:
    top = Settings({"": config})
    text, vision = top.enter("llm_config"), top.enter("vision_config")
    top.require("select_layer", -1)
    top.require("downsample_ratio", 1 / _MERGE)
    top.require("ps_version", "v2", default="v1")
    tied = text.find("tie_word_embeddings", default=False)
    side = top.find("force_image_size") or vision.find("image_size", default=224)
    # The class that reads it defaults to the tower of 6 B parameters.
    tower = {
        "hidden_size": vision.find("hidden_size", default=3200),
        "depth": vision.find("num_hidden_layers", default=48),
        "num_heads": vision.find("num_attention_heads", default=25),
        "mlp_dim": vision.find("intermediate_size", default=12800),
        "norm": vision.find("norm_type", default="rms_norm"),
        "qkv_bias": vision.find("qkv_bias", default=False),
        "qk_norm": vision.find("qk_normalization", default=True),
    }
    return _join(top, text, vision, _find_kind(config), tied, tower, side, fused_qkv=True)


def _read_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    top = Settings({"": config})
    text, vision = top.enter("text_config"), top.enter("vision_config")
    top.require("vision_feature_layer", -1)
    top.require("vision_feature_select_strategy", "default")
    top.require("downsample_ratio", 1 / _MERGE)
    top.require("projector_hidden_act", "gelu")
    if not vision.find("use_absolute_position_embeddings", default=True):
        raise ConfigError("use_absolute_position_embeddings=false is not supported")
    # True by class default, though its files hold a head of their own: the tensors decide.
    tied = top.find("tie_word_embeddings", default=True)
    tower = {
        "hidden_size": vision.find("hidden_size", default=1024),
        "depth": vision.find("num_hidden_layers", default=24),
        "num_heads": vision.find("num_attention_heads", default=16),
        "mlp_dim": vision.find("intermediate_size", default=4096),
        "norm": vision.find("norm_type", default="layer_norm"),
        "qkv_bias": vision.find("attention_bias", default=False),
        "qk_norm": vision.find("use_qk_norm", default=False),
    }
    kind = text.find("model_type", default="qwen2")
    # "use_mean_pooling" is no norm behind the last block; nothing is pooled here.
    pooled = vision.find("use_mean_pooling", default=True)
    if tower["norm"] != "layer_norm" and not pooled:
        raise ConfigError("use_mean_pooling=false is supported with norm_type layer_norm only")
    side = _read_side(vision, "image_size", 448)
    return _join(top, text, vision, kind, tied, tower, side, fused_qkv=False, final_norm=not pooled)


def _join(
    top: Settings,
    text: Settings,
    vision: Settings,
    kind: str,
    tied: bool,
    tower: dict[str, Any],
    side: int,
    **traits: bool,
) -> ModelConfig:
    """Put together what both layouts state."""
    decoder = read_decoder(text, kind, bool(tied))
    patch = _read_side(vision, "patch_size", 14)
    if side % (patch * _MERGE):
        raise ConfigError(f"image_size {side} must be a multiple of {patch * _MERGE}")
    if tower["norm"] not in _NORMS:
        raise ConfigError(f"vision norm_type {tower['norm']!r} is not one of {', '.join(_NORMS)}")
    return ModelConfig(
        family="internvl",
        vision=VisionConfig(
            depth=int(tower["depth"]),
            embed_dim=int(tower["hidden_size"]),
            num_heads=int(tower["num_heads"]),
            mlp_dim=int(tower["mlp_dim"]),
            out_dim=decoder.hidden_size,
            patch_size=patch,
            temporal_patch_size=1,
            spatial_merge_size=_MERGE,
            in_channels=int(vision.find("num_channels", default=3)),
            activation=vision.find("hidden_act", default="gelu"),
            norm=_NORMS[tower["norm"]],
            norm_eps=float(vision.find("layer_norm_eps", default=1e-6)),
            patch_bias=True,
            rotary=False,
            table_side=side // patch,
            class_token=True,
            qkv_bias=bool(tower["qkv_bias"]),
            qk_norm=bool(tower["qk_norm"]),
            layer_scale=True,
            tiled=True,
            merge_norm="joined",
            merge_eps=1e-5,  # of a norm in the projector, whatever the tower's
            merge_dim=decoder.hidden_size,
            pixel_mean=Tiles.image_mean,
            pixel_std=Tiles.image_std,
            **traits,
        ),
        decoder=decoder,
        image_token_id=int(top["image_token_id"]),
        released=_find_released(decoder),
    )


def _find_released(decoder: DecoderConfig) -> Released:
    """Return what the released IVC-Prune does: the 8 B model is the one that it is tuned for."""
    tuned = (decoder.num_layers, decoder.hidden_size, decoder.vocab_size) == _8B
    return Released(layer=16 if tuned else None, combine="tiles", key_scope="all")


def _read_side(vision: Settings, name: str, default: int) -> int:
    """Read a size that may be a pair of equal ones."""
    value = vision.find(name, default=default)
    sides = {int(side) for side in (value if isinstance(value, list | tuple) else [value])}
    if len(sides) != 1:
        raise ConfigError(f"vision {name} {value} must be square")
    return sides.pop()


def _read_pictures(settings: Mapping[str, Any], config: ModelConfig) -> Tiles:
    return Tiles.from_model(settings, config.vision)


def _write_visual(footprint: Footprint, placeholder: str) -> str:
    return f"<img>{placeholder * footprint.count}</img>"


# What the released model is told first, unless a conversation has a system turn of its own.
_SYSTEM = (
    "你是书生·万象，英文名是InternVL，"  # noqa: RUF001
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
# A picture that comes first ends its line; one at a mark of a prompt stands in the line. Several of
# the first kind are numbered. Frames of a video are not: their text says which they are.
_COUNT = (
    "{% set count = namespace(all=0, now=0) %}{% for message in messages %}"
    "{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' and not part['frame'] and not part['marked'] %}"
    "{% set count.all = count.all + 1 %}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
_NUMBER = (
    "{% if count.all > 1 and not part['frame'] and not part['marked'] %}"
    "{% set count.now = count.now + 1 %}Image-{{ count.now }}: {% endif %}"
)


def _write_template(opening: str = "", number: str = "") -> str:
    """Return a chat template; `number` is put in front of every picture."""
    return (
        opening + "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + number + "<IMG_CONTEXT>"
        "{{ '' if part['marked'] else '\n' }}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


# InternLM2's tokenizer begins with its bos_token, Qwen2's has none.
_CHAT_TEMPLATE = _write_template(
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    + _SYSTEM
    + "<|im_end|>\n{% endif %}"
    + _COUNT,
    _NUMBER,
)

_SHARED_PARTS: dict[str, Any] = {
    "name": "internvl",
    "excused": EXCUSED,
    "read_pictures": _read_pictures,
    "write_visual": _write_visual,
    "image_token": "<IMG_CONTEXT>",
    "end_token": "<|im_end|>",
    "frame_text": "Frame{number}: ",
    "sampling": SampleMiddles,
}
INTERNVL_CHAT = Family(
    model_types=("internvl_chat",),
    read_config=_read_chat_config,
    rules=CHAT["internlm2"],
    choose_rules=_choose_chat_rules,
    word_pattern=QWEN2_WORDS,
    chat_template=_CHAT_TEMPLATE,
    sizes=CHAT_SIZES,
    **_SHARED_PARTS,
)
INTERNVL = Family(
    model_types=("internvl",),
    read_config=_read_hf_config,
    rules=HF,
    word_pattern=QWEN2_WORDS,
    chat_template=_write_template(),
    sizes=HF_SIZES,
    **_SHARED_PARTS,
)
