"""Both stages of the training, from checkpoint to checkpoint.

    OUT/settings.json          what this folder's run was started with
    OUT/imitation, OUT/tuning  Orbax checkpoints of the stages
    OUT/answers.jsonl          what the model itself said, where the second stage learns from that
    OUT/log.jsonl              loss by step
    OUT/module.safetensors     the result, and README.md, its card

A step depends on the seed, its number and the parameters before it: a run that was killed and is
started again ends with the same bytes as one that was not.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

from ivc_jax.engine.decode import generate
from ivc_jax.engine.modules import name_model
from ivc_jax.evals.running.records import write_atomically
from ivc_jax.methods.covipal import init_params
from ivc_jax.module_sizes import Sizes
from ivc_jax.studies.covipal.card import write_card
from ivc_jax.studies.covipal.data import Place, Rows, join_answers, join_prompts
from ivc_jax.studies.covipal.losses import Frozen
from ivc_jax.studies.covipal.settings import Training
from ivc_jax.weights.modules import FILE, write_module

Report = Callable[[str, int, int], None]  # stage, steps done, steps in all


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: what a step reads, and what it minimises."""

    name: str
    samples: int
    batch: int
    rate: float
    seed: tuple[int, int]
    load: Callable[[int], tuple]
    loss: Callable[..., jax.Array]

    @property
    def steps(self) -> int:
        """Steps until all samples were seen."""
        return -(-self.samples // self.batch)


def train(
    rows: Rows,
    sizes: Sizes,
    training: Training,
    out: pathlib.Path,
    *,
    command: str = "",
    origin: Mapping[str, Any] | None = None,
    save_every: int = 50,
    report: Report = lambda stage, done, total: None,
) -> pathlib.Path:
    """Train a module on these rows and write it; return its file.

    Args:
        out: folder of the run; one of the same settings goes on where it was.
        command: for the card.
        origin: what else tells runs apart, of JSON's kinds: the checkpoint, how it is read.
        save_every: steps from checkpoint to checkpoint.

    Raises:
        ValueError: the folder holds another run, or the settings do not fit the model.
    """
    config = rows.model.config
    training.choose_guide(config.decoder.num_layers)  # complain before any work
    if training.samples_2 and config.decoder.experts is not None:
        # they run in a loop whose length the tokens decide
        raise ValueError("no gradient goes back through experts; give --samples-2 0")
    _claim(out, rows, sizes, training, origin or {})
    frozen = Frozen(config, sizes, training)
    key = jax.random.key(training.seed)
    params = init_params(sizes, config.decoder.hidden_size, key)
    for stage in (_imitation(rows, frozen), _tuning(rows, frozen, out)):
        if stage.samples:
            params = run_stage(stage, params, rows, training, out, save_every, report)
    path = out / FILE
    said = {"model": name_model(config), "layer": training.layer, "sizes": vars(sizes)}
    write_card(out, rows, sizes, training, command)
    write_module(path, params, said)
    return path


def _claim(
    out: pathlib.Path, rows: Rows, sizes: Sizes, training: Training, origin: Mapping[str, Any]
) -> None:
    """Reserve the folder: checkpoints of two settings do not mix."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = {
        "model": name_model(rows.model.config),
        **origin,
        "module": vars(sizes),
        "training": vars(training) | {"ratios": list(training.ratios)},
        "rows": len(rows.places),
        "files": {entry.file.path.name: entry.file.fingerprint() for entry in rows.entries},
    }
    mark = out / "settings.json"
    if not mark.exists():
        write_atomically(mark, json.dumps(wanted, indent=1) + "\n")
        return
    held = json.loads(mark.read_text())
    changed = [name for name in wanted if held.get(name) != wanted[name]]
    for name in ("module", "training"):
        if name in changed:
            inner, own = held.get(name, {}), wanted[name]
            changed.remove(name)
            changed += [field for field in own if inner.get(field) != own[field]]
    if changed:
        raise ValueError(
            f"{out} holds a run of other settings ({', '.join(changed)}); choose another --out"
        )


def _imitation(rows: Rows, frozen: Frozen) -> Stage:
    settings = frozen.training
    seed = (settings.seed, 1)

    def load(step: int) -> tuple:
        places = rows.choose(seed, step, settings.batch_1)
        return (join_prompts(rows.model, rows.ask(places)),)

    return Stage(
        "imitation", settings.samples_1, settings.batch_1, settings.rate_1, seed, load,
        frozen.imitate,
    )  # fmt: skip


def _tuning(rows: Rows, frozen: Frozen, out: pathlib.Path) -> Stage:
    settings = frozen.training
    seed = (settings.seed, 2)
    said = OwnAnswers(rows, out / "answers.jsonl", settings.max_new_tokens)

    def load(step: int) -> tuple:
        places = rows.choose(seed, step, settings.batch_2)
        samples = rows.ask(places)
        draw = np.random.default_rng((*seed, step, 3))
        ratio = settings.ratios[draw.integers(len(settings.ratios))]
        answer = said.read if settings.answers == "model" else rows.read_answers
        return join_answers(rows.model, samples, answer(places), ratio)

    return Stage(
        "tuning", settings.samples_2, settings.batch_2, settings.rate_2, seed, load, frozen.tune
    )


class OwnAnswers:
    """What the model says without pruning, asked once a row and kept in a file."""

    def __init__(self, rows: Rows, path: pathlib.Path, most: int) -> None:
        self.rows, self.path, self.most = rows, path, most
        self._known: dict[Place, list[int]] = {}
        lines = path.read_text().split("\n") if path.exists() else []
        for line in lines[:-1]:  # behind the last end of line lies what a killed run has left
            file, row, tokens = json.loads(line)
            self._known[file, row] = tokens
        if lines and lines[-1]:
            write_atomically(path, "".join(f"{line}\n" for line in lines[:-1]))

    def read(self, places: list[Place]) -> list[list[int]]:
        """Return the answers to these rows, end tokens included."""
        # A batch always has its full size: one program, and one rounding.
        if missing := [place for place in places if place not in self._known]:
            samples = self.rows.ask(places)
            model = self.rows.model
            output = generate(model, join_prompts(model, samples), max_new_tokens=self.most)
            tokens, lengths = np.asarray(output.tokens), np.asarray(output.lengths)
            found = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
            new = dict(zip(places, found, strict=True))
            with self.path.open("a") as file:
                for place in dict.fromkeys(missing):
                    self._known[place] = new[place]
                    file.write(json.dumps([*place, new[place]]) + "\n")
        return [self._known[place] for place in places]


def run_stage(
    stage: Stage,
    params: dict,
    rows: Rows,
    training: Training,
    out: pathlib.Path,
    save_every: int,
    report: Report,
) -> dict:
    """Run a stage from its latest checkpoint, or from `params`."""
    rise = max(1, round(training.warmup * stage.steps))
    rate = optax.warmup_cosine_decay_schedule(0.0, stage.rate, rise, max(stage.steps, rise + 1))
    optimiser = optax.adamw(rate, weight_decay=training.weight_decay)
    state = {"params": params, "optimiser": optimiser.init(params)}
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager((out / stage.name).absolute(), options=options) as manager:
        begin = manager.latest_step() or 0
        if begin:
            state = manager.restore(begin, args=ocp.args.StandardRestore(state))
        log = _Log(out / "log.jsonl", stage.name, begin)
        update = functools.partial(_update, stage.loss, optimiser)
        update = jax.jit(update)
        for step in range(begin, stage.steps):
            report(stage.name, step, stage.steps)
            arrays = stage.load(step)
            state, loss = update(state, rows.model.params, *arrays)
            log.add(step + 1, float(loss))
            if (step + 1) % save_every == 0 or step + 1 == stage.steps:
                manager.save(step + 1, args=ocp.args.StandardSave(state))
        report(stage.name, stage.steps, stage.steps)
        manager.wait_until_finished()
    return state["params"]


def _update(
    loss: Callable[..., jax.Array],
    optimiser: optax.GradientTransformation,
    state: dict[str, Any],
    model: dict[str, Any],
    *arrays: Any,
) -> tuple[dict[str, Any], jax.Array]:
    value, slope = jax.value_and_grad(loss)(state["params"], model, *arrays)
    change, moved = optimiser.update(slope, state["optimiser"], state["params"])
    return {"params": optax.apply_updates(state["params"], change), "optimiser": moved}, value


class _Log:
    """Loss by step; steps that will be repeated are forgotten."""

    def __init__(self, path: pathlib.Path, stage: str, begin: int) -> None:
        self.path, self.stage = path, stage
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _is_done(line, stage, begin)]
        if kept != lines:
            write_atomically(path, "".join(f"{line}\n" for line in kept))

    def add(self, step: int, loss: float) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, "loss": loss}) + "\n")


def _is_done(line: str, stage: str, begin: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:  # the last line of a killed run
        return False
    return row["stage"] != stage or row["step"] <= begin
