"""Saving and restoring converted checkpoints: blocks apart, in Orbax's format.

A converted directory holds `params/` (Orbax) next to the files that the Hugging Face directory had:

    config.json  tokenizer.json  preprocessor_config.json  ...  params/
"""

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from ivc_jax.config import ModelConfig
from ivc_jax.nn.blocks import Params
from ivc_jax.weights import keymap
from ivc_jax.weights.load import HEAD
from ivc_jax.weights.placement import Placement
from ivc_jax.weights.source import CheckpointError

if TYPE_CHECKING:
    # Imported where it is needed: a quarter of a second, and most folders are not converted.
    import orbax.checkpoint as ocp

_log = logging.getLogger(__name__)
_FOLDER = "params"  # beside config.json and the tokenizer's files


def is_converted(folder: Path) -> bool:
    """Tell whether a directory holds a converted checkpoint."""
    return (folder / _FOLDER).is_dir()


def stores_head(folder: Path) -> bool:
    """Tell whether `folder/params` holds an output head: what was tied was saved without one.

    Raises:
        CheckpointError: damaged files.
    """
    return HEAD in _stored(folder.absolute() / _FOLDER)


def save_params(folder: Path, params: Params) -> None:
    """Write `folder/params` from a parameter tree on devices, blocks apart.

    Raises:
        OSError, ValueError: from Orbax, if the disk is full or the folder cannot be written.
    """
    import orbax.checkpoint as ocp

    # the largest array: one at a time
    limit = _gigabytes(leaf.nbytes for leaf in jax.tree.leaves(params))
    # Without a limit every array is copied to the host at once: a second model in memory.
    handler = ocp.PyTreeCheckpointHandler(save_device_host_concurrent_gb=limit)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            folder.absolute() / _FOLDER, args=ocp.args.PyTreeSave(_nested(keymap.flatten(params)))
        )


def restore_params(
    folder: Path,
    config: ModelConfig,
    dtype: np.dtype,
    mesh: Mesh | None = None,
    weights: str | None = None,
) -> Params:
    """Read `folder/params` straight to devices, cast and sharded while reading.

    Args:
        dtype: of every parameter, whatever was saved.
        mesh: devices to shard over, by the table of `ivc_jax.parallel.mesh`.
        weights: "int8" quantises the matrices of `ivc_jax.weights.quantize`, a block at a time.

    Raises:
        CheckpointError: damaged files, or parameters that are missing, unused or misshaped; one
            error names them all.
    """
    import orbax.checkpoint as ocp

    start = time.perf_counter()
    path = folder.absolute() / _FOLDER
    placement = Placement(config, dtype, mesh, weights)
    stored = _stored(path)  # shapes and dtypes alone; no array is read yet
    _check(folder, stored, placement.wanted)
    # Orbax reads arrays side by side until this many bytes are on their way.
    limit = _gigabytes(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in stored.values())
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            for wanted in _list_reads(placement, stored):
                for name, array in _read(checkpointer, path, wanted).items():
                    placement.put(name, array)
    except jax.errors.JaxRuntimeError:
        raise  # the device's trouble (out of memory), not the file's
    except Exception as error:  # TensorStore's errors have no class of their own
        raise _damaged(path, error) from error
    params = placement.finish()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    _log.info("restored %.2f GB in %.1f s", size / 1e9, time.perf_counter() - start)
    return params


def _list_reads(placement: Placement, stored: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the arrays of one block after the other, and of no block: what is read at once."""
    # What is quantised keeps the precision of the file until then.
    leaves = {
        name: jax.ShapeDtypeStruct(
            leaf.shape,
            stored[name].dtype if placement.quantizes(name) else leaf.dtype,
            sharding=leaf.sharding,
        )
        for name, leaf in placement.wanted.items()
    }
    if placement.takes_all:
        yield leaves
        return
    # The largest first, while little else is on the devices: beside the int8 arrays, or the stack,
    # those of one block (of a tower and of a decoder) are floats there.
    blocks: dict[Any, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        alone = name if placement.quantizes(name) and not keymap.find_block(name) else ""
        blocks.setdefault((alone, keymap.find_block(name)), {})[name] = leaf
    yield from sorted(blocks.values(), key=_count_bytes, reverse=True)


def _count_bytes(leaves: Mapping[str, Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())


def _read(
    checkpointer: "ocp.Checkpointer", path: Path, wanted: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Restore some arrays of what was saved."""
    import orbax.checkpoint as ocp

    tree = _nested(wanted)
    restore = ocp.args.PyTreeRestore(
        item=tree,
        restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
        partial_restore=True,
    )
    return keymap.flatten(checkpointer.restore(path, args=restore))


def _nested(leaves: Mapping[str, Any]) -> Params:
    """Turn leaves by slash-separated path into a tree of dictionaries."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = leaf
    return tree


def stored_dtype(folder: Path) -> str:
    """Return the name of the dtype that most bytes of `folder/params` are in."""
    sizes: dict[str, int] = {}
    for leaf in _stored(folder.absolute() / _FOLDER).values():
        sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + int(np.prod(leaf.shape))
    return max(sizes, key=sizes.__getitem__)


def _stored(path: Path) -> dict[str, Any]:
    """Return shape and dtype of every saved array by slash-separated path."""
    import orbax.checkpoint as ocp

    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata
    except Exception as error:  # any: the metadata is JSON that may be cut anywhere
        raise _damaged(path, error) from error
    if metadata is None:
        raise _damaged(path, ValueError("it has no metadata"))
    # ArrayMetadata is a leaf to JAX, whatever its type.
    return keymap.flatten(metadata.tree)


def _check(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    problems = [f"missing: {path}" for path in wanted if path not in stored]
    # Not excused here: we wrote the file, so nothing in it can be foreign.
    problems += [f"unused: {path} {stored[path].shape}" for path in stored if path not in wanted]
    for path in set(wanted) & set(stored):
        if tuple(stored[path].shape) != wanted[path].shape:
            problems.append(
                f"misshaped: {path} is {tuple(stored[path].shape)},"
                f" the config asks for {wanted[path].shape}"
            )
    if problems:
        raise CheckpointError(
            f"{folder} does not fit its config.json, {len(problems)} problem(s):\n  "
            + "\n  ".join(sorted(problems))
            # as for one whose blocks were stacked
            + "\nIf an earlier version of this package has written it, convert it again."
        )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return CheckpointError(f"{path} is damaged or incomplete ({reason}); convert it again")


def _gigabytes(sizes: Any) -> int:
    # Orbax wants whole gigabytes and refuses an array of exactly the limit.
    return int(max(sizes) / 1e9) + 1
