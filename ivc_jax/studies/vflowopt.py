"""The search for VFlowOpt's settings (arXiv 2508.05211, section 3.4 and appendix).

A trial is good if the last token of the prompt leaves the decoder as it does without pruning: the
mean cosine of the two final hidden states over a few prompts, no label needed. Threshold, cell,
alpha, R1 and R2 are searched, R3 follows from the budget. All trials are one program
(`methods.vflowopt_trial`).
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.engine.modules import METHODS, Stored
from ivc_jax.engine.prefill import place, trace_prefill
from ivc_jax.evals.running.records import write_atomically
from ivc_jax.methods.base import DENSE, Method
from ivc_jax.methods.preset_file import FIELDS
from ivc_jax.methods.vflowopt import VFlowOpt, solve_third_rate
from ivc_jax.methods.vflowopt_trial import TABLES, Trial
from ivc_jax.model import Model
from ivc_jax.nn import decoder
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.types import Inputs

Numbers = dict[str, float]  # threshold, cell, alpha, first and second rate


class SearchError(ValueError):
    """A search that cannot run; the message names the remedy."""


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What is searched.

    Attributes:
        first: R1, share of the tokens kept at the first cut; None is one to one and a half times
            the budget, up to 1 (released at 25 %: 0.25 to 0.375).
        second: R2, share of those kept at the second.
        threshold: calibration queries receive more than this many times the mean attention (t).
        cell: side of a recycling cell in tokens (a).
        alpha: weight of the pixel entropy.
    """

    first: tuple[float, float] | None = None
    second: tuple[float, float] = (0.533, 1.0)
    threshold: tuple[float, float] = (0.0, 50.0)
    cell: tuple[float, float] = (3.0, 24.0)
    alpha: tuple[float, float] = (-1.0, 1.0)

    def resolve(self, budget: float) -> dict[str, tuple[float, float]]:
        """Return every range, checked.

        Raises:
            SearchError: one that is empty, or holds what cannot be.
        """
        found = vars(self) | {"first": self.first or (budget, min(1.0, 1.5 * budget))}
        for name, (low, high) in found.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise SearchError(f"{name}: a range from {low:g} to {high:g} holds nothing")
        for name in ("first", "second"):
            if not 0 < found[name][0] <= found[name][1] <= 1:
                raise SearchError(f"{name} is a share: choose a range within (0, 1]")
        if found["cell"][0] < 1 or found["threshold"][0] < 0:
            raise SearchError("cell is at least 1, threshold at least 0")
        return found


class Objective:
    """Scores settings on the prompts that it was made with."""

    def __init__(
        self, model: Model, batches: Iterable[Inputs], budget: float, layers: Sequence[int] | None
    ) -> None:
        """Run the prompts without pruning.

        Args:
            batches: collated, of equal shapes if trials are to be one program.
            budget: mean over layers of the share of visual tokens, T of the paper.
            layers: first block behind each cut; None asks the method.
        """
        self.model, self.budget = model, budget
        self.batches = [place(model, inputs) for inputs in batches]
        depth = model.config.decoder.num_layers
        given = None if layers is None else tuple(layers)
        self.layers = VFlowOpt(layers=given).resolve(model.config).layers
        self.spans = tuple(np.diff((*self.layers, depth)).tolist())
        self.dense = [self._run(model.params, inputs, DENSE) for inputs in self.batches]

    def make(self, numbers: Numbers) -> VFlowOpt | None:
        """Return the method that settings stand for; None if no third rate reaches the budget."""
        first, second = numbers["first"], numbers["second"]
        third = solve_third_rate(self.budget, first, second, self.spans)
        if not third > 0:
            return None
        rest = {name: numbers[name] for name in ("threshold", "cell", "alpha")}
        ratios = (first, first * second, first * second * third)
        return VFlowOpt(layers=self.layers, ratios=ratios, **rest)

    def __call__(self, numbers: Numbers) -> float:
        """Return the mean cosine; 0 for settings that cannot be, and where it is not a number."""
        method = self.make(numbers)
        return 0.0 if method is None else self.score(method)

    def score(self, method: VFlowOpt) -> float:
        """Return the mean cosine over all prompts of a method with this objective's layers."""
        trial, cosines = Trial(self.layers, method.importance), []
        for inputs, dense in zip(self.batches, self.dense, strict=True):
            tables = vars(method.tabulate(inputs.layout.visual_slots))
            arrays = {name: jnp.asarray(table) for name, table in tables.items()}
            arrays |= {name: jnp.float32(tables[name]) for name in ("threshold", "alpha")}
            params = {**self.model.params, METHODS: {TABLES: Stored(arrays, TABLES)}}
            cosines.append(compare(dense, self._run(params, inputs, trial)))
        mean = float(np.concatenate(cosines).mean())
        return mean if math.isfinite(mean) else 0.0

    def _run(self, params: dict[str, Any], inputs: Inputs, method: Method) -> np.ndarray:
        with on_mesh(self.model.mesh):
            return np.asarray(_run_last(self.model.config, method, params, inputs), np.float64)


@partial(jax.jit, static_argnums=(0, 1))
def _run_last(
    config: ModelConfig, method: Method, params: dict[str, Any], inputs: Inputs
) -> jax.Array:
    """Return what the output head reads of the last valid token: float32 [B, D]."""
    hidden = trace_prefill(config, method, params, inputs)[2]
    return decoder.finish(config.decoder, params["decoder"], hidden).astype(jnp.float32)


def compare(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosines of vectors [B, D] in float64: [B]."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / lengths


def search(
    objective: Any,
    ranges: dict[str, tuple[float, float]],
    journal: pathlib.Path,
    *,
    trials: int = 77,
    starts: int = 27,
    seed: int = 42,
    about: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, Numbers, float]]:
    """Search by optuna's tree of Parzen estimators; yield every trial, old ones first.

    Each trial draws from a generator of its own, made of seed and number: one that goes on from its
    journal tries the same settings as one that was never interrupted. (The paper's Gaussian
    process is in optuna too, but needs torch.)

    Args:
        objective: of settings by the names of `ranges`; larger is better.
        journal: one line a finished trial.
        trials: in all.
        starts: the first ones are drawn at random.
        about: what else the scores hang on, of JSON's kinds.

    Raises:
        ImportError: optuna is not installed.
        SearchError: the journal is of another search.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("the search needs optuna: pip install 'ivc_jax[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = {
        name: optuna.distributions.FloatDistribution(*bounds) for name, bounds in ranges.items()
    }
    study = optuna.create_study(direction="maximize")
    # as JSON reads it back
    setting = json.loads(json.dumps({"ranges": ranges, "seed": seed, **(about or {})}))
    done = _read_journal(journal, setting)
    for number in range(trials):
        sampler = optuna.samplers.TPESampler(n_startup_trials=starts, seed=seed + number)
        study.sampler = sampler
        if number < len(done):
            numbers, value = done[number]
            study.add_trial(
                optuna.trial.create_trial(params=numbers, distributions=spaces, value=value)
            )
        else:
            trial = study.ask(spaces)
            numbers = {name: float(trial.params[name]) for name in ranges}
            value = objective(numbers)
            line = json.dumps({"trial": number, "value": value, **numbers, "of": setting})
            with journal.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            study.tell(trial, value)
        yield number, numbers, value


def _read_journal(journal: pathlib.Path, setting: dict[str, Any]) -> list[tuple[Numbers, float]]:
    """Read finished trials; a line that an interruption has torn ends them, and is cut off."""
    if not journal.exists():
        return []
    found, whole = [], ""
    text = journal.read_text(encoding="utf-8")
    for line in text.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith("\n"):
            break
        if entry.get("of") != setting:
            raise SearchError(
                f"{journal} holds trials of another search; choose another folder or remove it"
            )
        found.append(({name: entry[name] for name in setting["ranges"]}, entry["value"]))
        whole += line
    if whole != text:
        write_atomically(journal, whole)
    return found


def write_preset(method: VFlowOpt) -> dict[str, Any]:
    """Return the fields of a preset file (`methods.preset_file`)."""
    return {name: getattr(method, name) for name in FIELDS}
