"""Decoders that several families carry inside, told apart by the `model_type` of their settings.

A file states what differs from the defaults of the class that reads it. Those of LLaVA-1.5-7B are
the extreme: not one size of the decoder is in its file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ivc_jax.config import ConfigError, DecoderConfig, RopeConfig
from ivc_jax.families.settings import Settings
from ivc_jax.weights.keymap import Rule, map_linear

_OURS = "decoder/layers/{layer}"

_COMMON: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _COMMON
    | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "qwen2": _COMMON
    | {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    "internlm2": _COMMON
    | {
        "vocab_size": 103168,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "bias": True,
    },
}
# Switches that would put a bias where these decoders have none here.
_BIASES = ("attention_bias", "mlp_bias", "bias")


def read_decoder(text: Settings, kind: str, tied: bool = False) -> DecoderConfig:
    """Read a decoder whose tokens are all numbered on one line.

    Args:
        text: its settings.
        kind: a key of `DEFAULTS`.
        tied: the output head is the embedding.

    Raises:
        ConfigError: an unknown kind, or a setting that is not supported.
    """
    if kind not in DEFAULTS:
        raise ConfigError(f"decoder model_type {kind!r} is not one of {', '.join(DEFAULTS)}")
    defaults = DEFAULTS[kind]

    def find(name: str) -> Any:
        return text.find(name, default=defaults.get(name))

    if find("use_sliding_window"):
        raise ConfigError("use_sliding_window=true is not supported; set it to false")
    check_activation(text)
    for name in _BIASES:
        if find(name):
            raise ConfigError(
                f"{name}=true of a {kind} decoder is not supported (its output projection would"
                " have a bias); state false if the weights have none"
            )
    hidden, heads = int(find("hidden_size")), int(find("num_attention_heads"))
    # Dynamic scaling (NTK) changes the base beyond max_position_embeddings alone, where prompts are
    # refused.
    theta = read_theta(text, defaults["rope_theta"], ("default", "dynamic"))
    return DecoderConfig(
        num_layers=int(find("num_hidden_layers")),
        hidden_size=hidden,
        intermediate_size=int(find("intermediate_size")),
        num_heads=heads,
        num_kv_heads=int(find("num_key_value_heads") or heads),
        vocab_size=int(find("vocab_size")),
        rope=RopeConfig(int(text.find("head_dim") or hidden // heads), theta),
        norm_eps=float(find("rms_norm_eps")),
        tie_embeddings=tied,
        max_positions=int(find("max_position_embeddings")),
        qkv_bias=kind == "qwen2",
    )


def check_activation(text: Settings) -> None:
    """Refuse a decoder with another activation than SiLU.

    Raises:
        ConfigError: it states another one.
    """
    if (activation := text.find("hidden_act", default="silu")) != "silu":
        raise ConfigError(f"decoder hidden_act {activation!r} is not supported, only silu")


def read_theta(text: Settings, default: float, kinds: Sequence[str]) -> float:
    """Return the base of the rotary embedding.

    Args:
        text: settings of the decoder.
        default: the base where they state none.
        kinds: of rotary embeddings that can be run.

    Raises:
        ConfigError: another kind.
    """
    rope = text.enter("rope_scaling", "rope_parameters")
    # Two names of one kind, often side by side in one file.
    for kind in rope.list("rope_type", "type").values():
        if kind not in kinds:
            raise ConfigError(f"rope type {kind!r} is not supported, only {' and '.join(kinds)}")
    return float((text | rope).find("rope_theta", default=default))


def map_decoder(prefix: str, head: str = "lm_head", bias: bool = True) -> tuple[Rule, ...]:
    """Return the rules of a decoder under the names that transformers gives Llama and Qwen2.

    Args:
        prefix: what stands before "layers.0".
        head: name of the output head.
        bias: whether queries, keys and values have one in any model of the table.
    """
    layer = f"{prefix}layers.{{layer}}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    second = "post_attention_layernorm"
    return (
        Rule(f"{prefix}embed_tokens.weight", "decoder/embed_tokens/embedding"),
        Rule(f"{layer}.input_layernorm.weight", f"{_OURS}/input_layernorm/scale"),
        *map_linear(f"{attention}.q_proj", f"{_OURS}/q_proj", bias),
        *map_linear(f"{attention}.k_proj", f"{_OURS}/k_proj", bias),
        *map_linear(f"{attention}.v_proj", f"{_OURS}/v_proj", bias),
        *map_linear(f"{attention}.o_proj", f"{_OURS}/o_proj", bias=False),
        Rule(f"{layer}.{second}.weight", f"{_OURS}/{second}/scale"),
        *map_linear(f"{mlp}.gate_proj", f"{_OURS}/mlp/gate_proj", bias=False),
        *map_linear(f"{mlp}.up_proj", f"{_OURS}/mlp/up_proj", bias=False),
        *map_linear(f"{mlp}.down_proj", f"{_OURS}/mlp/down_proj", bias=False),
        Rule(f"{prefix}norm.weight", "decoder/norm/scale"),
        *map_linear(head, "decoder/lm_head", bias=False),
    )
