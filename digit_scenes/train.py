"""Train one model from nothing; kill it and run it again to go on where it was.

    python -m digit_scenes.train --out RUN --setting sections --seed 0

Two stages: the tower on single cells, and the decoder on packed questions about scenes of cells
that the frozen tower has encoded, lesson by lesson. RUN receives Orbax checkpoints by stage,
`training_log.jsonl`, and a Hugging Face checkpoint (`--export-to`).
"""

import argparse
import dataclasses
import pathlib

import jax
import numpy as np

from digit_scenes import answering, card, digits, export, loop, tokenizer, tower
from digit_scenes.files import read_config
from digit_scenes.loop import Params
from digit_scenes.scenes import Cells, draw_cells
from digit_scenes.setting import SETTINGS, Setting
from ivc_jax.config import ModelConfig

# Cells with a digit, and without. So many to train on because a tower errs on unseen digits for
# want of examples: docs/log.md has the difference that four times as many made.
_CELLS = {"train": (131072, 16384), "test": (4096, 2048)}


def read_arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--export-to", type=pathlib.Path, help="checkpoint folder; default OUT/hf")
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="bundled")
    parser.add_argument("--seed", type=int, default=0)
    numbers = parser.add_argument_group("numbers", "without a flag, the setting's")
    for name in ("grid", "layers", "steps-tower", "steps", "rows"):
        numbers.add_argument(f"--{name}", type=int)
    return parser


def choose_setting(options: argparse.Namespace) -> Setting:
    """Return the setting that the command line names, with the numbers it changes."""
    fields = {field.name for field in dataclasses.fields(Setting)}
    changed = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    return dataclasses.replace(SETTINGS[options.setting], **changed)


def claim(out: pathlib.Path, setting: Setting, seed: int) -> None:
    """Reserve a run's folder for one setting and seed: stages of two do not mix.

    Raises:
        ValueError: the folder holds another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    mark, wanted = out / "setting.txt", f"{setting} seed={seed}\n"
    if mark.exists() and mark.read_text() != wanted:
        raise ValueError(f"{out} holds another run, {mark.read_text().strip()}; choose another one")
    mark.write_text(wanted)


def make_config(setting: Setting) -> ModelConfig:
    """Return the sizes of a setting's model."""
    words = tokenizer.build(setting.grid)
    return read_config(setting, tokenizer.find_special_ids(words), words.get_vocab_size())


def draw_bank(split: str, seed: int) -> Cells:
    """Draw the cells that a run trains on, or those that it is tested on."""
    random = np.random.default_rng((("train", "test").index(split), seed))
    return draw_cells(random, digits.load(split), *_CELLS[split])


def train(setting: Setting, out: pathlib.Path, seed: int) -> Params:
    """Run both stages; return {"vision", "heads", "decoder"}."""
    claim(out, setting, seed)
    words = tokenizer.build(setting.grid)
    config = make_config(setting)
    cells, unseen = draw_bank("train", seed), draw_bank("test", 0)
    tower_key, decoder_key = jax.random.split(jax.random.key(seed))
    params = tower.init_params(config.vision, tower_key)
    stage = tower.make_stage(config.vision, setting.steps_tower, cells, unseen, seed)
    params = loop.run(stage, params, out, evaluate_every=100)
    params["vision"] = tower.centre(config.vision, params["vision"], unseen)
    params["decoder"] = answering.init_decoder(config, decoder_key)
    banks = [(bank, tower.encode_bank(config.vision, params["vision"], bank))
             for bank in (cells, unseen)]  # fmt: skip
    for lesson in setting.course:
        stage = answering.make_stage(setting, config, words, *banks, lesson, seed)
        params = loop.run(stage, params, out, evaluate_every=100)
    return params


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    options = read_arguments().parse_args(argv)
    setting = choose_setting(options)
    params = train(setting, options.out, options.seed)
    log = options.out / "training_log.jsonl"
    config = make_config(setting)
    export.write(
        setting,
        params,
        options.export_to or options.out / "hf",
        card=card.compose(setting, config, log, options.seed),
        log=log,
    )


if __name__ == "__main__":
    main()
