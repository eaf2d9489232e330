"""Checkpoints of the recipe with random weights."""

import dataclasses
import pathlib

import jax

from digit_scenes import export, files, tower
from digit_scenes import tokenizer as words
from digit_scenes.setting import SETTINGS
from ivc_jax.nn import decoder


def write_checkpoint(folder: pathlib.Path, kind: str, grid: int, layers: int) -> pathlib.Path:
    """Write a model of a kind for a small grid; return its folder."""
    setting = dataclasses.replace(SETTINGS[kind], grid=grid, layers=layers)
    tokenizer = words.build(grid)
    config = files.read_config(
        setting, words.find_special_ids(tokenizer), tokenizer.get_vocab_size()
    )
    params = jax.jit(lambda key: decoder.init_params(config, key))(jax.random.key(1))
    params["vision"] = tower.init_params(config.vision, jax.random.key(0))["vision"]
    export.write(setting, params, folder / "hf")
    return folder / "hf"
