"""Decoder kernels as int8 numbers with one float32 scale for each output channel, by qwix.

    kernel [in, out]     values int8 [in, out], scale float32 [1, out]
    0.5 -0.3       ->    127  -38               0.5 / 127.5  1.0 / 127.5
    0.2  1.0              51  127
    scale = largest magnitude of the column / 127.5, values = round(kernel / scale), clipped

Only weights are stored this way: a block's kernels are turned back into the model's dtype when the
block runs (`ivc_jax.nn.layers.dequantized`). Norms, biases, the embedding table (also as the head
of a model that ties the two) and the vision tower stay floats.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ivc_jax.nn.decoder import Params

WEIGHTS = ("int8",)
_KERNELS = re.compile(r"decoder/(layers/.+|lm_head)/kernel")
_INT8, _FLOAT32 = np.dtype(np.int8), np.dtype(np.float32)


def check(weights: str | None) -> None:
    """Complain about weights that cannot be made, before anything is read.

    Args:
        weights: "int8", or None for floats.

    Raises:
        ValueError: an unknown name.
        ImportError: the library is missing or does not run beside this Flax.
    """
    if weights is None:
        return
    if weights not in WEIGHTS:
        known = ", ".join(WEIGHTS)
        raise ValueError(f"unknown weights {weights!r}; known: {known} (leave it out for floats)")
    _qwix()


def is_kernel(path: str) -> bool:
    """Tell whether the parameter at a slash-separated path is stored as int8."""
    return _KERNELS.fullmatch(path) is not None


def quantize(kernel: jax.Array) -> Any:
    """Quantise a kernel [in, out] or a stack [L, in, out], sharded as it is; any float dtype.

    Returns:
        A `qwix.QArray`: `qvalue` int8 of the same shape, `scale` float32 [1, out] or [L, 1, out].
    """
    return _quantizer(*_shardings(kernel.sharding, kernel.ndim))(kernel)


def abstract_kernel(kernel: Any) -> Any:
    """Return what `quantize` makes of a kernel given as `jax.ShapeDtypeStruct`."""
    values, scale = _shardings(kernel.sharding, len(kernel.shape))
    shape = (*kernel.shape[:-2], 1, kernel.shape[-1])  # [1, out] or [L, 1, out]
    return _qwix().QArray(
        qvalue=jax.ShapeDtypeStruct(kernel.shape, _INT8, sharding=values),
        scale=jax.ShapeDtypeStruct(shape, _FLOAT32, sharding=scale),
    )


def abstract(params: Params) -> Params:
    """Return a tree of `jax.ShapeDtypeStruct`, as from `abstract_params`, with int8 kernels."""

    def turn(path: tuple, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return abstract_kernel(leaf) if is_kernel(name) else leaf

    return jax.tree_util.tree_map_with_path(turn, params)


def _shardings(sharding: Sharding | None, ndim: int) -> tuple[Sharding | None, Sharding | None]:
    """Return the shardings of values and scale: a scale has no `in` axis to split."""
    if not isinstance(sharding, NamedSharding):
        return sharding, sharding
    # as long as the array has axes: a spec may leave the last ones out
    spec = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    spec[-2] = None  # `in` has length 1 in a scale
    return sharding, NamedSharding(sharding.mesh, PartitionSpec(*spec))


@functools.cache
def _quantizer(values: Sharding, scale: Sharding) -> Any:
    def turn(kernel: jax.Array) -> Any:
        # In float32 whatever is stored: half precision would round the quotients once more.
        # all but `in`: one scale a column, layer by layer
        axes = [axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2]
        return _qwix().quantize(kernel.astype(jnp.float32), _INT8, channelwise_axes=axes)

    return jax.jit(turn, out_shardings=_qwix().QArray(values, scale, qtype=_INT8))


def _qwix() -> Any:
    """Import the library, which nothing but int8 weights needs."""
    try:
        import qwix
    except ImportError:
        raise ImportError("int8 weights need qwix: pip install qwix") from None
    except Exception as error:  # Flax's newer interface, which qwix loads, breaks in many ways
        raise ImportError(
            f"int8 weights need qwix, which does not load beside this Flax and JAX ({error});"
            " pip install -U flax qwix"
        ) from error
    return qwix
