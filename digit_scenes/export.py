"""Write a model as a Hugging Face checkpoint directory of its family."""

import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from digit_scenes import files, tokenizer
from digit_scenes.setting import Setting
from ivc_jax.config import ModelConfig
from ivc_jax.families import find_family
from ivc_jax.families.llava import LLAVA
from ivc_jax.nn import tower
from ivc_jax.weights.keymap import to_hf_names


def list_tensors(config: ModelConfig, params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the tensors of {"vision", "decoder"} parameters under published names."""
    halves = {"vision": params["vision"], "decoder": params["decoder"]}
    named = to_hf_names(halves, config, find_family(config.family).rules)
    tensors = dict(named)
    if config.family == "llava":
        # transformers builds one block behind the feature, which nobody reads: it adds nothing
        unread = dataclasses.replace(config.vision, depth=1)
        block = tower.init_params(unread, jax.random.key(0))["blocks"]
        silent = {"vision": {"blocks": jax.tree.map(jnp.zeros_like, block)}}
        behind = to_hf_names(silent, dataclasses.replace(config, vision=unread), LLAVA.rules)
        tensors |= dict(behind)
        norm = "vision_tower.vision_model.post_layernorm"
        width = np.zeros(config.vision.embed_dim, np.float32)
        tensors |= {f"{norm}.weight": width + 1, f"{norm}.bias": width}
    return tensors


def write(
    setting: Setting,
    params: dict[str, Any],
    folder: pathlib.Path,
    *,
    card: str = "",
    log: pathlib.Path | None = None,
) -> None:
    """Write {"vision", "decoder"} parameters as a checkpoint directory (see `write_folder`)."""
    words = tokenizer.build(setting.grid)
    ids = tokenizer.find_special_ids(words)
    settings = files.make_config(setting, ids, words.get_vocab_size())
    config = find_family(settings).read_config(settings)
    others = files.make_processor_files(setting, ids)
    written = {"config.json": settings, **others}
    write_folder(folder, list_tensors(config, params), words, written, card=card, log=log)


def write_folder(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    words: Tokenizer,
    settings: Mapping[str, dict[str, Any]],
    *,
    card: str = "",
    log: pathlib.Path | None = None,
) -> None:
    """Write a checkpoint directory, tensors as float32.

    It appears in one step: readers see the old one or the new one, whole.

    Args:
        settings: contents of the JSON files, by name.
        card: text of README.md.
        log: training log to put beside the weights.
    """
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    fresh.chmod(0o755)
    try:
        weights = fresh / "model.safetensors"
        floats = {name: array.astype(np.float32) for name, array in tensors.items()}
        save_file(floats, weights, metadata={"format": "pt"})
        weights.chmod(0o644)
        tokenizer.save(words, fresh)
        for name, content in settings.items():
            (fresh / name).write_text(json.dumps(content, indent=2) + "\n")
        (fresh / "README.md").write_text(card)
        if log is not None and log.exists():
            shutil.copyfile(log, fresh / "training_log.jsonl")
        old = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
