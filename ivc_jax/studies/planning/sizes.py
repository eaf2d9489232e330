"""Finds the sizes of a model without its weights."""

import json
import pathlib

from ivc_jax.config import ModelConfig, from_hf
from ivc_jax.presets import PRESETS
from ivc_jax.weights.source import CheckpointError, read_config, read_json


def find_config(name: str) -> ModelConfig:
    """Read sizes by the name of a preset, from a config.json, a checkpoint folder or the hub.

    Raises:
        CheckpointError: nothing of that name.
        ConfigError: an architecture that is not supported.
    """
    if name.lower() in PRESETS:
        return from_hf(PRESETS[name.lower()])
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return read_config(path)
    if path.is_file():
        return from_hf(read_json(path))
    if name.count("/") != 1 or path.suffix == ".json":
        known = ", ".join(PRESETS)
        raise CheckpointError(
            f"{name} is no file, no folder and no hub id (owner/name); known sizes: {known}"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CheckpointError(
            f"{name} is no local folder; to fetch it from the hub, pip install huggingface_hub"
        ) from None
    try:
        return from_hf(json.loads(pathlib.Path(hf_hub_download(name, "config.json")).read_text()))
    except OSError as error:  # network, access and naming errors
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"fetching config.json of {name} failed: {reason}") from error
