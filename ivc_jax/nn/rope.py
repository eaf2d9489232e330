"""Rotary position embedding: M-RoPE mixing of the axes, angles, rotation.

The frequencies themselves are a property of `RopeConfig`, which `ivc_jax.ivc` reads as well.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivc_jax.config import RopeConfig
from ivc_jax.types import typed


@typed
def angles(config: RopeConfig, positions: Int[Array, "3 B N"]) -> Float[Array, "B N F"]:
    """Return the float32 angle of each rotary plane at each position (Qwen2-VL's M-RoPE)."""
    axis_positions = positions[config.axis_of_plane]  # [F, B, N]
    # float32 products, as the reference implementation forms them
    turn = config.frequencies.astype(np.float32)  # [F]
    return jnp.moveaxis(axis_positions.astype(jnp.float32), 0, -1) * turn


@typed
def vision_angles(
    head_dim: int, patch_positions: Int[Array, "R P 2"], theta: float = 10000.0
) -> Float[Array, "R P F"]:
    """Return angles of the tower's 2-D rotary: half of the planes turn with the row, half with the
    column."""
    exponent = np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2)
    turn = (1.0 / theta**exponent).astype(np.float32)  # [head_dim / 4]
    per_axis = patch_positions[..., None].astype(jnp.float32) * turn  # [R, P, 2, head_dim / 4]
    return per_axis.reshape(*patch_positions.shape[:2], head_dim // 2)


@typed
def rotate(x: Float[Array, "B N H C"], angle: Float[Array, "B N F"]) -> Float[Array, "B N H C"]:
    """Turn plane i, made of channels (i, i + C/2), by angle i. Computed in float32."""
    # [B, N, 1, F]: all heads turn alike
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # [B, N, H, F] both
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
