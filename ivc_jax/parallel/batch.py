"""Batches on a mesh: patch rows lie with their sample.

A batch is cut into equal shards along the `data` axis, its patch rows as well. `visual_source`
says which merged cell of the tower's output is which visual token, or is below 0 for a token that
no cell becomes. Samples a and c have two images
of one row each, a row is one cell, data=2:

                    collated          on the mesh
    shard           0     | 1         0   | 1
    samples         a b   | c d       a b | c d
    patch rows      a a c | c -       a a | c c      no row lies with another shard's sample
    visual_source   a 0 1 | c 2 3     a 0 1 | c 2 3  cells, counted from the start of the batch
    on its device                     a 0 1 | c 0 1  less those of the shards before

One process starts from a whole batch (`align_rows`, `place_inputs`), several from their own shards
(`assemble`); both end on the right. `gather_cells` then takes tokens from rows that are all there.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ivc_jax.parallel.constraints import axis_size
from ivc_jax.parallel.processes import num_shards
from ivc_jax.types import Inputs


def align_rows(inputs: Inputs, mesh: Mesh | None, merge_area: int) -> Inputs:
    """Put the patch rows of each sample on the devices that will hold the sample.

    Inputs that lie on several devices already are left alone, as are batches that do not divide.

    Args:
        inputs: a padded batch.
        mesh: that `place_inputs` will split it over.
        merge_area: patches that become one visual token.
    """
    shards = num_shards(mesh)
    B, V = inputs.visual_source.shape
    placed = isinstance(inputs.patches, jax.Array) and len(inputs.patches.devices()) > 1
    if shards == 1 or B % shards or V == 0 or placed:
        return inputs
    source = np.asarray(inputs.visual_source)
    valid = np.asarray(inputs.layout.visual_valid) & (source >= 0)
    width = inputs.patches.shape[1] // merge_area  # cells of a row
    samples = np.split(np.arange(B), shards)
    used = [np.unique(source[own][valid[own]] // width) for own in samples]
    count = max(1, *map(len, used))  # rows of a shard
    # Which row goes where; a row that two shards use goes to both, padding comes from behind all.
    order = np.full((shards, count), len(inputs.patches))
    moved = np.zeros_like(source)  # [B, V]
    for shard, (own, rows) in enumerate(zip(samples, used, strict=True)):
        order[shard, : len(rows)] = rows
        row = np.searchsorted(rows, source[own] // width) + shard * count  # [B / shards, V]
        moved[own] = np.where(
            valid[own], row * width + source[own] % width, source[own].clip(max=0)
        )

    def take(rows: Any, fill: int) -> np.ndarray:
        padded = np.concatenate([rows, np.full_like(rows[:1], fill)])
        return padded[order.ravel()]

    return inputs.replace(
        patches=take(np.asarray(inputs.patches), 0),
        patch_positions=take(np.asarray(inputs.patch_positions), -1),
        visual_source=moved,
    )


def place_inputs(inputs: Inputs, mesh: Mesh | None = None) -> Inputs:
    """Copy a padded batch to devices: to the default one, or split over `data` of a mesh.

    What does not divide, such as patch rows of fewer images than shards, is replicated.
    """
    return jax.device_put(inputs, shard_inputs(inputs, mesh) if mesh else None)


def shard_inputs(inputs: Inputs, mesh: Mesh) -> Inputs:
    """Return the sharding of every array of a batch, which may be abstract."""

    def shard(path: tuple, array: Any) -> NamedSharding:
        axis = find_sample_axis(path)
        divides = array.shape[axis] % mesh.shape["data"] == 0
        return NamedSharding(mesh, _split(axis) if divides else PartitionSpec())

    return jax.tree_util.tree_map_with_path(shard, inputs)


def assemble(parts: Mapping[int, Inputs], mesh: Mesh | None, merge_area: int) -> Inputs:
    """Put the shards of a batch, padded alike, on their devices as one batch.

    Args:
        parts: the local shards, NumPy leaves.
        mesh: None puts the only shard on the default device.
        merge_area: patches that become one visual token.
    """
    if mesh is None:
        return jax.device_put(parts[0])
    leaves = {}
    for shard, part in parts.items():
        rows, patches = part.patches.shape[:2]
        before = np.int32(shard * rows * patches // merge_area)  # cells of the shards before
        source = part.visual_source
        moved = part.replace(visual_source=np.where(source < 0, source, source + before))
        leaves[shard] = jax.tree.leaves(moved)
    first, structure = jax.tree_util.tree_flatten_with_path(next(iter(parts.values())))
    assembled = []
    for number, (path, leaf) in enumerate(first):
        axis = find_sample_axis(path)
        size = leaf.shape[axis]
        shape = (*leaf.shape[:axis], size * num_shards(mesh), *leaf.shape[axis + 1 :])

        def read(
            index: tuple[slice, ...], number: int = number, axis: int = axis, size: int = size
        ) -> np.ndarray:
            # A device asks for slots size * shard to size * (shard + 1) of this axis.
            return leaves[(index[axis].start or 0) // max(size, 1)][number]

        sharding = NamedSharding(mesh, _split(axis))
        assembled.append(jax.make_array_from_callback(shape, sharding, read))
    return jax.tree.unflatten(structure, assembled)


def find_sample_axis(path: tuple) -> int:
    """Return the axis on which an array of `Inputs` counts samples, or their patch rows."""
    # positions are [3, B, N], features [J, B, V, D]
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return int(name in ("layout/positions", "deepstack"))


def _split(axis: int) -> PartitionSpec:
    """Split one axis over `data`."""
    return PartitionSpec(*[None] * axis, "data")


def gather_cells(cells: jax.Array, source: jax.Array) -> jax.Array:
    """Take cells [R, W, ...] at flat places [B, V]: [B, V, ...]; below 0 it is any cell.

    On a mesh that splits the samples no cell moves: rows lie with their sample.
    """
    flat = cells.reshape(-1, *cells.shape[2:])  # [R * W, ...]
    if axis_size("data") == 1 or source.shape[0] % axis_size("data"):
        return flat[jnp.maximum(source, 0)]

    def take(flat: jax.Array, source: jax.Array) -> jax.Array:
        first = jax.lax.axis_index("data") * flat.shape[0]  # cells of the shards before
        return flat[jnp.maximum(source - first, 0)]  # padding is 0 on every device

    rows = _split(0)
    take = jax.shard_map(take, in_specs=rows, out_specs=rows, axis_names={"data"})
    return take(flat, source)


def fetch(tree: Any) -> Any:
    """Copy arrays to the host as NumPy, whole, also those that other processes hold parts of.

    All processes must call this together if there is such an array.
    """

    def copy(array: Any) -> np.ndarray:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(copy, tree)
