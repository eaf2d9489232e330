"""What does each method's selection cost, and what does it save?

    python benchmarks/selection_cost.py [--visual 1024 4096] [--methods fastv nuwa]

Dense prefills of one image (the decoder of Qwen2-VL-2B, all 28 blocks) are timed, and beside them,
in turns, everything that a method does besides running the blocks: what it taps from the tower (the
projections of a block once more, received attention, mergers), projections of blocks behind a cut,
attention rows, scores, merging and compaction. Blocks are replaced by random vectors of the right
shapes, so that nothing of what pruning saves is in the numbers. What it saves is the FLOPs that its
cuts leave out, as seconds of the dense prefill; `of_ideal` is the share of the FLOP-ideal speed-up
that its own cost leaves.
Expected on two CPU cores: a few minutes; below 2 % of the dense prefill, but 5 to 12 % where the
tower's attention between all patches is asked for (docs/methods.md).
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import shapes
from prefill import make_ours
from record import Row, make_parser, read_options, write_record
from timing import alternate

import ivc_jax
from ivc_jax.config import ModelConfig
from ivc_jax.engine.compact import Sequence
from ivc_jax.engine.plan import Span
from ivc_jax.engine.tower_signals import answer_tower, choose_tap
from ivc_jax.engine.walk import Walk
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.methods.base import Method
from ivc_jax.methods.requests import (
    Carry,
    Embeddings,
    Request,
    RopeSettings,
    TokenVectors,
    TowerRequest,
    WordEmbeddings,
)
from ivc_jax.nn import rope, tower
from ivc_jax.nn.blocks import take_block
from ivc_jax.nn.tower import Features, Projections
from ivc_jax.nn.vision import PatchMerger, VisionBlock
from ivc_jax.types import Inputs

METHODS = (
    "random", "uniform", "ivc", "fastv", "fastv+ivc", "fastv+pore:sigma=1.0", "pyramiddrop",
    "sparsevlm", "holov", "scope", "visiondrop", "visionzip", "fsr", "nuwa",
    "nuwa:similarity=features", "prumerge", "vscan",
    "vflowopt", "divprune", "dart", "cdpruner", "fastervlm", "hired", "vispruner",
    "fitprune", "embedlens:vit_sinks=1,llm_sinks=2,dead=3",
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
        count = sequence.layout.visual_valid.sum(axis=1)  # [B]
        self.computed += [count] * (span.stop - span.start)
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
        signals[WordEmbeddings()] = params["decoder"]["embed_tokens"]["embedding"]
        project = partial(tower.project, config.vision, params["vision"])
        walk = _Selections(
            config, method, params["decoder"], inputs, signals, project,
            queries=drawn["queries"], keys=drawn["keys"],
        )  # fmt: skip
        slots = jnp.broadcast_to(jnp.arange(inputs.tokens.shape[1]), inputs.tokens.shape)
        sequence = walk.run(Sequence(drawn["hidden"], inputs.layout, slots.astype(jnp.int32)))
        kept = sequence.layout.visual_origin
        return sequence.hidden, kept, walk.selection, walk.computed

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
            block = take_block(params["blocks"], tap.block)
            queries, keys, _ = VisionBlock(vision).apply({"params": block}, x, method="project")
            turned = (rope.rotate(heads, angles) for heads in (queries, keys))
            tapped[tap] = *turned, keys
        elif isinstance(tap, Features):
            tapped[tap] = _features(config, params, tap, x)
    return answer_tower(requests, inputs, tapped, vision)


def _features(config: ModelConfig, params: dict, tap: Features, x: jax.Array) -> jax.Array:
    if not tap.merged:
        return x
    # The sum over blocks is part of the tower's loop; the merger sees their mean, once.
    return PatchMerger(config.vision).apply({"params": params["merger"]}, x)


def draw(config: ModelConfig, inputs: Inputs, dtype: str) -> dict[str, jax.Array]:
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
        name: jax.random.normal(key, shape, jnp.dtype(dtype))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def measure(options: argparse.Namespace, specs: list[str], visual: int) -> Iterator[Row]:
    """Time dense prefills and selections in turns; yield a row for each method."""
    sizes = _choose_sizes(options)
    config = parse_config(sizes)
    model = ivc_jax.Model(config, shapes.draw_params(config, options.dtype))
    inputs = shapes.place_inputs(shapes.make_inputs(config, visual), options.dtype)
    drawn = draw(config, inputs, options.dtype)
    runs: dict[str, Callable[[], Any]] = {"dense": make_ours(model, inputs, "dense")}
    runs["dense"]()  # compiles
    tokens = {}
    for spec in specs:
        method = ivc_jax.methods.parse(spec).resolve(config)
        compiled = make_selection(config, method)
        runs[spec] = lambda run=compiled: jax.block_until_ready(run(model.params, inputs, drawn))
        tokens[spec] = [shapes.TEXT + int(seen[0]) for seen in runs[spec]()[-1]]  # a block
    seconds = alternate(runs, options.repeats, f"{visual} visual tokens")
    dense = statistics.median(seconds.pop("dense"))
    blocks = config.decoder.num_layers
    whole = shapes.count_flops(config.decoder, [shapes.TEXT + visual] * blocks)
    for spec, taken in seconds.items():
        left = shapes.count_flops(config.decoder, tokens[spec]) / whole  # of the FLOPs
        cost = statistics.median(taken)
        yield Row(f"{spec}, {visual} visual tokens", "s", taken, more={
            "method": spec, "visual_tokens": visual, "blocks": blocks, "dense_seconds": dense,
            "share_of_dense": cost / dense, "saved_seconds": (1 - left) * dense,
            "ideal_speed_up": 1 / left, "of_ideal": left * dense / (left * dense + cost),
        })  # fmt: skip


def _choose_sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Return a released model, tower included, or a tiny one."""
    if options.size == "tiny":
        return shapes.choose_sizes("tiny", 8)
    return {**list_sizes()[f"qwen2-vl-{options.size}"]}


def main() -> None:
    """Run and write the record."""
    parser = make_parser(__doc__, repeats=2)
    parser.add_argument("--visual", type=int, nargs="+", help="visual tokens")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = read_options(parser)
    rows: list[Row] = []
    for visual in options.visual or ([64] if options.quick else [1024]):
        rows += measure(options, options.methods, visual)
    write_record(options, rows)


if __name__ == "__main__":
    main()
