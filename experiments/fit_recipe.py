"""Find FitPrune's recipe for a model: how many tokens leave behind each block.

    python experiments/fit_recipe.py --reduction 0.5 --out docs/methods_run/fitprune_fit.json

On training scenes and questions of the bundled benchmark, bisect the share of attention that may go
(`ivc_jax.methods.recipe`). Every sample runs twice side by side, unpruned and as the share says.
What is printed is a specification: `fitprune:layers=...,ratios=...`.
Expected on two CPU cores: three minutes, docs/methods_run/fitprune_fit.json.
"""

import dataclasses
import json
import pathlib
import shlex
import sys

import numpy as np
import tyro
from fit_pore import BUCKETS, draw_batches

import digit_scenes
import ivc_jax
from ivc_jax.commands.origin import find_commit
from ivc_jax.engine.cost import count_block_flops
from ivc_jax.inputs.bucket import collate
from ivc_jax.inputs.layout import take_rows
from ivc_jax.methods import describe
from ivc_jax.methods.fitprune import FitPrune, Trial
from ivc_jax.methods.recipe import choose_cuts, read_depths, search_recipe
from ivc_jax.types import Inputs


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Find the recipe that saves a share of the FLOPs.

    Attributes:
        reduction: share of the FLOPs of visual tokens in the decoder to save.
        model: checkpoint folder; default: the bundled checkpoint.
        pairs: pictures with a question each, a few hundred are enough.
        min_cut: cuts are merged until each takes this share of the tokens.
        out: JSON file to write.
    """

    reduction: float = 0.6
    model: str = str(digit_scenes.CHECKPOINT)
    pairs: int = 100
    min_cut: float = 0.03
    out: str | None = None


def run_trial(model: ivc_jax.Model, batches: list[Inputs], alpha: float) -> np.ndarray:
    """Count what leaves behind each block, [samples, L]; of the last block nothing does."""
    method = Trial(model.config.decoder.num_layers, alpha)
    entering = [
        np.asarray(ivc_jax.prefill(model, each, method).visual_computed)[1::2] for each in batches
    ]
    present = np.concatenate(entering)  # [samples, L]
    return np.pad(-np.diff(present, axis=1), ((0, 0), (0, 1)))


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    chosen = tyro.cli(Arguments, args=arguments)
    if not 0 < chosen.reduction < 1:
        print(f"error: reduction must be in (0, 1), got {chosen.reduction}", file=sys.stderr)
        return 2
    model, processor = ivc_jax.load(chosen.model)
    config, batches = model.config, []
    for batch in draw_batches(processor, chosen.pairs):
        twice = np.repeat(np.arange(len(batch.tokens)), 2).tolist()
        batches.append(collate(take_rows(batch, twice, config), config, BUCKETS))
    tokens = int(batches[0].layout.visual_count[0])  # all scenes have as many

    def run(alpha: float) -> np.ndarray:
        print(f"alpha {alpha:.4f}")
        return run_trial(model, batches, alpha)

    def cost(count: float) -> float:
        return float(count_block_flops(config.decoder, count))

    try:
        recipe, alpha = search_recipe(run, tokens, chosen.reduction, cost)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    left, depth = 1 - np.cumsum([0, *recipe]) / tokens, config.decoder.num_layers
    layers = choose_cuts(left, depth, chosen.min_cut)
    method = FitPrune(layers=layers, ratios=read_depths(left, layers, depth))
    print(f"{recipe.tolist()} of {tokens} tokens, alpha {alpha:.4f}: {describe(method)}")
    if chosen.out:
        command = ["fit_recipe.py", *(sys.argv[1:] if arguments is None else arguments)]
        record = {
            "command": shlex.join(command),
            "commit": find_commit(),
            "pairs": chosen.pairs,
            "recipe": recipe.tolist(),
            "tokens": tokens,
            "alpha": alpha,
            "method": describe(method),
        }
        path = pathlib.Path(chosen.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
