"""Streaming parameters from safetensors to devices, one tensor at a time.

A stacked parameter is allocated on its devices once and filled layer by layer:

    stack [L, in, out]   0 0 0 0      write_layer(stack, tensor, 1), stack donated
                         0 1 0 0      -> the same buffer, no second stack anywhere
"""

import functools
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from ivc_jax.config import ModelConfig
from ivc_jax.nn.decoder import Params, init_params
from ivc_jax.nn.layers import is_quantized
from ivc_jax.parallel.mesh import shard_param
from ivc_jax.weights import keymap, quantize
from ivc_jax.weights.source import CheckpointError, TensorFiles

_log = logging.getLogger(__name__)


def abstract_params(config: ModelConfig, dtype: np.dtype, mesh: Mesh | None = None) -> Params:
    """Return the parameter tree as `jax.ShapeDtypeStruct` leaves with shardings.

    Without a mesh every leaf lives on the default device.
    """
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    # jax.devices() lists every host's devices; the first local one is where a lone array goes.
    alone = SingleDeviceSharding(jax.local_devices()[0])

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        sharding = shard_param(name, leaf.shape, mesh) if mesh else alone
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def load_safetensors(
    folder: Path,
    config: ModelConfig,
    dtype: np.dtype,
    mesh: Mesh | None = None,
    weights: str | None = None,
) -> Params:
    """Load a Hugging Face directory into a parameter tree on devices.

    Args:
        dtype: of every parameter, whatever the files hold.
        mesh: devices to shard over, by the table of `ivc_jax.parallel.mesh`.
        weights: "int8" quantises the kernels of `ivc_jax.weights.quantize` as each one arrives.

    Raises:
        CheckpointError: unreadable files, or tensors that are missing, unused, misshaped, given
            twice or of a dtype that is not a float; one error names them all.
    """
    start = time.perf_counter()
    files = TensorFiles(folder)
    abstract = abstract_params(config, dtype, mesh)
    targets = _match(files, abstract, config, folder)
    leaves: dict[str, Any] = {
        path: quantize.abstract_kernel(leaf) if weights and quantize.is_kernel(path) else leaf
        for path, leaf in keymap.flatten(abstract).items()
    }
    for name, target in targets.items():
        path = target.rule.path
        leaves[path] = _place(files, name, target, leaves[path])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(leaves))
    seconds = time.perf_counter() - start
    _log.info("loaded %d tensors, %.2f GB, in %.1f s", len(targets), size / 1e9, seconds)
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves.values())


def _match(
    files: TensorFiles, abstract: Params, config: ModelConfig, folder: Path
) -> dict[str, keymap.Target]:
    """Pair tensors with parameters; collect everything that does not fit into one error."""
    leaves = keymap.flatten(abstract)
    wanted = {target: name for name, target in keymap.expected_tensors(abstract)}
    found: dict[keymap.Target, str] = {}
    problems = []
    for name, header in files.headers.items():
        target = keymap.find_target(name)
        if target not in wanted:
            if not keymap.is_excused(name, config):
                problems.append(f"unused: {name} {header.shape}")
            continue
        if target in found:
            problems.append(f"given twice: {name} and {found[target]}")
        found[target] = name
        shape = leaves[target.rule.path].shape[target.rule.stacked :]
        shape = target.rule.transform.hf_shape(shape, config)
        if header.shape != shape:
            problems.append(f"misshaped: {name} is {header.shape}, the config asks for {shape}")
        if files.dtype_name(name) is None:
            problems.append(f"unsupported dtype: {name} is {header.dtype}")
    problems += [f"missing: {name}" for target, name in wanted.items() if target not in found]
    if problems:
        raise CheckpointError(
            f"{folder} does not fit its config.json, {len(problems)} problem(s):\n  "
            + "\n  ".join(sorted(problems))
        )
    return {name: target for target, name in found.items()}


def _place(files: TensorFiles, name: str, target: keymap.Target, leaf: Any) -> Any:
    """Read one tensor to its devices; return the parameter that it belongs to.

    `leaf` is abstract until the first tensor of its stack arrives.
    """
    stacked, quantized = target.layer is not None, is_quantized(leaf)
    sharding = (leaf.qvalue if quantized else leaf).sharding
    # What is quantised keeps the precision of the file until then.
    dtype = None if quantized else leaf.dtype

    def read(index: tuple[slice, ...]) -> np.ndarray:
        values = files.read(name, target.rule.transform, index)
        return np.ascontiguousarray(values, dtype=dtype)

    sharding = _layer_sharding(sharding) if stacked else sharding
    array = jax.make_array_from_callback(leaf.shape[stacked:], sharding, read)
    array = quantize.quantize(array) if quantized else array
    if stacked:
        array = jax.tree.map(functools.partial(_write, target.layer), leaf, array)
    # One tensor in flight: transfers that queue up would each hold a host copy.
    return jax.block_until_ready(array)


def _write(index: int, stack: Any, layer: jax.Array) -> jax.Array:
    """Write one layer into its stack, which is allocated if it is abstract yet."""
    if isinstance(stack, jax.ShapeDtypeStruct):
        stack = jnp.zeros(stack.shape, stack.dtype, device=stack.sharding)
    return _layer_writer(stack.sharding)(stack, layer, index)


def _layer_sharding(sharding: Sharding) -> Sharding:
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


@functools.cache
def _layer_writer(sharding: Sharding) -> Any:
    def write(stack: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
        # As integers: XLA's CPU back end rewrites the whole stack to update it in half precision.
        kind = jnp.dtype(f"uint{8 * stack.dtype.itemsize}")
        stack_bits, layer_bits = (jax.lax.bitcast_convert_type(x, kind) for x in (stack, layer))
        written = jax.lax.dynamic_update_index_in_dim(stack_bits, layer_bits, index, 0)
        return jax.lax.bitcast_convert_type(written, stack.dtype)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
