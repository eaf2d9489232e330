"""Vision tower of Qwen2-VL and Qwen2.5-VL over padded patch rows.

One row holds the patches of one image (or of one temporal slice of a video); rows never see each
other. In Qwen2-VL attention is full inside a row, and rows are padded on the right:

    patch_positions[row]   (0,0) (0,1) (1,0) (1,1) (0,2) ... (-1,-1) (-1,-1)
                           `---- one merged token ---'       `-- padding --'

In Qwen2.5-VL most blocks attend within square windows of the image only. Its rows come in window
order, every window padded to its full size, so that a reshape cuts a row into windows:

    row        a a a a b b - -   c c - - - - - -   - - - - - - - -
               `-- window 0 -'   `-- window 1 -'   `- padding -'       lengths 6 2 0
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import VisionConfig
from ivc_jax.nn import rope
from ivc_jax.nn.attention import attend
from ivc_jax.nn.layers import MLP, NORMS, GatedMLP
from ivc_jax.types import typed


@flax.struct.dataclass
class Windows:
    """Attention windows of patch rows: W windows of P / W slots each, real patches first."""

    lengths: jax.Array  # [R, W] int32, real patches of each window
    order: jax.Array  # [R, P] int32, slots of a row, those of real patches first


class VisionAttention(nn.Module):
    """Multi-head attention inside a patch row, with 2-D rotary positions."""

    config: VisionConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: jax.Array,
        lengths: jax.Array,
        windows: Windows | None = None,
        full: jax.Array | None = None,
    ) -> jax.Array:
        """Map [R, P, D] to [R, P, D].

        Args:
            angles: [R, P, F].
            lengths: [R], real patches of each row.
            windows: without them attention is over the row, whose real patches come first.
            full: scalar bool, attend over the row despite the windows; None is False.
        """
        R, P, D = x.shape
        qkv = nn.Dense(3 * D, name="qkv")(x)
        qkv = qkv.reshape(R, P, 3, self.config.num_heads, self.config.head_dim)
        queries, keys, values = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        queries, keys = rope.rotate(queries, angles), rope.rotate(keys, angles)
        if windows is None:
            mixed = attend(queries, keys, values, lengths=lengths)
        elif full is None:
            mixed = _attend_within(windows, queries, keys, values)
        else:
            mixed = jax.lax.cond(
                full,
                lambda *qkv: _attend_across(windows, lengths, *qkv),
                lambda *qkv: _attend_within(windows, *qkv),
                *(queries, keys, values),
            )
        return nn.Dense(D, name="proj")(mixed.reshape(R, P, D))


def _attend_within(
    windows: Windows, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> jax.Array:
    """Attend inside each window: [R, P, H, C], as R * W short rows."""
    R, W = windows.lengths.shape
    cut = [x.reshape(R * W, -1, *x.shape[2:]) for x in (queries, keys, values)]
    # A window of padding alone still needs one key, or its softmax is 0 / 0.
    lengths = windows.lengths.reshape(R * W).clip(min=1)
    return attend(*cut, lengths=lengths).reshape(queries.shape)


def _attend_across(
    windows: Windows, lengths: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> jax.Array:
    """Attend over the whole row, around the padding between windows."""
    # Attention does not mind the order of its keys. With the real ones first their number says it
    # all, where a mask would cost P x P numbers in cuDNN.
    keys, values = (
        jnp.take_along_axis(x, windows.order[:, :, None, None], axis=1) for x in (keys, values)
    )
    return attend(queries, keys, values, lengths=lengths)


class VisionBlock(nn.Module):
    """Pre-norm transformer block of the tower; arguments as in `VisionAttention`."""

    config: VisionConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: jax.Array,
        lengths: jax.Array,
        windows: Windows | None = None,
        full: jax.Array | None = None,
    ) -> jax.Array:
        """Map [R, P, D] to [R, P, D]."""
        config = self.config
        norm = NORMS[config.norm]
        attention = VisionAttention(config, name="attn")
        x = x + attention(norm(name="norm1")(x), angles, lengths, windows, full)
        sizes = (config.mlp_dim, config.embed_dim, config.activation)
        if config.gated_mlp:
            mlp = GatedMLP(*sizes, use_bias=True, name="mlp")
        else:
            mlp = MLP(*sizes, name="mlp")
        return x + mlp(norm(name="norm2")(x))


class PatchMerger(nn.Module):
    """Join each block of merge² consecutive patches into one visual token."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [R, P, D] to [R, P / merge², out_dim]."""
        R, P, D = x.shape
        joined = D * self.config.merge_area
        x = NORMS[self.config.norm](name="ln_q")(x)
        x = x.reshape(R, P // self.config.merge_area, joined)
        return MLP(joined, self.config.out_dim, "gelu", name="mlp")(x)


class VisionTower(nn.Module):
    """Patch embedding, transformer blocks (scanned, parameters stacked), merger."""

    config: VisionConfig

    @nn.compact
    @typed
    def __call__(
        self, patches: Float[Array, "R P E"], patch_positions: Int[Array, "R P 2"]
    ) -> Float[Array, "R W D"]:
        """Encode patch rows.

        Args:
            patches: flattened pixels, merge-block order, window by window if the tower has
                windows; zeros at padding. P is a multiple of `config.row_unit`.
            patch_positions: (row, column) of each patch, -1 at padding.

        Returns:
            Visual tokens [R, P / merge², out_dim] in the order of the row; those of padding are
            meaningless.
        """
        config = self.config
        valid = patch_positions[..., 0] >= 0
        # A row of padding alone still needs one key, or its softmax is 0 / 0.
        lengths = valid.sum(axis=1).clip(min=1)
        windows, full = None, None
        if config.window_size is not None:
            windows = _find_windows(valid, config.row_unit)
            # One scan for both kinds of blocks: the choice is data, and parameters stay stacked.
            is_full = np.isin(np.arange(config.depth), config.full_attention_blocks)
            full = jnp.asarray(is_full) if is_full.any() else None
        angles = rope.vision_angles(config.head_dim, patch_positions, config.rope_theta)
        x = nn.Dense(config.embed_dim, use_bias=False, name="patch_embed")(patches)
        blocks = nn.scan(
            lambda block, x, full: (block(x, angles, lengths, windows, full), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.depth,
        )
        x, _ = blocks(VisionBlock(config, name="blocks"), x, full)
        return PatchMerger(config, name="merger")(x)


def _find_windows(valid: Bool[Array, "R P"], window_patches: int) -> Windows:
    """Count the real patches of each window; list the slots of a row, real patches first."""
    R, P = valid.shape
    lengths = valid.reshape(R, P // window_patches, window_patches).sum(axis=2)
    return Windows(lengths=lengths, order=jnp.argsort(~valid, axis=1, stable=True))
