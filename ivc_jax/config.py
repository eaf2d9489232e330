"""Model sizes as frozen dataclasses, read from a Hugging Face `config.json`.

Both generations of the file are understood: the flat one (decoder sizes at the top level,
`rope_theta` and `rope_scaling`) and the nested one (`text_config`, `rope_parameters`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class ConfigError(ValueError):
    """A `config.json` that this package cannot run; the message names the field."""


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one head.

    `sections` counts the planes that turn with (time, height, width); None is 1-D rotary.
    `frequency_mask`, one bool per plane, stops the planes marked False (an ablation: their
    wavelength becomes infinite).
    """

    head_dim: int
    theta: float
    sections: tuple[int, int, int] | None = None
    frequency_mask: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        planes = self.head_dim // 2
        if self.head_dim % 2 or self.head_dim < 2:
            raise ConfigError(f"head_dim must be even and positive, got {self.head_dim}")
        if self.sections is not None and sum(self.sections) != planes:
            raise ConfigError(f"mrope_section {self.sections} must sum to head_dim / 2 = {planes}")
        if self.frequency_mask is not None and len(self.frequency_mask) != planes:
            raise ConfigError(
                f"frequency_mask has {len(self.frequency_mask)} entries for {planes} planes"
            )

    @property
    def frequencies(self) -> np.ndarray:
        """The F = head_dim / 2 angular frequencies in radians per position, float64.

        Plane i turns by theta^(-2i / head_dim); masked planes do not turn (RoFormer, arXiv
        2104.09864, section 3.2.2).
        """
        exponent = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        turns = self.theta**-exponent
        return turns if self.frequency_mask is None else np.where(self.frequency_mask, turns, 0.0)

    @property
    def axis_of_plane(self) -> np.ndarray:
        """The position axis that turns each plane, int32 [F]: 0 time, 1 height, 2 width."""
        sections = self.sections or (self.head_dim // 2, 0, 0)
        return np.repeat(np.arange(3, dtype=np.int32), sections)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower, and a field for each way in which the families differ.

    Attributes:
        norm: "layernorm" or "rmsnorm".
        gated_mlp: feed-forward parts are down(activation(gate(x)) * up(x)).
        window_size: side of an attention window in pixels; None is attention over the whole image.
        full_attention_blocks: blocks that attend over the whole image all the same.
        tokens_per_second: time positions in a second of video; None numbers the frames.
        pixel_mean: what the image processor subtracts from each channel of values in [0, 1].
        pixel_std: what it divides them by then. Only methods that look at pixels read the two.
    """

    depth: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    out_dim: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3
    activation: str = "quick_gelu"
    norm: str = "layernorm"
    gated_mlp: bool = False
    rope_theta: float = 10000.0
    window_size: int | None = None
    full_attention_blocks: tuple[int, ...] = ()
    tokens_per_second: float | None = None
    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def merge_area(self) -> int:
        """Patches that become one visual token."""
        return self.spatial_merge_size**2

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_cells(self) -> int | None:
        """Merged cells along a side of an attention window."""
        if self.window_size is None:
            return None
        return self.window_size // self.spatial_merge_size // self.patch_size

    @property
    def row_unit(self) -> int:
        """Patches that a row is a multiple of: those of a window, or of one merged token."""
        return self.merge_area * (self.window_cells or 1) ** 2


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the language decoder."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    rope: RopeConfig
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    max_positions: int = 32768


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A vision-language model: both halves and the ids of its marks."""

    family: str
    vision: VisionConfig
    decoder: DecoderConfig
    image_token_id: int
    video_token_id: int
    vision_start_id: int
    vision_end_id: int


FAMILIES = ("qwen2_vl", "qwen2_5_vl")
_ACTIVATIONS = ("quick_gelu", "gelu", "silu")


def from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """Read the sizes of a model from a parsed Hugging Face `config.json`.

    Raises:
        ConfigError: unknown architecture, missing or inconsistent field.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f"unknown architecture model_type={family!r}; supported: {', '.join(FAMILIES)}"
        )
    try:
        text = {**config, **config.get("text_config", {})}
        return ModelConfig(
            family=family,
            vision=_vision(config["vision_config"], _FAMILY_FIELDS[family]),
            decoder=_decoder(text, tied=_is_tied(config) or _is_tied(text)),
            image_token_id=int(config["image_token_id"]),
            video_token_id=int(config["video_token_id"]),
            vision_start_id=int(config["vision_start_token_id"]),
            vision_end_id=int(config["vision_end_token_id"]),
        )
    except KeyError as error:
        raise ConfigError(f"config.json lacks the field {error.args[0]!r}") from None


def _is_tied(config: Mapping[str, Any]) -> bool:
    # Some files state it at the top, some in text_config; either suffices.
    return bool(config.get("tie_word_embeddings", False))


def _qwen2_fields(vision: Mapping[str, Any]) -> dict[str, Any]:
    # The tower's width is embed_dim here; hidden_size is the decoder's.
    return {
        "embed_dim": int(vision["embed_dim"]),
        "mlp_dim": int(vision["embed_dim"] * vision["mlp_ratio"]),
        "out_dim": int(vision["hidden_size"]),
        "activation": vision.get("hidden_act", "quick_gelu"),
    }


def _qwen2_5_fields(vision: Mapping[str, Any]) -> dict[str, Any]:
    # The tower's width is hidden_size here; the decoder's is out_hidden_size.
    return {
        "embed_dim": int(vision["hidden_size"]),
        "mlp_dim": int(vision["intermediate_size"]),
        "out_dim": int(vision["out_hidden_size"]),
        "activation": vision.get("hidden_act", "silu"),
        "norm": "rmsnorm",
        "gated_mlp": True,
        "window_size": int(vision["window_size"]),
        "full_attention_blocks": tuple(int(block) for block in vision["fullatt_block_indexes"]),
        "tokens_per_second": float(vision["tokens_per_second"]),
    }


_FAMILY_FIELDS = {"qwen2_vl": _qwen2_fields, "qwen2_5_vl": _qwen2_5_fields}


def _vision(vision: Mapping[str, Any], family_fields: Callable[..., dict]) -> VisionConfig:
    rope = vision.get("rope_parameters") or {}
    sizes = VisionConfig(
        depth=int(vision["depth"]),
        num_heads=int(vision["num_heads"]),
        patch_size=int(vision["patch_size"]),
        temporal_patch_size=int(vision["temporal_patch_size"]),
        spatial_merge_size=int(vision["spatial_merge_size"]),
        in_channels=int(vision.get("in_channels", vision.get("in_chans", 3))),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        **family_fields(vision),
    )
    if sizes.activation not in _ACTIVATIONS:
        raise ConfigError(f"vision hidden_act {sizes.activation!r} is not one of {_ACTIVATIONS}")
    if sizes.embed_dim % sizes.num_heads or sizes.head_dim % 4:
        raise ConfigError(
            f"vision embed_dim {sizes.embed_dim} / num_heads {sizes.num_heads} must be a multiple"
            " of 4 for its 2-D rotary embedding"
        )
    if sizes.window_cells == 0:
        raise ConfigError(
            f"vision window_size {sizes.window_size} holds no merged cell of"
            f" {sizes.patch_size * sizes.spatial_merge_size} pixels"
        )
    return sizes


def _decoder(text: Mapping[str, Any], tied: bool) -> DecoderConfig:
    if text.get("use_sliding_window"):
        raise ConfigError("use_sliding_window=true is not supported; set it to false")
    if text.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"decoder hidden_act {text['hidden_act']!r} is not supported, only silu")
    num_heads = int(text["num_attention_heads"])
    head_dim = int(text.get("head_dim") or text["hidden_size"] // num_heads)
    rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ConfigError(f"rope type {kind!r} is not supported, only default and mrope")
    sections = rope.get("mrope_section")
    return DecoderConfig(
        num_layers=int(text["num_hidden_layers"]),
        hidden_size=int(text["hidden_size"]),
        intermediate_size=int(text["intermediate_size"]),
        num_heads=num_heads,
        num_kv_heads=int(text.get("num_key_value_heads") or num_heads),
        vocab_size=int(text["vocab_size"]),
        rope=RopeConfig(
            head_dim=head_dim,
            theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))),
            sections=tuple(int(s) for s in sections) if sections else None,
        ),
        norm_eps=float(text.get("rms_norm_eps", 1e-5)),
        tie_embeddings=tied,
        max_positions=int(text.get("max_position_embeddings", 32768)),
    )
