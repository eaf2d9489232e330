"""Mesh over `data` and `model`, and a table that shards parameters by path.

Attention and feed-forward layers are split in the Megatron way: the first projection by columns,
the second by rows, so that a block needs one reduction for each. Batches are split over `data`
(`parallel.batch`).
"""

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_log = logging.getLogger(__name__)

AXES = ("data", "model")

# Weights lie as [out, in]: columns of the product are rows here.
_COLUMNS = PartitionSpec("model", None)
_ROWS = PartitionSpec(None, "model")
_COLUMN_BIAS = PartitionSpec("model")  # [out]
_EXPERTS = PartitionSpec("model", None, None)  # [E, out, in]: whole experts

# The first pattern found in the path wins; what no pattern names is replicated.
PARAM_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"decoder/embed_tokens/embedding$", _COLUMNS),  # [vocab, D]
    (r"decoder/lm_head/weight$", _COLUMNS),  # [vocab, D]
    (r"decoder/layers/\d+/(q|k|v)_proj/weight$", _COLUMNS),
    (r"decoder/layers/\d+/(q|k|v)_proj/bias$", _COLUMN_BIAS),
    (r"decoder/layers/\d+/latent/(q|q_b|k_b|v_b)_proj/weight$", _COLUMNS),  # whole heads
    (r"decoder/layers/\d+/o_proj/weight$", _ROWS),
    (r"decoder/layers/\d+/mlp/(shared_experts/)?(gate|up)_proj/weight$", _COLUMNS),
    (r"decoder/layers/\d+/mlp/(shared_experts/)?down_proj/weight$", _ROWS),
    (r"decoder/layers/\d+/mlp/experts/\w+/weight$", _EXPERTS),
    (r"vision/blocks/\d+/attn/(q|k|v)_proj/weight$", _COLUMNS),
    (r"vision/blocks/\d+/attn/(q|k|v)_proj/bias$", _COLUMN_BIAS),
    # Queries, keys and values are fused here, so a shard does not hold whole heads of each.
    (r"vision/blocks/\d+/(attn/qkv|mlp/fc1|mlp/gate_proj|mlp/up_proj)/weight$", _COLUMNS),
    (r"vision/blocks/\d+/(attn/qkv|mlp/fc1|mlp/gate_proj|mlp/up_proj)/bias$", _COLUMN_BIAS),
    (r"vision/blocks/\d+/(attn/proj|mlp/fc2|mlp/down_proj)/weight$", _ROWS),
    (r"vision/(merger|deepstack/\d+)/mlp/fc1/weight$", _COLUMNS),
    (r"vision/(merger|deepstack/\d+)/mlp/fc1/bias$", _COLUMN_BIAS),
    (r"vision/(merger|deepstack/\d+)/mlp/fc2/weight$", _ROWS),
)


def parse_mesh(text: str) -> dict[str, int]:
    """Read the sizes of a mesh, such as "data=4,model=2"; an axis that is not named has size 1.

    Returns:
        The arguments `data` and `model` of `make_mesh`.

    Raises:
        ValueError: another spelling.
    """
    sizes = dict.fromkeys(AXES, 1)
    fields = [part.strip().partition("=") for part in text.split(",")]
    named = {name: number for name, _, number in fields}
    known = len(named) == len(fields) and named.keys() <= sizes.keys()
    if not known or not all(number.isdecimal() for number in named.values()):
        raise ValueError(f"mesh {text!r} must look like data=4,model=2")
    return sizes | {name: int(number) for name, number in named.items()}


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
    return jax.make_mesh((data, model), AXES, axis_types=kinds, devices=chosen)


def find_spec(path: str) -> PartitionSpec:
    """Return the partition of the parameter at a slash-separated path."""
    for pattern, spec in PARAM_RULES:
        if re.search(pattern, path):
            return spec
    return PartitionSpec()


def shard_param(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Return the sharding of a parameter; replicated, and logged, if a dimension does not divide.

    Args:
        path: slash-separated path in the parameter tree.
        shape: of the whole parameter, of one block.
    """
    spec = find_spec(path)
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            every = re.sub(r"/\d+/", "/*/", path)
            _note_replicated(every, shape, size, mesh.shape[axis], axis)
            return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, spec)


@functools.cache  # one note for all blocks, and for a model that is loaded again
def _note_replicated(path: str, shape: tuple[int, ...], size: int, devices: int, axis: str) -> None:
    _log.warning(
        "%s %s is replicated: %d does not divide over %d devices of axis %r",
        *(path, shape, size, devices, axis),
    )
