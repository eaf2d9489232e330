"""Finds the sizes of a model without its weights."""

import json
import pathlib
from typing import Any

from ivc_jax import model
from ivc_jax.config import ModelConfig
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.weights.source import CheckpointError, read_json


def find_config(name: str) -> ModelConfig:
    """Read sizes by a published name, from a config.json, a checkpoint folder or the hub.

    Raises:
        CheckpointError: nothing of that name.
        ConfigError: an architecture that is not supported.
    """
    # Published names come first: they need no network and no file.
    known = list_sizes()
    if name.lower() in known:
        return parse_config(known[name.lower()])
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return model.read_config(path)
    if path.is_file():
        return _parse_alone(read_json(path))
    if name.count("/") != 1 or path.suffix == ".json":
        raise CheckpointError(
            f"{name} is no file, no folder and no hub id (owner/name); known sizes:"
            f" {', '.join(known)}"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CheckpointError(
            f"{name} is no local folder; to fetch it from the hub, pip install huggingface_hub"
        ) from None
    try:
        return _parse_alone(
            json.loads(pathlib.Path(hf_hub_download(name, "config.json")).read_text())
        )
    except OSError as error:  # network, access and naming errors
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"fetching config.json of {name} failed: {reason}") from error


def _parse_alone(content: dict[str, Any]) -> ModelConfig:
    """Read a config.json without its tokenizer: which token stands for images does not matter."""
    return parse_config({"image_token_id": 0} | content)
