"""Train the bundled model from nothing; kill it and run it again to go on where it was.

    python -m digit_scenes.train --out RUN
    python -m digit_scenes.train --out RUN --begin-from digit_scenes/checkpoint   # last two stages
    python -m digit_scenes.train --out RUN --size large                           # an accelerator

Five stages: the tower on quarters of crowded canvases, the tower on whole canvases, the decoder on
cached visual tokens of the frozen tower, and the decoder twice again, on more scenes and taught how
counting can work. One more, tower and decoder together, is off by default (`setting.SMALL` says
why). Scenes, sizes and steps come from `digit_scenes.setting`. RUN receives Orbax checkpoints by
stage, `training_log.jsonl`, and a Hugging Face checkpoint (`--export-to`).
"""

import argparse
import dataclasses
import pathlib
import shutil

import jax
import numpy as np

import ivc_jax
from digit_scenes import answering, card, export, loop, tokenizer, tower
from digit_scenes.loop import Params
from digit_scenes.model import make_model_config
from digit_scenes.setting import SETTINGS, SMALL, Setting
from ivc_jax.config import ModelConfig
from ivc_jax.model import read_config
from ivc_jax.nn import decoder


def read_arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--export-to", type=pathlib.Path, help="checkpoint folder; default OUT/hf")
    parser.add_argument("--size", choices=tuple(SETTINGS), default=SMALL.name, help="the setting")
    numbers = parser.add_argument_group("numbers", "without a flag, the setting's")
    numbers.add_argument("--steps-quarters", type=int)
    numbers.add_argument("--steps-canvas", type=int)
    numbers.add_argument("--steps-decoder", type=int)
    numbers.add_argument("--steps-counting", type=int)
    numbers.add_argument("--steps-finish", type=int)
    numbers.add_argument("--steps-together", type=int, help="0 leaves the stage out")
    numbers.add_argument("--scenes", type=int, help="cached scenes of the decoder")
    numbers.add_argument("--scenes-counting", type=int, help="those of its last stages")
    numbers.add_argument("--rows", type=int, help="scenes in a step of the decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--begin-from",
        type=pathlib.Path,
        help="checkpoint folder whose weights and log stand in for the stages before the last two",
    )
    return parser


def choose_setting(options: argparse.Namespace) -> Setting:
    """Return the setting that the command line names, with the numbers it changes."""
    fields = {field.name for field in dataclasses.fields(Setting)}
    changed = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    return dataclasses.replace(SETTINGS[options.size], **changed)


def claim(out: pathlib.Path, setting: Setting) -> None:
    """Reserve a run's folder for one setting: stages and cached tokens of two do not mix.

    Raises:
        ValueError: the folder holds a run of another setting.
    """
    out.mkdir(parents=True, exist_ok=True)
    mark = out / "setting.txt"
    if mark.exists():
        held = mark.read_text().strip()
    else:  # runs from before there were settings have no such file
        held = SMALL.name if (out / "training_log.jsonl").exists() else setting.name
    if held != setting.name:
        raise ValueError(f"{out} holds a run of the setting {held!r}; choose another --out")
    mark.write_text(f"{setting.name}\n")


def train_tower(options: argparse.Namespace, setting: Setting) -> Params:
    """Run the two stages of the tower; return {"vision", "heads"}."""
    params = tower.init_params(setting.vision, jax.random.key(options.seed))
    stages = [
        tower.make_stage(setting, "tower_quarters", quarters=True, decay=0),
        tower.make_stage(setting, "tower_canvas", quarters=False, scale=0.7, decay=0.4),
    ]
    for stage in stages:
        params = loop.run(stage, params, options.out, log_every=10, evaluate_every=50)
    return params


def train_decoder(
    options: argparse.Namespace, setting: Setting, params: Params, config: ModelConfig
) -> Params:
    """Run the decoder's stage on a frozen tower; return {"vision", "heads", "decoder"}."""
    words = tokenizer.build()
    fresh = decoder.init_params(config, jax.random.key(options.seed + 1))["decoder"]
    fresh = answering.init_decoder(words, fresh, jax.random.key(options.seed + 2))
    start = np.random.default_rng
    sample = setting.make_scenes(start(5), 8, setting.digits, "train")
    pixels = np.stack([scene.pixels for scene in sample])
    params = {**params, "vision": answering.normalise(setting.vision, params["vision"], pixels)}
    scenes = setting.make_scenes(start(options.seed), setting.scenes, setting.digits, "train")
    unseen = setting.make_scenes(start(options.seed), 96, setting.digits, "test")
    stage = answering.make_frozen_stage(
        setting,
        "decoder",
        setting.steps_decoder,
        words,
        answering.Cache(setting, params["vision"], scenes, options.out / "visual_train.npy"),
        answering.Cache(setting, params["vision"], unseen, options.out / "visual_test.npy"),
    )
    params = {**params, "decoder": fresh}
    return loop.run(stage, params, options.out, log_every=10, evaluate_every=100)


def train_counting(options: argparse.Namespace, setting: Setting, params: Params) -> Params:
    """Run the decoder's two last stages: more scenes, and one head is shown how to count."""
    words = tokenizer.build()
    random, out, vision = np.random.default_rng(options.seed + 3), options.out, params["vision"]
    scenes = setting.make_scenes(random, setting.scenes_counting, setting.digits, "train")
    unseen = setting.make_scenes(random, 192, setting.digits, "test")
    seen = answering.Cache(setting, vision, scenes, out / "visual_counting_train.npy")
    held_out = answering.Cache(setting, vision, unseen, out / "visual_counting_test.npy")
    rounds = (
        ("decoder_counting", setting.steps_counting, 0.4, 0.6, 3),
        ("decoder_finish", setting.steps_finish, 0.3, 0.8, 4),
    )
    for name, steps, scale, decay, seed in rounds:
        stage = answering.make_frozen_stage(
            setting,
            name,
            steps,
            words,
            seen,
            held_out,
            questions=answering.COUNTING_QUESTIONS,
            scale=scale,
            decay=decay,
            count_weight=1.0,
            seed=seed,
        )
        params = loop.run(stage, params, options.out, log_every=10, evaluate_every=100)
    return params


def begin_from(folder: pathlib.Path, out: pathlib.Path, config: ModelConfig) -> Params:
    """Read the weights of a checkpoint; its log becomes the beginning of this run's.

    Raises:
        ValueError: its sizes are not those of the setting.
    """
    if read_config(folder) != config:
        raise ValueError(f"{folder} has other sizes than the setting; choose its --size")
    model, _ = ivc_jax.load(folder, dtype="float32")
    log = out / "training_log.jsonl"
    if not log.exists():
        shutil.copyfile(folder / log.name, log)
    return model.params


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    options = read_arguments().parse_args(argv)
    setting = choose_setting(options)
    if options.begin_from and setting.steps_together:
        raise ValueError("--begin-from and --steps-together: a checkpoint lacks the tower's heads")
    claim(options.out, setting)
    target = options.export_to or options.out / "hf"
    words = tokenizer.build()
    config = make_model_config(setting, tokenizer.find_special_ids(words), words.get_vocab_size())
    if options.begin_from:
        params = begin_from(options.begin_from, options.out, config)
    else:
        params = train_tower(options, setting)
        params = train_decoder(options, setting, params, config)
    params = train_counting(options, setting, params)
    log = options.out / "training_log.jsonl"
    export.write(setting, params, target, card=card.compose(setting, config, log), log=log)
    if setting.steps_together:
        stage = answering.make_joint_stage(setting, "together", setting.steps_together, words)
        params = loop.run(stage, params, options.out, log_every=10, evaluate_every=60)
        export.write(setting, params, target, card=card.compose(setting, config, log), log=log)


if __name__ == "__main__":
    main()
