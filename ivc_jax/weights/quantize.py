"""Decoder weights as int8 numbers with one float32 scale for each output channel, by qwix.

    weight [out, in]     values int8 [out, in], scale float32 [out, 1]
     0.5  0.2      ->    127   51               0.5 / 127.5
    -0.3  1.0            -38  127               1.0 / 127.5
    scale = largest magnitude of the row / 127.5, values = round(weight / scale), clipped

Only weights are stored this way: those of a block are turned back into the model's dtype when it
runs (`ivc_jax.nn.layers.dequantized`), those of an expert when it is used. Norms, biases, routers,
the embedding table (also as the head of a model that ties the two) and the vision tower stay
floats.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

WEIGHTS = ("int8",)
_MATRICES = re.compile(r"decoder/(layers/(?!.*\bmlp/gate/).+|lm_head)/weight")
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


def is_matrix(path: str) -> bool:
    """Tell whether the parameter at a slash-separated path is stored as int8."""
    return _MATRICES.fullmatch(path) is not None


def quantize(weight: jax.Array) -> Any:
    """Quantise a weight [out, in] or a stack [..., out, in], sharded as it is; any float dtype.

    Returns:
        A `qwix.QArray`: `qvalue` int8 of the same shape, `scale` float32 [..., out, 1].
    """
    return _quantizer(*_shardings(weight.sharding, weight.ndim))(weight)


def abstract_weight(weight: Any) -> Any:
    """Return what `quantize` makes of a weight given as `jax.ShapeDtypeStruct`."""
    values, scale = _shardings(weight.sharding, len(weight.shape))
    shape = (*weight.shape[:-1], 1)  # [..., out, 1]
    return _qwix().QArray(
        qvalue=jax.ShapeDtypeStruct(weight.shape, _INT8, sharding=values),
        scale=jax.ShapeDtypeStruct(shape, _FLOAT32, sharding=scale),
    )


def _shardings(sharding: Sharding | None, ndim: int) -> tuple[Sharding | None, Sharding | None]:
    """Return the shardings of values and scale: a scale has no `in` axis to split."""
    if not isinstance(sharding, NamedSharding):
        return sharding, sharding
    # as long as the array has axes: a spec may leave the last ones out
    spec = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    spec[-1] = None  # `in` has length 1 in a scale
    return sharding, NamedSharding(sharding.mesh, PartitionSpec(*spec))


@functools.cache
def _quantizer(values: Sharding, scale: Sharding) -> Any:
    def turn(weight: jax.Array) -> Any:
        # In float32 whatever is stored: half precision would round the quotients once more.
        axes = range(weight.ndim - 1)  # all but `in`: one scale a row, layer by layer
        return _qwix().quantize(weight.astype(jnp.float32), _INT8, channelwise_axes=list(axes))

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
