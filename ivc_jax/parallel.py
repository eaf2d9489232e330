"""Mesh over `data` and `model`, and a table that shards parameters by path.

Attention and feed-forward layers are split in the Megatron way: the first projection by columns,
the second by rows, so that a block needs one reduction for each. Batches are split over `data`.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ivc_jax.types import Inputs

_log = logging.getLogger(__name__)

_COLUMNS = PartitionSpec(None, None, "model")  # [L, in, out]
_ROWS = PartitionSpec(None, "model", None)
_COLUMN_BIAS = PartitionSpec(None, "model")  # [L, out]

# The first pattern found in the path wins; what no pattern names is replicated.
PARAM_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"decoder/embed_tokens/embedding$", PartitionSpec("model", None)),  # [vocab, D]
    (r"decoder/lm_head/kernel$", PartitionSpec(None, "model")),  # [D, vocab]
    (r"decoder/layers/(q|k|v)_proj/kernel$", _COLUMNS),
    (r"decoder/layers/(q|k|v)_proj/bias$", _COLUMN_BIAS),
    (r"decoder/layers/o_proj/kernel$", _ROWS),
    (r"decoder/layers/mlp/(gate|up)_proj/kernel$", _COLUMNS),
    (r"decoder/layers/mlp/down_proj/kernel$", _ROWS),
    # Queries, keys and values are fused here, so a shard does not hold whole heads of each.
    (r"vision/blocks/(attn/qkv|mlp/fc1|mlp/gate_proj|mlp/up_proj)/kernel$", _COLUMNS),
    (r"vision/blocks/(attn/qkv|mlp/fc1|mlp/gate_proj|mlp/up_proj)/bias$", _COLUMN_BIAS),
    (r"vision/blocks/(attn/proj|mlp/fc2|mlp/down_proj)/kernel$", _ROWS),
    (r"vision/merger/mlp/fc1/kernel$", PartitionSpec(None, "model")),
    (r"vision/merger/mlp/fc1/bias$", PartitionSpec("model")),
    (r"vision/merger/mlp/fc2/kernel$", PartitionSpec("model", None)),
)


def make_mesh(data: int = 1, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange `data * model` devices in a mesh with axes `data` and `model`.

    Args:
        data: equal parts of a batch.
        model: equal parts of a block's matrices.
        devices: to choose from, in this order; by default those of this run.

    Raises:
        ValueError: a size is not positive, or there are too few devices.
    """
    devices = jax.devices() if devices is None else devices
    available = len(devices)
    if data < 1 or model < 1:
        raise ValueError(f"mesh sizes must be positive, got data={data}, model={model}")
    if data * model > available:
        raise ValueError(
            f"a mesh of data={data} x model={model} needs {data * model} devices;"
            f" this run has {available}"
        )
    # Explicit axes, the default, refuse the gathers with which caches are compacted.
    kinds = (AxisType.Auto, AxisType.Auto)
    chosen = devices[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), axis_types=kinds, devices=chosen)


def param_spec(path: str) -> PartitionSpec:
    """Return the partition of the parameter at a slash-separated path."""
    for pattern, spec in PARAM_RULES:
        if re.search(pattern, path):
            return spec
    return PartitionSpec()


def param_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Return the sharding of a parameter; replicated, and logged, if a dimension does not divide.

    Args:
        path: slash-separated path in the parameter tree.
        shape: the parameter's whole shape, layer axis included.
    """
    spec = param_spec(path)
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            _log.warning(
                "%s %s is replicated: %d does not divide over %d devices of axis %r",
                *(path, shape, size, mesh.shape[axis], axis),
            )
            return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, spec)


def place_inputs(inputs: Inputs, mesh: Mesh | None = None) -> Inputs:
    """Copy a padded batch to devices: to the default one, or split over `data` of a mesh.

    What does not divide, such as patch rows of fewer images than shards, is replicated.
    """
    if mesh is None:
        return jax.device_put(inputs)
    return jax.device_put(inputs, input_shardings(inputs, mesh))


def input_shardings(inputs: Inputs, mesh: Mesh) -> Inputs:
    """Return the sharding of every array of a batch, which may be abstract."""

    def sharding(path: tuple, array: Any) -> NamedSharding:
        axis = sample_axis(path)
        if array.shape[axis] % mesh.shape["data"]:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

    return jax.tree_util.tree_map_with_path(sharding, inputs)


def sample_axis(path: tuple) -> int:
    """Return the axis on which an array of `Inputs` counts samples, or their patch rows."""
    # positions are [3, B, N]
    return int(jax.tree_util.keystr(path, simple=True, separator="/") == "layout/positions")


def align_rows(inputs: Inputs, mesh: Mesh | None, merge_area: int) -> Inputs:
    """Put the patch rows of each sample on the devices that will hold the sample.

    Samples a and c have two images, data=2:

        samples   a b | c d         rows   a a c | c   ->   a a | c c
        shard      0  |  1                   0     1         0     1

    Inputs that lie on several devices already are left alone, as are batches that do not divide.

    Args:
        inputs: a padded batch.
        mesh: that `place_inputs` will split it over.
        merge_area: patches that become one visual token.
    """
    shards = mesh.shape["data"] if mesh else 1
    B, V = inputs.visual_source.shape
    placed = isinstance(inputs.patches, jax.Array) and len(inputs.patches.devices()) > 1
    if shards == 1 or B % shards or V == 0 or placed:
        return inputs
    source, valid = np.asarray(inputs.visual_source), np.asarray(inputs.layout.visual_valid)
    width = inputs.patches.shape[1] // merge_area
    row = source // width
    used = [np.unique(row[part][valid[part]]) for part in np.split(np.arange(B), shards)]
    count = max(1, *map(len, used))
    # Where each row goes; a row that two shards use goes to both.
    order = np.full((shards, count), len(inputs.patches))
    for target, rows in zip(order, used, strict=True):
        target[: len(rows)] = rows
    moved = np.zeros_like(source)
    for sample in range(B):
        shard = sample * shards // B
        place = np.searchsorted(used[shard], row[sample]) + shard * count
        moved[sample] = np.where(valid[sample], place * width + source[sample] % width, 0)

    def take(rows: Any, fill: int) -> np.ndarray:
        padded = np.concatenate([rows, np.full_like(rows[:1], fill)])
        return padded[order.ravel()]

    return inputs.replace(
        patches=take(np.asarray(inputs.patches), 0),
        patch_positions=take(np.asarray(inputs.patch_positions), -1),
        visual_source=moved,
    )
