"""How activations are split over the mesh that a program is traced for.

Traced functions have no mesh argument. Whoever calls one enters `on_mesh`; inside, `constrain`
states the split of an array, and without a mesh it does nothing:

    with on_mesh(model.mesh):
        run_prefill(...)            hidden states [B, N, D]        B over `data`
                                    caches [L, B, S, G, C]         B over `data`, G over `model`
"""

import contextlib

import jax
from jax.sharding import Mesh, PartitionSpec


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Trace what is called inside for this mesh; None is a single device.

    The devices of the mesh need not be there: those of a topology do as well.
    """
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def axis_size(axis: str) -> int:
    """Return over how many devices this axis of the present mesh splits; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def partition(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
    """Name the mesh axis of each dimension; a dimension that does not divide stays whole."""
    # A split in unequal parts would be padded, and the padding would be moved with it.
    fits = (
        axis if axis and size % axis_size(axis) == 0 else None
        for size, axis in zip(shape, axes, strict=False)
    )
    return PartitionSpec(*fits)


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Split dimension i of an array over mesh axis `axes[i]`, replicate it over the others."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, partition(array.shape, *axes))


def constrain_hidden(hidden: jax.Array) -> jax.Array:
    """Split hidden states [B, N, D] over samples."""
    return constrain(hidden, "data")


def constrain_cache(vectors: jax.Array) -> jax.Array:
    """Split stacked keys or values [L, B, S, G, C] over samples and heads."""
    return constrain(vectors, None, "data", None, "model")
