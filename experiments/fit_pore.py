"""Fit the positional trend of attention scores, the sigma of `+pore`.

    python experiments/fit_pore.py --out docs/methods_run/pore_fit.json

For each host the mean score at each place is taken over training scenes and questions of the
bundled benchmark; an exponential is fitted to it (`ivc_jax.methods.with_pore.fit_trend`). The trend
belongs to the block that the host looks at, so that hosts are named with what moves their cut.
"""

import dataclasses
import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator

import numpy as np
import tyro
from PIL import Image

import digit_scenes
import ivc_jax
from digit_scenes import digits
from digit_scenes.questions import TASKS, ask
from digit_scenes.scenes import GRID, render
from ivc_jax.commands.origin import find_commit
from ivc_jax.engine.observe import observe
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.methods.base import Scored
from ivc_jax.methods.with_pore import fit_trend

_BATCH = 20
_TRAINING = 0x90E  # no generator of the test sets starts with this number
BUCKETS = Buckets(visual=(GRID**2,), patches=(4 * GRID**2,))


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Fit the trend of each host on training scenes.

    Attributes:
        hosts: methods that rank by an attention score.
        model: checkpoint folder; default: the bundled checkpoint.
        pairs: pictures with a question each.
        out: JSON file to write.
    """

    hosts: tuple[str, ...] = (
        "fastv:layer=2",
        "fastv:layer=1",
        "pyramiddrop:budget=0.5",
        "pyramiddrop:budget=0.33",
    )
    model: str = str(digit_scenes.CHECKPOINT)
    pairs: int = 1000
    out: str | None = None


def draw_batches(processor: Callable, pairs: int) -> Iterator[ivc_jax.Batch]:
    """Draw training scenes with a question each, at least so many, in batches."""
    source = digits.load("train")
    for start in range(0, pairs, _BATCH):
        random = np.random.default_rng((_TRAINING, start))
        prompts, images = [], []
        while len(prompts) < _BATCH:
            scene, pixels = render(random, source, int(random.integers(3, 10)))
            question = ask(random, scene, str(random.choice(list(TASKS))))
            if question is not None:
                prompts.append(question.text)
                images.append([Image.fromarray(pixels)])
        yield processor(prompts=prompts, images=images)


def mean_scores(
    model: ivc_jax.Model, processor: Callable, hosts: dict[str, Scored], pairs: int
) -> dict[str, np.ndarray]:
    """Average the first score of every host at each raster place of a scene."""
    totals, count = {}, 0
    for batch in draw_batches(processor, pairs):
        inputs = collate(batch, model.config, BUCKETS)
        for name, host in hosts.items():
            stage = host.stages[0]
            requests = host.requests(stage)
            signals = observe(model, inputs, stage.layer, *requests)
            scores = host.scores(dict(zip(requests, signals, strict=True)), inputs.layout, stage)
            totals[name] = totals.get(name, 0) + np.asarray(scores, np.float64).sum(axis=0)
        count += len(batch.tokens)
    return {name: total / count for name, total in totals.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    chosen = tyro.cli(Arguments, args=arguments)
    model, processor = ivc_jax.load(chosen.model)
    hosts = {spec: ivc_jax.methods.parse(spec).resolve(model.config) for spec in chosen.hosts}
    for spec, host in hosts.items():
        if not isinstance(host, Scored):
            print(f"error: {spec} ranks by no attention score", file=sys.stderr)
            return 2
    fits = {}
    for name, means in mean_scores(model, processor, hosts, chosen.pairs).items():
        sigma, scale = fit_trend(means, np.arange(len(means)) / len(means))
        fits[name] = {"cut": hosts[name].stages[0].layer, "sigma": sigma, "mu": scale}
        print(f"{name}: before block {fits[name]['cut']}, sigma {sigma:.4f}, mu {scale:.3g}")
    if chosen.out:
        command = shlex.join(["fit_pore.py", *(sys.argv[1:] if arguments is None else arguments)])
        record = {"command": command, "commit": find_commit(), "pairs": chosen.pairs}
        path = pathlib.Path(chosen.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record | {"fits": fits}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
