"""Projections, norms and feed-forward parts shared by the tower and the decoder."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

# LayerNorm variance is taken from the centred values: the fast E[x²]-E[x]² form loses digits.
NORMS = {"layernorm": partial(nn.LayerNorm, use_fast_variance=False), "rmsnorm": nn.RMSNorm}

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


class GatedMLP(nn.Module):
    """Gated feed-forward layer: down(activation(gate(x)) * up(x))."""

    hidden_dim: int
    out_dim: int
    activation: str = "silu"
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., out_dim]."""
        dense = partial(nn.Dense, use_bias=self.use_bias)
        gate = dense(self.hidden_dim, name="gate_proj")(x)  # [..., hidden_dim]
        up = dense(self.hidden_dim, name="up_proj")(x)  # [..., hidden_dim]
        return dense(self.out_dim, name="down_proj")(ACTIVATIONS[self.activation](gate) * up)


class MLP(nn.Module):
    """Plain two-layer feed-forward part of the vision tower."""

    hidden_dim: int
    out_dim: int
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., out_dim]."""
        x = nn.Dense(self.hidden_dim, name="fc1")(x)
        return nn.Dense(self.out_dim, name="fc2")(ACTIVATIONS[self.activation](x))


def is_quantized(node: Any) -> bool:
    """Tell whether a node of a parameter tree is a quantised kernel, a `qwix.QArray`."""
    return hasattr(node, "qvalue")


def dequantized(params: Any, dtype: np.dtype) -> Any:
    """Turn the quantised kernels of a parameter tree into floats; leave everything else alone."""

    def turn(node: Any) -> Any:
        if not is_quantized(node):
            return node
        import qwix  # an optional dependency, installed where there are such kernels

        # Scales are float32, so half precision rounds once, behind the product.
        return qwix.dequantize(node).astype(dtype)

    return jax.tree.map(turn, params, is_leaf=is_quantized)
