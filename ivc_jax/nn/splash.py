"""Attention on TPU through JAX's splash attention kernel.

No score leaves the chip's fast memory, and blocks of a causal mask that hide everything are
skipped. The kernel takes whole blocks, so sequences are padded.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel_library,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

_BLOCKS = (512, 384, 256)  # slots; multiples of the 128 lanes of a TPU register
# Of the kernel, and of its gradients for keys and values and for queries: attention is
# differentiated where it is not run, as every platform's branch is.
_SIZES = (
    *("block_q", "block_kv", "block_kv_compute"),
    *("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"),
    *("block_q_dq", "block_kv_dq"),
)


def splash_attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    lengths: jax.Array | None = None,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Attend over a whole sequence: [B, N, H, C] from keys and values [B, N, G, C].

    Heads of values may have a width of their own, which that of the result is then.

    Causal attention does not look at `lengths`: a valid query sees nothing behind itself, and
    padding follows the valid slots. Outputs in slots of padding are finite and otherwise arbitrary.

    Args:
        lengths: [B], valid keys of each row, at least 1, counted from the left.
        causal: a query sees no key in a later slot.
        interpret: run the kernel's operations one by one, on any device.
    """
    B, N, H, C = queries.shape
    if lengths is None:
        lengths = jnp.full(B, N, jnp.int32)
    G = keys.shape[2]
    block = min(_BLOCKS, key=lambda size: (-N % size, -size))  # least padding, then largest
    slots = N + -N % block

    def by_head(array: jax.Array) -> jax.Array:
        """Move heads in front and pad: [B, heads, slots, C]."""
        return jnp.pad(array, ((0, 0), (0, slots - N), (0, 0), (0, 0))).swapaxes(1, 2)

    mask = masks.CausalMask if causal else masks.FullMask
    kernel = kernel_library.make_splash_mqa_single_device(
        masks.MultiHeadMask([mask((slots, slots))] * (H // G)),
        block_sizes=kernel_library.BlockSizes(**dict.fromkeys(_SIZES, block)),
        interpret=interpret,
    )
    grouped = by_head(queries * C**-0.5).reshape(B, G, H // G, slots, C)  # [B, G, H / G, slots, C]
    arguments = [grouped, by_head(keys), by_head(values)]
    axes = [0, 0, 0]  # over key heads; samples are mapped outside
    if not causal:
        visible = (jnp.arange(slots) < lengths[:, None]).astype(jnp.int32)  # [B, slots]
        arguments.append(kernel_library.SegmentIds(jnp.ones_like(visible), visible))
        axes.append(None)
    mixed = jax.vmap(jax.vmap(kernel, in_axes=tuple(axes)))(*arguments)  # [B, G, H / G, slots, C]
    return mixed.reshape(B, H, slots, -1).swapaxes(1, 2)[:, :N]
