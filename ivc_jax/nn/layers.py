"""Projections, norms and feed-forward parts shared by the tower and the decoder."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# LayerNorm variance is taken from the centred values: the fast E[x²]-E[x]² form loses digits.
NORMS = {"layernorm": partial(nn.LayerNorm, use_fast_variance=False), "rmsnorm": nn.RMSNorm}

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


class Linear(nn.Module):
    """Linear layer whose weight lies as checkpoints store it, [out, in].

    A CPU multiplies one row by it at 20 to 29 GB/s, by its transpose at 12 to 21 (two cores).
    """

    out_dim: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., out]."""
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        y = multiply(x, self._find("weight", init, (self.out_dim, x.shape[-1])))
        if self.use_bias:
            y = y + self._find("bias", nn.initializers.zeros, (self.out_dim,))
        return y

    def _find(self, name: str, init: nn.initializers.Initializer, shape: tuple) -> jax.Array:
        # Flax would trace the initialiser at every call to compare shapes, a fifth of the time that
        # it takes to trace a prefill. Parameters were compared with the config when they came.
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return self.param(name, init, shape)


def multiply(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Multiply [..., in] by the transpose of a weight [out, in]: [..., out]."""
    rows = x.size // x.shape[-1]
    if 1 < rows <= _FEW and weight.size >= _LARGE and weight.shape[0] % 2 == 0:
        return jax.lax.platform_dependent(x, weight, cpu=_multiply_few, default=_multiply)
    return _multiply(x, weight)


def _multiply(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))


# As many rows and as few numbers in a weight as halves pay off for.
_FEW, _LARGE = 32, 2**20


def _multiply_few(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Multiply a few rows by both halves of a weight at once.

    XLA's CPU back end gives a core to each: 8 rows and a weight of 8960 x 1536 take 2.7 ms, in one
    product 4.1 (two cores, float32).
    """
    out_dim, in_dim = weight.shape
    halves = weight.reshape(2, out_dim // 2, in_dim)
    rows = jnp.broadcast_to(x.reshape(-1, in_dim), (2, x.size // in_dim, in_dim))
    y = jax.lax.dot_general(halves, rows, (((2,), (2,)), ((0,), (0,))))  # [2, out / 2, rows]
    return y.reshape(out_dim, -1).T.reshape(*x.shape[:-1], out_dim)


class GatedMLP(nn.Module):
    """Gated feed-forward layer: down(activation(gate(x)) * up(x))."""

    hidden_dim: int
    out_dim: int
    activation: str = "silu"
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., out_dim]."""
        dense = partial(Linear, use_bias=self.use_bias)
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
        x = Linear(self.hidden_dim, name="fc1")(x)
        return Linear(self.out_dim, name="fc2")(ACTIVATIONS[self.activation](x))


def is_quantized(node: Any) -> bool:
    """Tell whether a node of a parameter tree is a quantised weight, a `qwix.QArray`."""
    return hasattr(node, "qvalue")


def dequantized(params: Any, dtype: np.dtype, but: str = "") -> Any:
    """Turn the quantised weights of a parameter tree into floats; leave everything else alone.

    Args:
        params: the tree.
        dtype: of the floats.
        but: name of a part of the tree that is left alone, too.
    """

    def turn(path: tuple, node: Any) -> Any:
        if not is_quantized(node) or jax.tree_util.DictKey(but) in path:
            return node
        import qwix  # an optional dependency, installed where there are such weights

        # Scales are float32, so half precision rounds once, behind the product.
        return qwix.dequantize(node).astype(dtype)

    return jax.tree_util.tree_map_with_path(turn, params, is_leaf=is_quantized)
