"""Streaming parameters from safetensors to devices, two tensors at a time."""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ivc_jax.config import ModelConfig
from ivc_jax.nn.blocks import Params
from ivc_jax.weights import keymap
from ivc_jax.weights.keymap import Rule, Target
from ivc_jax.weights.placement import Placement
from ivc_jax.weights.source import CheckpointError, TensorFiles

_log = logging.getLogger(__name__)
_READERS = 2
HEAD, EMBEDDING = "decoder/lm_head/weight", "decoder/embed_tokens/embedding"


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
        weights: "int8" quantises the matrices of `ivc_jax.weights.quantize` as each one arrives.
        rules: tensors and the parameters that they become.
        excused: regex of tensors that may be there without anybody reading them.

    Raises:
        CheckpointError: unreadable files, or tensors that are missing, unused, misshaped, given
            twice or of a dtype that is not a float; one error names them all.
    """
    start = time.perf_counter()
    files = TensorFiles(folder)
    placement = Placement(config, dtype, mesh, weights)
    targets = _match(files, placement.wanted, config, folder, rules, re.compile(excused))

    def read(item: tuple[Target, str]) -> jax.Array:
        return _read(files, item[1], item[0], placement, config)

    for target, array in zip(targets, _run_ahead(read, targets.items()), strict=True):
        placement.put(target.path, array, target.place)
    params = placement.finish()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    seconds = time.perf_counter() - start
    _log.info("loaded %d tensors, %.2f GB, in %.1f s", len(targets), size / 1e9, seconds)
    return params


def _match(
    files: TensorFiles,
    leaves: dict[str, jax.ShapeDtypeStruct],
    config: ModelConfig,
    folder: Path,
    rules: Sequence[Rule],
    excused: re.Pattern[str],
) -> dict[Target, str]:
    """Pair parameters with tensors; collect everything that does not fit into one error."""
    expected = keymap.list_targets(leaves, rules)
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


def _run_ahead(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield `function(item)` in order, at most two of them begun before they are asked for."""
    # A second core halves the time; more would be more tensors on the host.
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == _READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(
    files: TensorFiles, name: str, target: Target, placement: Placement, config: ModelConfig
) -> jax.Array:
    """Read one tensor, or its rows, to its devices."""
    rule, leaf = target.rule, placement.wanted[target.path]
    # What is quantised keeps the precision of the file until then.
    dtype = None if placement.quantizes(target.path) else leaf.dtype
    rows = rule.rows and rule.rows(config)  # None: the whole tensor

    def read(index: tuple[slice, ...]) -> np.ndarray:
        # `index` is what one device holds of [out, in]: only that is read
        return files.load(name, rule.transform, index, rows, dtype)

    shape, sharding = placement.part(target.path, rule.axes)  # of one expert: [out, in]
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, read))
