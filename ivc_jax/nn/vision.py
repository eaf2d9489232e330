"""Qwen2-VL vision tower over padded patch rows.

One row holds the patches of one image (or of one temporal slice of a video); attention is full
inside a row and rows never see each other. Rows are padded on the right:

    patch_positions[row]   (0,0) (0,1) (1,0) (1,1) (0,2) ... (-1,-1) (-1,-1)
                           `---- one merged token ---'       `-- padding --'
"""

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from ivc_jax.config import VisionConfig
from ivc_jax.nn import rope
from ivc_jax.nn.attention import attend
from ivc_jax.nn.layers import MLP, LayerNorm
from ivc_jax.types import typed


class VisionAttention(nn.Module):
    """Multi-head attention inside a patch row, with 2-D rotary positions."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array, lengths: jax.Array) -> jax.Array:
        """Map [R, P, D] to [R, P, D]; `lengths` [R] counts the real patches."""
        R, P, D = x.shape
        qkv = nn.Dense(3 * D, name="qkv")(x)
        qkv = qkv.reshape(R, P, 3, self.config.num_heads, self.config.head_dim)
        queries, keys, values = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        queries, keys = rope.rotate(queries, angles), rope.rotate(keys, angles)
        mixed = attend(queries, keys, values, lengths=lengths)
        return nn.Dense(D, name="proj")(mixed.reshape(R, P, D))


class VisionBlock(nn.Module):
    """Pre-norm transformer block of the tower."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array, lengths: jax.Array) -> jax.Array:
        """Map [R, P, D] to [R, P, D]."""
        config = self.config
        attention = VisionAttention(config, name="attn")
        x = x + attention(LayerNorm(name="norm1")(x), angles, lengths)
        mlp = MLP(config.mlp_dim, config.embed_dim, config.activation, name="mlp")
        return x + mlp(LayerNorm(name="norm2")(x))


class PatchMerger(nn.Module):
    """Join each block of merge² consecutive patches into one visual token."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [R, P, D] to [R, P / merge², out_dim]."""
        R, P, D = x.shape
        joined = D * self.config.merge_area
        x = LayerNorm(name="ln_q")(x).reshape(R, P // self.config.merge_area, joined)
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
            patches: flattened pixels, merge-block order, zeros at padding.
            patch_positions: (row, column) of each patch, -1 at padding.

        Returns:
            Visual tokens [R, P / merge², out_dim]; those of padding are meaningless.
        """
        config = self.config
        lengths = (patch_positions[..., 0] >= 0).sum(axis=1)
        # A row of padding alone still needs one key, or its softmax is 0 / 0.
        lengths = lengths.clip(min=1)
        angles = rope.vision_angles(config.head_dim, patch_positions)
        x = nn.Dense(config.embed_dim, use_bias=False, name="patch_embed")(patches)
        blocks = nn.scan(
            lambda block, x, _: (block(x, angles, lengths), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.depth,
        )
        x, _ = blocks(VisionBlock(config, name="blocks"), x, None)
        return PatchMerger(config, name="merger")(x)
