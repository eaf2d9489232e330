"""Sizes and traits of a model as frozen dataclasses: what its mathematics depends on.

`ivc_jax.families` read them from the `config.json` of each kind of checkpoint.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ivc_jax.decoder_parts import ExpertsConfig, LatentConfig

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh", "silu")
MERGE_NORMS = ("patch", "joined", "none")


class ConfigError(ValueError):
    """A `config.json` that this package cannot run; the message names the field."""


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one head.

    `sections` counts the planes that turn with (time, height, width), one section behind the other
    or, `interleaved`, in turns as long as height and width have any left:

        sections (4, 2, 2)     t t t t h h w w        interleaved   t h w t h w t t

    Without sections rotary is 1-D, and all tokens are numbered on one line, visual ones too.
    `frequency_mask`, one bool per plane, stops the planes marked False (an ablation: their
    wavelength becomes infinite).
    """

    head_dim: int
    theta: float
    sections: tuple[int, int, int] | None = None
    frequency_mask: tuple[bool, ...] | None = None
    interleaved: bool = False

    def __post_init__(self) -> None:
        planes = self.head_dim // 2
        if self.head_dim % 2 or self.head_dim < 2:
            raise ConfigError(f"head_dim must be even and positive, got {self.head_dim}")
        if self.sections is not None:
            if len(self.sections) != 3 or min(self.sections) < 0:
                raise ConfigError(f"mrope_section {self.sections} must be three counts of planes")
            if sum(self.sections) != planes:
                raise ConfigError(
                    f"mrope_section {self.sections} must sum to head_dim / 2 = {planes}"
                )
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
        turns = self.theta**-exponent  # [F] radians per position, from 1 down to about 1 / theta
        return turns if self.frequency_mask is None else np.where(self.frequency_mask, turns, 0.0)

    @property
    def line(self) -> bool:
        """Whether all tokens are numbered on one line."""
        return self.sections is None

    @property
    def axis_of_plane(self) -> np.ndarray:
        """The position axis that turns each plane, int32 [F]: 0 time, 1 height, 2 width."""
        # 1-D: all planes turn with the first axis
        sections = self.sections or (self.head_dim // 2, 0, 0)
        if not self.interleaved:
            return np.repeat(np.arange(3, dtype=np.int32), sections)
        plane = np.arange(self.head_dim // 2)  # [F]
        axis = plane % 3  # [F]: t h w t h w ...
        return np.where(plane // 3 < np.array(sections)[axis], axis, 0).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower, and a field for each way in which the families differ.

    Attributes:
        norm: "layernorm" or "rmsnorm".
        norm_eps: what norms add to the variance.
        patch_bias: the patch embedding has a bias.
        rotary: queries and keys are turned by the place of their patch.
        table_side: learned positions are added to the patches, one for each of side x side; None
            has none.
        table_interpolated: the table is stretched over the patches of each image, its corners to
            theirs, and read bilinearly; otherwise a patch has the position of its own place.
        class_token: a learned token sees all patches and is seen by them; it is no visual token.
        stem_norm: patches are normed before the first block.
        final_norm: and behind the last one.
        fused_qkv: queries, keys and values are one projection.
        qkv_bias: it has a bias.
        qk_norm: queries and keys are normed, all heads together.
        layer_scale: what a block's parts add is scaled channel by channel.
        gated_mlp: feed-forward parts are down(activation(gate(x)) * up(x)).
        window_size: side of an attention window in pixels; None is attention over the whole image.
        full_attention_blocks: blocks that attend over the whole image all the same.
        tokens_per_second: time positions in a second of video; None numbers the frames.
        timestamps: text in front of each temporal slice of a video says when it is, so that every
            slice has placeholders of its own and is numbered like an image.
        view_size: a picture is shown twice, as a view of the whole padded to a square of so many
            pixels, and as a mosaic of one or several tiles of that size; learned tokens end every
            row of either and stand between the two. None has no such views.
        tiled: a picture is one or several tiles of the tower's size, a slice each, and one run of
            placeholders; those of two pictures never touch.
        merge_norm: what the merger norms, each "patch" as blocks do or the "joined" patches of a
            token by their mean and variance; or "none".
        merge_eps: what that norm adds to the variance.
        merge_dim: width between its two layers; None is that of the joined patches.
        deepstack: blocks whose outputs go through mergers of their own, with a "joined" norm; what
            becomes of the first is added to the visual tokens behind decoder block 0, and so on.
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
    norm_eps: float = 1e-6
    patch_bias: bool = False
    rotary: bool = True
    table_side: int | None = None
    table_interpolated: bool = False
    class_token: bool = False
    stem_norm: bool = False
    final_norm: bool = False
    fused_qkv: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    gated_mlp: bool = False
    rope_theta: float = 10000.0
    window_size: int | None = None
    full_attention_blocks: tuple[int, ...] = ()
    tokens_per_second: float | None = None
    timestamps: bool = False
    view_size: int | None = None
    tiled: bool = False
    merge_norm: str = "patch"
    merge_eps: float = 1e-6
    merge_dim: int | None = None
    deepstack: tuple[int, ...] = ()
    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"vision hidden_act {self.activation!r} is not one of {ACTIVATIONS}")
        if self.embed_dim % self.num_heads or (self.rotary and self.head_dim % 4):
            raise ConfigError(
                f"vision embed_dim {self.embed_dim} / num_heads {self.num_heads} must be a whole"
                " number, and a multiple of 4 for a 2-D rotary embedding"
            )
        if self.merge_norm not in MERGE_NORMS:
            raise ConfigError(f"vision merge_norm {self.merge_norm!r} is not one of {MERGE_NORMS}")
        inside = all(0 <= block < self.depth for block in self.deepstack)
        if not inside or list(self.deepstack) != sorted(set(self.deepstack)):
            raise ConfigError(
                f"vision deepstack {self.deepstack} must be ascending blocks of the tower's"
                f" {self.depth}"
            )
        if self.window_cells == 0:
            raise ConfigError(
                f"vision window_size {self.window_size} holds no merged cell of"
                f" {self.patch_size * self.spatial_merge_size} pixels"
            )

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
    def cuts_cells(self) -> bool:
        """Whether cells at the right and lower borders lack patches, which are zeros then."""
        if self.table_side is None or self.table_interpolated:
            return False
        return self.table_side % self.spatial_merge_size > 0

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
    """Sizes of the language decoder.

    Attributes:
        norm_eps: what norms add to the variance.
        tie_embeddings: the output head is the embedding.
        max_positions: position ids that the model was made for.
        qkv_bias: the projections to queries, keys and values have a bias.
        qk_norm: every head of queries and keys is normed before it is turned.
        latent: keys and values are made of one vector, which is what caches hold.
        experts: blocks have experts in the place of their feed-forward part.
    """

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
    qkv_bias: bool = True
    qk_norm: bool = False
    latent: "LatentConfig | None" = None
    experts: "ExpertsConfig | None" = None

    @property
    def head_dim(self) -> int:
        """C, the width of a head of queries and keys; of `latent` ones a part is turned."""
        return self.rope.head_dim + (self.latent.plain_dim if self.latent else 0)

    @property
    def value_dim(self) -> int:
        """Width of a head of values."""
        return self.latent.value_dim if self.latent else self.head_dim

    def routes(self, layer: int) -> bool:
        """Tell whether block `layer` has experts."""
        return self.experts is not None and layer >= self.experts.dense_layers


@dataclasses.dataclass(frozen=True)
class Released:
    """What the released IVC-Prune does on one model; its code differs from family to family.

    A field bears the name of the setting of `IVCPrune`, or of a part of it, that is this where it
    is not given. Defaults are those of the code for Qwen2.5-VL.

    Attributes:
        layer: decoder block before which it cuts; None if there is no release for the model.
        combine: how IVC tokens and foreground make up what is kept.
        foreground_fraction: share of foreground, as `combine` takes it; None is the paper's.
        keep_seeds: whether seeds stay whatever their rank; None hangs on `combine`.
        cos_fraction: share of an image's tokens taken by V.
        sin_fraction: share of an image's tokens taken by U.
        key_scope: what the softmax of the foreground runs over.
        query_offset: text slots behind an image that do not ask.
    """

    layer: int | None = None
    combine: str = "fill"
    foreground_fraction: float | None = None
    keep_seeds: bool | None = None
    cos_fraction: float = 0.1
    sin_fraction: float = 0.1
    key_scope: str = "image"
    query_offset: int = 2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A vision-language model: both halves and the ids of its marks.

    Attributes:
        video_token_id: placeholder of videos; None takes none.
        vision_start_id: written before a visual where a prompt has a mark for it; None writes
            nothing there.
        vision_end_id: and behind it.
        released: what the released IVC-Prune does on this model.
    """

    family: str
    vision: VisionConfig
    decoder: DecoderConfig
    image_token_id: int
    video_token_id: int | None = None
    vision_start_id: int | None = None
    vision_end_id: int | None = None
    released: Released = Released()

    def __post_init__(self) -> None:
        marks: dict[str, int | None] = {
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_id,
            "vision_end_token_id": self.vision_end_id,
        }
        for name, number in marks.items():
            if number is not None and not 0 <= number < self.decoder.vocab_size:
                raise ConfigError(
                    f"{name} {number} has no embedding: vocab_size is {self.decoder.vocab_size};"
                    " use the config.json that belongs to the weights"
                )
