"""Modules that methods bring along: a safetensors file beside a model's own.

Its tensors are named by their place in the tree, "block_0/query/kernel"; one entry of its metadata
holds, as JSON, what reading them takes: sizes, and the model that the module was trained for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ivc_jax.weights.source import CheckpointError

FILE = "module.safetensors"  # in a folder that is named in its place
_SETTINGS = "module"  # entry of the metadata


def write_module(path: Path, params: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write a module; equal ones are equal files, and an interrupted one is none.

    Args:
        path: the file.
        params: nested dicts of arrays.
        settings: of JSON's kinds.
    """
    tensors = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    content = save(tensors, {_SETTINGS: json.dumps(settings, sort_keys=True)})
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)


def read_module(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a module: tensors by name, and the settings; {} where the file holds none.

    Raises:
        CheckpointError: no such file, or one that cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            settings = json.loads((file.metadata() or {}).get(_SETTINGS, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    return tensors, settings
