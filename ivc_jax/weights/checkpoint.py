"""Saving and restoring converted checkpoints: the stacked tree in Orbax's format.

A converted directory holds `params/` (Orbax) next to the files that the Hugging Face directory had:

    config.json  tokenizer.json  preprocessor_config.json  ...  params/
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ivc_jax.config import ModelConfig
from ivc_jax.nn.decoder import Params
from ivc_jax.weights import keymap
from ivc_jax.weights.load import abstract_params
from ivc_jax.weights.source import CheckpointError

_log = logging.getLogger(__name__)
_FOLDER = "params"


def is_converted(folder: Path) -> bool:
    """Tell whether a directory holds a converted checkpoint."""
    return (folder / _FOLDER).is_dir()


def save_params(folder: Path, params: Params) -> None:
    """Write `folder/params` from a parameter tree on devices.

    Raises:
        OSError, ValueError: from Orbax, if the disk is full or the folder cannot be written.
    """
    limit = _gigabytes(leaf.nbytes for leaf in jax.tree.leaves(params))
    # Without a limit every array is copied to the host at once: a second model in memory.
    handler = ocp.PyTreeCheckpointHandler(save_device_host_concurrent_gb=limit)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute() / _FOLDER, args=ocp.args.PyTreeSave(params))


def restore_params(
    folder: Path, config: ModelConfig, dtype: np.dtype, mesh: Mesh | None = None
) -> Params:
    """Read `folder/params` straight to devices, cast and sharded while reading.

    Args:
        dtype: of every parameter, whatever was saved.
        mesh: devices to shard over, by the table of `ivc_jax.parallel`.

    Raises:
        CheckpointError: damaged files, or parameters that are missing, unused or misshaped; one
            error names them all.
    """
    start = time.perf_counter()
    path = folder.absolute() / _FOLDER
    abstract = abstract_params(config, dtype, mesh)
    stored = _stored(path)
    _check(folder, stored, keymap.flatten(abstract))
    # Orbax reads arrays side by side until this many bytes are on their way.
    limit = _gigabytes(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in stored.values())
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit)
    restore = ocp.args.PyTreeRestore(
        item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
    )
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            params = checkpointer.restore(path, args=restore)
    except jax.errors.JaxRuntimeError:
        raise  # the device's trouble (out of memory), not the file's
    except Exception as error:  # TensorStore's errors have no class of their own
        raise _damaged(path, error) from error
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    _log.info("restored %.2f GB in %.1f s", size / 1e9, time.perf_counter() - start)
    return params


def stored_dtype(folder: Path) -> str:
    """Return the name of the dtype that most bytes of `folder/params` are in."""
    sizes: dict[str, int] = {}
    for leaf in _stored(folder.absolute() / _FOLDER).values():
        sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + int(np.prod(leaf.shape))
    return max(sizes, key=sizes.__getitem__)


def _stored(path: Path) -> dict[str, Any]:
    """Return shape and dtype of every saved array by slash-separated path."""
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
        )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return CheckpointError(f"{path} is damaged or incomplete ({reason}); convert it again")


def _gigabytes(sizes: Any) -> int:
    # Orbax wants whole gigabytes and refuses an array of exactly the limit.
    return int(max(sizes) / 1e9) + 1
