"""What each method's selection adds to a dense prefill, at Qwen2-VL-2B's width on this machine.

    python benchmarks/selection_cost.py [--tokens 1024] [--repeats 3] [--methods fastv nuwa]

Dense prefills of one image are timed, and beside them, in the same process, everything that a
method does besides running the blocks: what it taps from the tower (the projections of a block
once more, received attention, mergers), projections of blocks behind a cut, attention rows, scores,
merging and compaction. Blocks are replaced by random vectors of the right shapes, so that nothing
of what pruning saves is in the numbers. Weights are random float32 (9 GB); about 16 GB of memory.
Expected on two CPU cores: most below 2 % of the dense prefill; the exceptions say why in
docs/methods.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from shapes import ROOT, draw_params, make_batch, write_report

import ivc_jax
from ivc_jax.config import ModelConfig
from ivc_jax.engine.compact import Sequence
from ivc_jax.engine.plan import Span
from ivc_jax.engine.tower_signals import answer_tower, choose_tap
from ivc_jax.engine.walk import Walk
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.methods.base import Method
from ivc_jax.methods.requests import (
    Carry,
    Embeddings,
    Request,
    RopeSettings,
    TokenVectors,
    TowerRequest,
)
from ivc_jax.nn import rope
from ivc_jax.nn.tower import Features, Projections
from ivc_jax.nn.vision import PatchMerger, VisionBlock
from ivc_jax.types import Inputs

METHODS = (
    "random", "uniform", "ivc", "fastv", "fastv+ivc", "fastv+pore:sigma=1.0", "pyramiddrop",
    "sparsevlm", "holov", "scope", "visiondrop", "fsr", "nuwa", "nuwa:similarity=features",
    "vflowopt",
)  # fmt: skip


class _Selections(Walk):
    """Takes the cuts of a plan; spans leave random vectors instead of running blocks."""

    def __init__(self, *arguments: Any, queries: jax.Array, keys: jax.Array) -> None:
        super().__init__(*arguments)
        self.queries, self.keys = queries, keys

    def _run_span(self, sequence: Sequence, span: Span, requests: tuple[Request, ...]) -> Sequence:
        length = sequence.hidden.shape[1]
        queries, keys = self.queries[:, :length], self.keys[:, :length]
        for layer in range(span.start, span.stop):
            self._answer(requests, layer, sequence.layout, queries, keys, keys)
        return sequence


def make_selection(config: ModelConfig, method: Method) -> Callable[..., Any]:
    """Return a compiled function of parameters, inputs and random vectors that only selects."""

    def run(params: dict, inputs: Inputs, drawn: dict[str, jax.Array]) -> Any:
        asked = dict.fromkeys(r for stage in method.stages for r in method.requests(stage))
        signals = {RopeSettings(): config.decoder.rope, Carry(): None}
        signals |= _tower(config, params["vision"], inputs, list(asked), drawn["patches"])
        if Embeddings() in asked:
            layout = inputs.layout
            signals[Embeddings()] = TokenVectors(
                jnp.take_along_axis(drawn["hidden"], layout.visual_index[..., None], axis=1),
                jnp.take_along_axis(drawn["hidden"], layout.text_index[..., None], axis=1),
            )
        walk = _Selections(
            config, method, params["decoder"], inputs, signals,
            queries=drawn["queries"], keys=drawn["keys"],
        )  # fmt: skip
        slots = jnp.broadcast_to(jnp.arange(inputs.tokens.shape[1]), inputs.tokens.shape)
        sequence = walk.run(Sequence(drawn["hidden"], inputs.layout, slots.astype(jnp.int32)))
        return sequence.hidden, sequence.layout.visual_origin, walk.selection

    return jax.jit(run)


def _tower(
    config: ModelConfig, params: dict, inputs: Inputs, asked: list[Request], x: jax.Array
) -> dict[Request, Any]:
    """Answer requests about the tower from random patch states, with the real projections."""
    vision, tapped = config.vision, {}
    requests = [request for request in asked if isinstance(request, TowerRequest)]
    angles = rope.vision_angles(vision.head_dim, inputs.patch_positions, vision.rope_theta)
    for tap in {choose_tap(request, vision) for request in requests} - {None}:
        if isinstance(tap, Projections):
            block = jax.tree.map(lambda p, i=tap.block: p[i], params["blocks"])
            projected = VisionBlock(vision).apply({"params": block}, x, method="project")
            tapped[tap] = *projected[:2], angles
        elif isinstance(tap, Features):
            tapped[tap] = _features(config, params, tap, x)
    return answer_tower(requests, inputs, tapped, vision)


def _features(config: ModelConfig, params: dict, tap: Features, x: jax.Array) -> jax.Array:
    if not tap.merged:
        return x
    # The sum over blocks is part of the tower's loop; the merger sees their mean, once.
    return PatchMerger(config.vision).apply({"params": params["merger"]}, x)


def draw(config: ModelConfig, inputs: Inputs) -> dict[str, jax.Array]:
    """Draw vectors of the shapes that blocks leave behind."""
    sizes, vision = config.decoder, config.vision
    B, N = inputs.tokens.shape
    shapes = {
        "hidden": (B, N, sizes.hidden_size),
        "queries": (B, N, sizes.num_heads, sizes.rope.head_dim),
        "keys": (B, N, sizes.num_kv_heads, sizes.rope.head_dim),
        "patches": (*inputs.patches.shape[:2], vision.embed_dim),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def measure_seconds(function: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measure(tokens: int, repeats: int, specs: list[str]) -> dict[str, Any]:
    """Time dense prefills and selections in turn; medians after one warm-up each."""
    config = parse_config(list_sizes()["qwen2-vl-2b"])
    model = ivc_jax.Model(config, draw_params(config))
    buckets = Buckets(text=(40,), visual=(tokens,))
    inputs = collate(make_batch(config, 32, tokens // 32), config, buckets)
    inputs = jax.device_put(inputs)
    drawn = draw(config, inputs)

    def prefill() -> Any:
        prompt = ivc_jax.prefill(model, inputs)
        return prompt.logits, prompt.cache

    runs = {"dense": prefill}
    for spec in specs:
        method = ivc_jax.methods.parse(spec).resolve(config)
        compiled = make_selection(config, method)
        runs[spec] = lambda compiled=compiled: compiled(model.params, inputs, drawn)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            taken = measure_seconds(run)
            print(f"{name}: {taken:.3f} s{'' if repeat else ' (compiles)'}", flush=True)
            if repeat:
                times[name].append(round(taken, 4))
    dense = statistics.median(times.pop("dense"))
    rows = {
        name: {
            "selection_seconds": taken,
            "share_of_dense_prefill": round(statistics.median(taken) / dense, 5),
        }
        for name, taken in times.items()
    }
    return {"visual_tokens": tokens, "dense_prefill_seconds": dense, "methods": rows}


def main() -> None:
    """Run and write benchmarks/results/selection_cost.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/selection_cost.json")
    chosen = parser.parse_args()
    found = measure(chosen.tokens, chosen.repeats, chosen.methods)
    write_report(chosen.out, "selection_cost", shape="Qwen2-VL-2B, float32, batch 1", **found)


if __name__ == "__main__":
    main()
