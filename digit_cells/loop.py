"""The training loop shared by all stages: prefetch, checkpoint, log, resume."""

import concurrent.futures
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of the recipe.

    Attributes:
        batch: makes the arrays of a step from its own random generator; runs in a thread.
        loss: (params, batch) to (scalar, metrics); differentiated and compiled here.
        evaluate: params to accuracies on held-out digits and scenes.
        trained: top-level keys of the parameters that this stage changes.
    """

    name: str
    steps: int
    batch: Callable[[np.random.Generator], Any]
    loss: Callable[[Params, Any], tuple[jax.Array, Metrics]]
    evaluate: Callable[[Params], dict[str, float]]
    optimiser: optax.GradientTransformation
    trained: tuple[str, ...]
    seed: int = 0


def run(
    stage: Stage,
    params: Params,
    out: pathlib.Path,
    *,
    log_every: int = 20,
    evaluate_every: int = 200,
    save_seconds: float = 150.0,
) -> Params:
    """Train `stage` from `params`, or from its latest checkpoint under `out`."""
    frozen = {k: v for k, v in params.items() if k not in stage.trained}
    state = {"params": {k: params[k] for k in stage.trained}}
    state["opt_state"] = stage.optimiser.init(state["params"])
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager((out / stage.name).absolute(), options=options) as manager:
        begin = manager.latest_step() or 0
        if begin:
            state = manager.restore(begin, args=ocp.args.StandardRestore(state))
        if begin < stage.steps:
            state = _train(
                stage, state, frozen, begin, manager, out, log_every, evaluate_every, save_seconds
            )
    return {**frozen, **state["params"]}


def _train(
    stage: Stage,
    state: Params,
    frozen: Params,
    begin: int,
    manager: ocp.CheckpointManager,
    out: pathlib.Path,
    log_every: int,
    evaluate_every: int,
    save_seconds: float,
) -> Params:
    @jax.jit
    def update(state: Params, frozen: Params, batch: Any) -> tuple[Params, jax.Array, Metrics]:
        loss = lambda trained: stage.loss({**frozen, **trained}, batch)  # noqa: E731
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state["params"])
        change, opt_state = stage.optimiser.update(gradient, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], change)
        return {"params": params, "opt_state": opt_state}, value, metrics

    def batch(step: int) -> Any:
        # A generator per step: a resumed run sees the data that the killed one would have seen.
        return stage.batch(np.random.default_rng((stage.seed, step)))

    before = _forget(out, stage.name, begin)
    started = saved = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as worker, _show_progress() as progress:
        bar = progress.add_task(stage.name, total=stage.steps, completed=begin)
        upcoming = worker.submit(batch, begin)
        for step in range(begin + 1, stage.steps + 1):
            # the next batch is made while this one trains
            arrays, upcoming = upcoming.result(), worker.submit(batch, step)
            state, value, metrics = update(state, frozen, arrays)
            progress.update(bar, completed=step)
            last = step == stage.steps
            if step % log_every == 0 or last:
                seconds = before + time.monotonic() - started
                _log(out, stage.name, "train", step, seconds, {"loss": value, **metrics})
            if step % evaluate_every == 0 or last:
                seconds = before + time.monotonic() - started
                found = stage.evaluate({**frozen, **state["params"]})
                _log(out, stage.name, "held-out", step, seconds, found)
            if last or time.monotonic() - saved > save_seconds:
                manager.save(step, args=ocp.args.StandardSave(state))
                saved = time.monotonic()
        manager.wait_until_finished()
    return state


def _show_progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn())


def _forget(out: pathlib.Path, stage: str, begin: int) -> float:
    """Drop log rows of steps that will be repeated; return the seconds spent before them."""
    path = out / "training_log.jsonl"
    if not path.exists():
        return 0.0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row for row in rows if row["stage"] != stage or row["step"] <= begin]
    if len(kept) < len(rows):
        partial = path.with_suffix(".part")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(path)
    return max((row["seconds"] for row in kept if row["stage"] == stage), default=0.0)


def _log(
    out: pathlib.Path,
    stage: str,
    split: str,
    step: int,
    seconds: float,
    metrics: dict[str, Any],
) -> None:
    row = {"stage": stage, "step": step, "split": split, "seconds": round(seconds, 1)}
    row |= {name: round(float(value), 4) for name, value in metrics.items()}
    with (out / "training_log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
