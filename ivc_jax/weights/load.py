"""Streaming parameters from safetensors to devices, one tensor at a time.

A stacked parameter is allocated on its devices once and filled layer by layer:

    stack [L, in, out]   0 0 0 0      _write((1,), stack, tensor), stack donated
                         0 1 0 0      -> the same buffer, no second stack anywhere
"""

import functools
import logging
import re
import time
from collections.abc import Sequence
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
from ivc_jax.weights.keymap import Rule, Target
from ivc_jax.weights.source import CheckpointError, TensorFiles

_log = logging.getLogger(__name__)
HEAD, EMBEDDING = "decoder/lm_head/kernel", "decoder/embed_tokens/embedding"


def abstract_params(config: ModelConfig, dtype: np.dtype, mesh: Mesh | None = None) -> Params:
    """Return the parameter tree as `jax.ShapeDtypeStruct` leaves with shardings.

    Without a mesh every leaf lives on the default device.
    """
    # nothing is allocated: the shapes alone
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    # jax.devices() lists every host's devices; the first local one is where a lone array goes.
    alone = SingleDeviceSharding(jax.local_devices()[0])

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        sharding = shard_param(name, leaf.shape, mesh) if mesh else alone
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def stores_head(folder: Path, rules: Sequence[Rule]) -> bool:
    """Tell whether a Hugging Face directory holds an output head that is not the embedding again.

    Raises:
        CheckpointError: unreadable files.
    """
    files = TensorFiles(folder)
    heads, embeddings = (_list_names(files, path, rules) for path in (HEAD, EMBEDDING))
    return bool(heads and embeddings) and not files.equal(heads[0], embeddings[0])


def _list_names(files: TensorFiles, path: str, rules: Sequence[Rule]) -> list[str]:
    """List the tensors that become the parameter at `path`."""
    return [
        name
        for name in files.headers
        if any(target.rule.path == path for target in keymap.find_targets(name, rules))
    ]


def load_safetensors(
    folder: Path,
    config: ModelConfig,
    dtype: np.dtype,
    mesh: Mesh | None = None,
    weights: str | None = None,
    *,
    rules: Sequence[Rule],
    excused: str = "",
) -> Params:
    """Load a Hugging Face directory into a parameter tree on devices.

    Args:
        folder: the directory.
        config: of the model.
        dtype: of every parameter, whatever the files hold.
        mesh: devices to shard over, by the table of `ivc_jax.parallel.mesh`.
        weights: "int8" quantises the kernels of `ivc_jax.weights.quantize` as each one arrives.
        rules: tensors and the parameters that they become.
        excused: regex of tensors that may be there without anybody reading them.

    Raises:
        CheckpointError: unreadable files, or tensors that are missing, unused, misshaped, given
            twice or of a dtype that is not a float; one error names them all.
    """
    start = time.perf_counter()
    files = TensorFiles(folder)
    abstract = abstract_params(config, dtype, mesh)
    targets = _match(files, abstract, config, folder, rules, re.compile(excused))
    # path -> abstract leaf, and from its first tensor on the array
    leaves: dict[str, Any] = {
        path: quantize.abstract_kernel(leaf) if weights and quantize.is_kernel(path) else leaf
        for path, leaf in keymap.flatten(abstract).items()
    }
    for target, name in targets.items():
        path = target.rule.path
        leaves[path] = _place(files, name, target, leaves[path], config)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(leaves))
    seconds = time.perf_counter() - start
    _log.info("loaded %d tensors, %.2f GB, in %.1f s", len(targets), size / 1e9, seconds)
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves.values())


def _match(
    files: TensorFiles,
    abstract: Params,
    config: ModelConfig,
    folder: Path,
    rules: Sequence[Rule],
    excused: re.Pattern[str],
) -> dict[Target, str]:
    """Pair parameters with tensors; collect everything that does not fit into one error."""
    leaves = keymap.flatten(abstract)
    expected = keymap.list_targets(abstract, rules)
    # every slot that must be filled, once
    wanted = {target: name for name, targets in expected.items() for target in targets}
    found: dict[Target, str] = {}
    problems = []
    # Of a tied checkpoint that stores the head alone, it is the embedding.
    alone = config.decoder.tie_embeddings and not _list_names(files, EMBEDDING, rules)
    # All problems are collected: a wrong config is seen at once from the list of names.
    for name, header in files.headers.items():
        all_targets = keymap.find_targets(name, rules)
        if alone and any(target.rule.path == HEAD for target in all_targets):
            all_targets = tuple(target for target in wanted if target.rule.path == EMBEDDING)
        targets = [target for target in all_targets if target in wanted]
        if not targets:
            # A tied checkpoint sometimes repeats the embedding under the name of the output head.
            is_head = any(target.rule.path == HEAD for target in all_targets)
            tied_head = is_head and config.decoder.tie_embeddings
            if not tied_head and not excused.fullmatch(name):
                problems.append(f"unused: {name} {header.shape}")
            continue
        if targets[0] in found:
            problems.append(f"given twice: {name} and {found[targets[0]]}")
        found |= dict.fromkeys(targets, name)
        shape = keymap.join_shapes(targets, leaves, config)
        if header.shape != shape:
            problems.append(f"misshaped: {name} is {header.shape}, the config asks for {shape}")
        if files.dtype_name(name) is None:
            problems.append(f"unsupported dtype: {name} is {header.dtype}")
    missing = {name for target, name in wanted.items() if target not in found}
    problems += [f"missing: {name}" for name in missing]
    if problems:
        raise CheckpointError(
            f"{folder} does not fit its config.json, {len(problems)} problem(s):\n  "
            + "\n  ".join(sorted(problems))
        )
    return found


def _place(files: TensorFiles, name: str, target: Target, leaf: Any, config: ModelConfig) -> Any:
    """Read one tensor, or its rows, to its devices; return the parameter that it belongs to.

    `leaf` is abstract until the first tensor of its stack arrives.
    """
    rule, quantized = target.rule, is_quantized(leaf)
    sharding = (leaf.qvalue if quantized else leaf).sharding
    # What is quantised keeps the precision of the file until then.
    dtype = None if quantized else leaf.dtype
    rows = rule.rows and rule.rows(config)  # None: the whole tensor

    def read(index: tuple[slice, ...]) -> np.ndarray:
        # `index` is what one device holds of [in, out]: only that is read
        values = files.read(name, rule.transform, index, rows)
        return np.ascontiguousarray(values, dtype=dtype)

    if isinstance(sharding, NamedSharding):
        # of a layer: the axes of the stack are not split
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[rule.axes :]))
    # one layer, [in, out]
    array = jax.make_array_from_callback(leaf.shape[rule.axes :], sharding, read)
    array = quantize.quantize(array) if quantized else array
    if rule.axes:
        array = jax.tree.map(functools.partial(_write, target.index), leaf, array)
    # One tensor in flight: transfers that queue up would each hold a host copy.
    return jax.block_until_ready(array)


def _write(index: tuple[int, ...], stack: Any, layer: jax.Array) -> jax.Array:
    """Write one layer into its stack, which is allocated if it is abstract yet."""
    if isinstance(stack, jax.ShapeDtypeStruct):
        stack = jnp.zeros(stack.shape, stack.dtype, device=stack.sharding)
    return _layer_writer(stack.sharding)(stack, layer, index)  # donated: written in place


@functools.cache
def _layer_writer(sharding: Sharding) -> Any:
    def write(stack: jax.Array, layer: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        # As integers: XLA's CPU back end rewrites the whole stack to update it in half precision.
        kind = jnp.dtype(f"uint{8 * stack.dtype.itemsize}")
        stack_bits, layer_bits = (jax.lax.bitcast_convert_type(x, kind) for x in (stack, layer))
        layer_bits = jnp.expand_dims(layer_bits, tuple(range(len(index))))  # [1, (1,) ...]
        start = (*index, *[0] * layer.ndim)  # [axes of the stack] + whole layer
        written = jax.lax.dynamic_update_slice(stack_bits, layer_bits, start)
        return jax.lax.bitcast_convert_type(written, stack.dtype)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
