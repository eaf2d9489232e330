"""Write a model as a Hugging Face checkpoint directory of its family."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from digit_cells import files, tokenizer
from digit_cells.setting import Setting
from digit_scenes.export import write_folder
from digit_scenes.tokenizer import find_special_ids
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
    ids = find_special_ids(words)
    settings = files.make_config(setting, ids, words.get_vocab_size())
    config = find_family(settings).read_config(settings)
    others = files.make_processor_files(setting, ids)
    written = {"config.json": settings, **others}
    tensors, template = list_tensors(config, params), tokenizer.CHAT_TEMPLATE
    write_folder(folder, tensors, words, written, card=card, log=log, template=template)
