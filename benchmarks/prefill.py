"""Is a prefill as fast as torch's, and does a cut give what its FLOPs promise?

    python benchmarks/prefill.py [--size 7b --dtype bfloat16] [--methods ivc fastv]

Random weights of Qwen2-VL-2B's width are written once, as a released checkpoint lies, and loaded by
both sides. A prompt of 64 text and 1,024 visual tokens runs through 8 blocks, one of 4,096 through
4: dense, and cut to half in the middle of the blocks. torch makes the same cut by hand, with the
tokens that our side kept: its selection is free, ours is in the time. Logits must agree first.
`speed_up` is pruned against dense on our side, `ideal` what the FLOPs say.
Expected on two CPU cores: six minutes.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import shapes
import torch_side
from record import Row, make_parser, read_options, write_record
from timing import alternate, measure_machine, measure_share

import ivc_jax

CASES = ((1024, 8), (4096, 4))  # visual tokens, blocks
_QUICK = ((64, 2),)
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # of logits whose spread is about 1


def measure(
    options: argparse.Namespace, visual: int, blocks: int, peak: float, folder: Path
) -> Iterator[Row]:
    """Time a dense prefill and pruned ones, each beside torch's; yield a row for each."""
    model = ivc_jax.load(folder, dtype=options.dtype, processor=False)[0]
    other = None if options.alone else torch_side.TorchModel(folder, options.dtype)
    inputs = shapes.make_inputs(model.config, visual, options.batch)
    embedded = other and other.embed(inputs)
    placed = shapes.place_inputs(inputs, options.dtype)
    specs = [f"{name}:layer={blocks // 2},keep_ratio=0.5" for name in options.methods]
    runs, tokens = {}, {}
    for spec in ("dense", *specs):
        ours = make_ours(model, placed, spec)
        prompt = ours()
        tokens[spec] = count_tokens(prompt)
        runs[f"ours {spec}"] = ours
        if other:
            cut = None if spec == "dense" else blocks // 2
            theirs = make_torch(other, embedded, cut, prompt.kept)
            runs[f"torch {spec}"] = theirs
            check(prompt.logits, theirs()[0], _TOLERANCE[options.dtype])
    seconds = alternate(runs, options.repeats, f"{visual} visual tokens, {blocks} blocks")
    dense = seconds["ours dense"]
    for spec, counted in tokens.items():
        ours, flops = seconds[f"ours {spec}"], shapes.count_flops(model.config.decoder, counted)
        flops *= options.batch
        more = {"visual_tokens": visual, "blocks": blocks, "batch": options.batch, "flops": flops}
        if spec != "dense":
            speed_up = statistics.median(dense) / statistics.median(ours)
            ideal = (
                options.batch * shapes.count_flops(model.config.decoder, tokens["dense"]) / flops
            )
            more |= {"speed_up": speed_up, "ideal": ideal, "of_ideal": speed_up / ideal}
        yield Row(
            f"{spec}, {visual} visual tokens, {blocks} blocks", "s", ours,
            seconds.get(f"torch {spec}", []), "matrix products",
            measure_share(flops, ours, peak), more,
        )  # fmt: skip


def make_ours(model: Any, inputs: Any, spec: str) -> Callable[[], Any]:
    """Return our prefill as a function that ends when it is done."""

    def run() -> Any:
        prompt = ivc_jax.prefill(model, inputs, spec)
        jax.block_until_ready((prompt.logits, prompt.cache))
        return prompt

    return run


def make_torch(
    other: Any, embedded: tuple[Any, Any], layer: int | None, kept: list[np.ndarray]
) -> Callable[[], Any]:
    """Return torch's prefill with the same tokens kept."""
    rows = other.to_tensor(np.stack(kept))
    return lambda: other.prefill(*embedded, layer, rows)


def count_tokens(prompt: Any) -> list[int]:
    """Return how many tokens each block ran on."""
    seen = np.asarray(prompt.visual_computed)[0] + int(prompt.text_count[0])
    return [int(count) for count in seen]


def check(ours: Any, theirs: Any, tolerance: float) -> None:
    """Refuse to time two sides that do not compute the same."""
    difference = np.abs(np.asarray(ours) - theirs.float().cpu().numpy()).max()
    if difference > tolerance:
        raise SystemExit(f"logits differ by {difference:.3g}, more than {tolerance}")


def read_case(text: str) -> tuple[int, int]:
    """Read "1024x8": visual tokens and blocks."""
    visual, blocks = map(int, text.split("x"))
    return visual, blocks


def main() -> None:
    """Run and write the record."""
    parser = make_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=["ivc"], help="with layer and keep_ratio")
    parser.add_argument("--cases", nargs="+", type=read_case, help="VISUALxBLOCKS, as 1024x8")
    parser.add_argument("--batch", type=int, default=1)
    options = read_options(parser)
    machine = measure_machine(options.dtype, not options.alone, options.quick)
    rows = []
    for visual, blocks in _QUICK if options.quick else options.cases or CASES:
        sizes = shapes.choose_sizes(options.size, blocks)
        with shapes.keep_checkpoint(options.scratch, sizes, options.dtype) as folder:
            rows += measure(options, visual, blocks, machine["matrix_flops"], folder)
    write_record(options, rows, machine=machine)


if __name__ == "__main__":
    main()
