"""Tiny random checkpoints as Hugging Face directories, made offline."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from families import deepseek, internvl, internvl_chat, llava, qwen, qwen3
from safetensors.numpy import save_file

from ivc_jax.families import find_family, parse_config
from ivc_jax.nn.decoder import init_params
from ivc_jax.weights import keymap

# What the files of each family look like: a module with `config`, `new_name` and
# `write_processor_files`.
FILES: dict[str, ModuleType] = {
    **{"qwen2_vl": qwen, "qwen2_5_vl": qwen, "qwen3_vl": qwen3},
    "llava": llava,
    **dict.fromkeys(("deepseek_vl2", "deepseek_vl2_tiny", "deepseek_vl2_base"), deepseek),
    **dict.fromkeys(("internvl", "internvl_6b"), internvl),
    **dict.fromkeys(("internvl_chat", "internvl_chat_6b"), internvl_chat),
}


QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def tiny_config(
    generation: str = "new", tied: bool = False, family: str = "qwen2_vl", **text: Any
) -> dict[str, Any]:
    """Return the `config.json` of a tiny model.

    Args:
        generation: "old" is the layout of the published checkpoints, "new" the later one.
        family: a key of `FILES`.
        text: decoder sizes to change, under their Hugging Face names.
    """
    return FILES[family].config(family, generation, tied, **text)


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw float32 tensors under the published names, none of them near its usual start value."""
    sizes = parse_config(config)
    shapes = jax.eval_shape(lambda: init_params(sizes, jax.random.key(0)))
    rules = find_family(config).rules
    expected, draw = keymap.list_targets(shapes, rules), np.random.default_rng(seed)
    tensors = {}
    for name, shape in keymap.list_shapes(shapes, sizes, rules).items():
        path = expected[name][0].rule.path
        values = draw.standard_normal(shape, dtype=np.float32)
        if path.endswith("scale"):
            values = 1 + 0.3 * values  # norms: neither one nor near zero
        elif path.endswith("bias"):
            values = 0.3 * values
        elif not path.endswith("embedding"):
            values *= np.float32(np.prod(shape[1:])) ** -0.5
        tensors[name] = values
    return tensors


def write_tensors(folder: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """Save tensors as `model.safetensors`, or as several shards and their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    *,
    family: str = "qwen2_vl",
    generation: str = "new",
    shards: int = 1,
    seed: int = 0,
) -> None:
    """Write a checkpoint directory with random tensors, their names of the same generation."""
    files, tensors = FILES[family], random_tensors(config, seed)
    if generation == "new":
        tensors = {files.new_name(name): tensor for name, tensor in tensors.items()}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tensors(folder, tensors, shards)
    files.write_processor_files(folder)
