"""Qwen3-VL, dense sizes: its files, tensor names, pictures, time stamps and published sizes.

Both spellings of the rotary settings are read (`rope_theta` with `rope_scaling`, and
`rope_parameters`). What a file leaves out has the value of transformers' configuration classes.
"""

from collections.abc import Mapping
from typing import Any

from ivc_jax.config import ConfigError, DecoderConfig, ModelConfig, RopeConfig, VisionConfig
from ivc_jax.families.base import Family, repeat_placeholder
from ivc_jax.families.decoders import check_activation, map_decoder, read_theta
from ivc_jax.families.qwen import EXCUSED, WORDS
from ivc_jax.families.settings import Settings
from ivc_jax.inputs.clip import ClipResize
from ivc_jax.inputs.footprint import Footprint
from ivc_jax.inputs.resize import SmartResize
from ivc_jax.inputs.sampling import SampleEnds
from ivc_jax.weights.keymap import Rule, Transform, map_linear, map_norm

_TEXT, _TOWER = "model.language_model.", "model.visual."
_LAYER, _OURS = f"{_TEXT}layers.{{layer}}.self_attn", "decoder/layers/{layer}"
_BLOCK, _BLOCKS = f"{_TOWER}blocks.{{layer}}", "vision/blocks/{layer}"


def _map_merger(name: str, path: str) -> list[Rule]:
    return [
        *map_norm(f"{name}.norm", f"{path}/ln_q"),
        *map_linear(f"{name}.linear_fc1", f"{path}/mlp/fc1"),
        *map_linear(f"{name}.linear_fc2", f"{path}/mlp/fc2"),
    ]


_RULES: tuple[Rule, ...] = (
    Rule(f"{_TOWER}patch_embed.proj.weight", "vision/patch_embed/weight", Transform.CONVOLUTION),
    Rule(f"{_TOWER}patch_embed.proj.bias", "vision/patch_embed/bias"),
    Rule(f"{_TOWER}pos_embed.weight", "vision/positions"),
    *map_norm(f"{_BLOCK}.norm1", f"{_BLOCKS}/norm1"),
    *map_norm(f"{_BLOCK}.norm2", f"{_BLOCKS}/norm2"),
    *map_linear(f"{_BLOCK}.attn.qkv", f"{_BLOCKS}/attn/qkv"),
    *map_linear(f"{_BLOCK}.attn.proj", f"{_BLOCKS}/attn/proj"),
    *map_linear(f"{_BLOCK}.mlp.linear_fc1", f"{_BLOCKS}/mlp/fc1"),
    *map_linear(f"{_BLOCK}.mlp.linear_fc2", f"{_BLOCKS}/mlp/fc2"),
    *_map_merger(f"{_TOWER}merger", "vision/merger"),
    # one for each feature, counted as layers are
    *_map_merger(f"{_TOWER}deepstack_merger_list.{{layer}}", "vision/deepstack/{layer}"),
    *map_decoder(_TEXT, bias=False),
    Rule(f"{_LAYER}.q_norm.weight", f"{_OURS}/q_norm/scale"),
    Rule(f"{_LAYER}.k_norm.weight", f"{_OURS}/k_norm/scale"),
)


def _read_config(config: Mapping[str, Any]) -> ModelConfig:
    top = Settings({"": config})
    text = top | top.enter("text_config")
    return ModelConfig(
        family="qwen3_vl",
        vision=_read_tower(top.enter("vision_config")),
        decoder=_read_decoder(text),
        image_token_id=int(top.find("image_token_id", default=151655)),
        video_token_id=int(top.find("video_token_id", default=151656)),
        vision_start_id=int(top.find("vision_start_token_id", default=151652)),
        vision_end_id=int(top.find("vision_end_token_id", default=151653)),
    )


_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}


def _read_tower(vision: Settings) -> VisionConfig:
    places = int(vision.find("num_position_embeddings", default=2304))
    side = round(places**0.5)
    if side**2 != places:
        raise ConfigError(f"num_position_embeddings {places} is no square of places")
    activation = vision.find("hidden_act", default="gelu_pytorch_tanh")
    return VisionConfig(
        depth=int(vision.find("depth", default=27)),
        embed_dim=int(vision.find("hidden_size", default=1152)),
        num_heads=int(vision.find("num_heads", default=16)),
        mlp_dim=int(vision.find("intermediate_size", default=4304)),
        out_dim=int(vision.find("out_hidden_size", default=3584)),
        patch_size=int(vision.find("patch_size", default=16)),
        temporal_patch_size=int(vision.find("temporal_patch_size", default=2)),
        spatial_merge_size=int(vision.find("spatial_merge_size", default=2)),
        in_channels=int(vision.find("in_channels", default=3)),
        activation=_ACTIVATIONS.get(activation, activation),
        patch_bias=True,
        rope_theta=float(vision.enter("rope_parameters").find("rope_theta", default=10000.0)),
        table_side=side,
        table_interpolated=True,
        timestamps=True,
        deepstack=tuple(map(int, vision.find("deepstack_visual_indexes", default=(8, 16, 24)))),
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
    )


def _read_decoder(text: Settings) -> DecoderConfig:
    if text.find("attention_bias"):
        raise ConfigError("attention_bias=true is not supported; set it to false")
    check_activation(text)
    return DecoderConfig(
        num_layers=int(text.find("num_hidden_layers", default=32)),
        hidden_size=int(text.find("hidden_size", default=4096)),
        intermediate_size=int(text.find("intermediate_size", default=22016)),
        num_heads=int(text.find("num_attention_heads", default=32)),
        num_kv_heads=int(text.find("num_key_value_heads", default=32)),
        vocab_size=int(text.find("vocab_size", default=151936)),
        rope=_read_rope(text),
        norm_eps=float(text.find("rms_norm_eps", default=1e-6)),
        # some files state it at the top, some in text_config; either suffices
        tie_embeddings=any(text.list("tie_word_embeddings").values()),
        max_positions=int(text.find("max_position_embeddings", default=128000)),
        qkv_bias=False,
        qk_norm=True,
    )


def _read_rope(text: Settings) -> RopeConfig:
    theta = read_theta(text, 5e5, ("default", "mrope"))
    rope = text.enter("rope_scaling", "rope_parameters")
    if not rope.find("mrope_interleaved", default=True):
        raise ConfigError("mrope_interleaved=false is not supported; leave it out")
    return RopeConfig(
        # stated on its own: hidden_size / num_attention_heads is another number in some sizes
        head_dim=int(text.find("head_dim", default=128)),
        theta=theta,
        sections=tuple(map(int, rope.find("mrope_section", default=(24, 20, 20)))),
        interleaved=True,
    )


def _read_pictures(settings: Mapping[str, Any], config: ModelConfig) -> SmartResize:
    """Read settings of either processor; only that of videos says that it is one."""
    del config  # the settings say it all
    rule = ClipResize if "video_processor_type" in settings else SmartResize
    return rule.from_hf(settings)


def _write_visual(footprint: Footprint, placeholder: str) -> str:
    """Write an image as its placeholders, a video as slices with the time in front of each:

    <0.2 seconds><|vision_start|>pads<|vision_end|><1.2 seconds><|vision_start|>pads<|vision_end|>
    """
    if not footprint.times:
        return repeat_placeholder(footprint, placeholder)
    pads = placeholder * (footprint.count // footprint.runs)
    slices = (
        f"<{time:.1f} seconds><|vision_start|>{pads}<|vision_end|>" for time in footprint.times
    )
    return "".join(slices)


# Sizes of published models; those of 2B, 8B and 32B from memory.
def _size(layers: int, width: int, mlp: int, heads: int, tied: bool, large: bool) -> dict[str, Any]:
    tower = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
    deep = {"deepstack_visual_indexes": [5, 11, 17]}
    if large:
        tower = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
        deep = {"deepstack_visual_indexes": [8, 16, 24]}
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
            "rope_theta": 5e6,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]},
        },
        "vision_config": {**tower, **deep, "num_heads": 16, "out_hidden_size": width},
    }


QWEN3_VL = Family(
    name="qwen3_vl",
    model_types=("qwen3_vl",),
    read_config=_read_config,
    rules=_RULES,
    excused=EXCUSED,
    read_pictures=_read_pictures,
    write_visual=_write_visual,
    sampling=SampleEnds,
    word_pattern=WORDS,
    sizes={
        "qwen3-vl-2b": _size(28, 2048, 6144, 16, tied=True, large=False),
        "qwen3-vl-4b": _size(36, 2560, 9728, 32, tied=True, large=False),
        "qwen3-vl-8b": _size(36, 4096, 12288, 32, tied=False, large=True),
        "qwen3-vl-32b": _size(64, 5120, 25600, 64, tied=False, large=True),
    },
)
