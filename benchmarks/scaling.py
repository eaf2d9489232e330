"""How do prefill, cache and decode grow with tokens, batch, keep ratio and the place of the cut?

    python benchmarks/scaling.py [--largest 16384]

One thing at a time varies around a base of 1,024 visual tokens, batch 1, half of them kept, cut in
the middle: visual tokens from 512 to 16,384 (dense and cut), batch from 1 to 16 (at 512 tokens, and
tokens generated at that batch), keep ratio from 0.1 to 1 and the block before which the cut is.
Blocks of half the width of Qwen2-VL-2B (768, 6 heads, 1 key head, MLP 4,480) with random weights,
four of them for tokens and batch, eight for ratio and place; this package alone. Beside each
measurement stands the formula: operations, and the speed-up that they promise; `linear_cap` is
1 / (k/L + r (1 - k/L)) for a cut before block k of L to r of the tokens, text included.
Expected on two CPU cores: five minutes.
"""

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import shapes
from prefill import count_tokens, make_ours
from record import Row, make_parser, read_options, write_record
from timing import alternate, measure_machine, measure_share

import ivc_jax
from ivc_jax.families import parse_config

_RATIOS = (0.1, 0.25, 0.5, 0.75, 1.0)
_STEPS = 16  # tokens through the model in a decode
_HALF = {"hidden_size": 768, "intermediate_size": 4480, "num_attention_heads": 6,
         "num_key_value_heads": 1, **shapes.SMALL_VOCABULARY}  # fmt: skip


class Sweep:
    """Prefills of one model, each measured beside the dense one of the same prompt."""

    def __init__(self, options: argparse.Namespace, machine: dict[str, float], blocks: int) -> None:
        changed = {} if options.size == "tiny" else _HALF
        width = "tiny" if options.size == "tiny" else "2b"
        config = parse_config(shapes.choose_sizes(width, blocks, **changed))
        params = shapes.draw_params(config, options.dtype)
        self.model, self.options, self.machine = ivc_jax.Model(config, params), options, machine

    def prefill(self, question: str, visual: int, batch: int, specs: list[str]) -> Iterator[Row]:
        """Time a dense prefill and pruned ones of equal prompts; yield a row for each."""
        sizes = self.model.config.decoder
        inputs = shapes.make_inputs(self.model.config, visual, batch)
        placed = shapes.place_inputs(inputs, self.options.dtype)
        runs = {spec: make_ours(self.model, placed, spec) for spec in ("dense", *specs)}
        prompts = {spec: run() for spec, run in runs.items()}
        repeats = self.options.repeats if visual * batch <= 4096 else 1
        seconds = alternate(runs, repeats, f"{question}: {visual} visual tokens, batch {batch}")
        whole = batch * shapes.count_flops(sizes, count_tokens(prompts["dense"]))
        for spec, prompt in prompts.items():
            flops = batch * shapes.count_flops(sizes, count_tokens(prompt))
            speed_up = statistics.median(seconds["dense"]) / statistics.median(seconds[spec])
            yield Row(
                f"{question}: {spec}, {visual} visual tokens, batch {batch}", "s", seconds[spec],
                limit="matrix products",
                of_limit=measure_share(flops, seconds[spec], self.machine["matrix_flops"]),
                more={
                    "question": question, "method": spec, "visual_tokens": visual, "batch": batch,
                    "blocks": sizes.num_layers, "flops": flops, "cache_bytes": prompt.kv_bytes,
                    "speed_up": speed_up, "ideal": whole / flops,
                    "linear_cap": compute_cap(count_tokens(prompt)),
                },
            )  # fmt: skip

    def decode(self, visual: int, batch: int, specs: list[str]) -> Iterator[Row]:
        """Time tokens generated behind a dense and pruned prompts."""
        inputs = shapes.make_inputs(self.model.config, visual, batch)
        placed = shapes.place_inputs(inputs, self.options.dtype)
        prompts = {spec: make_ours(self.model, placed, spec)() for spec in specs}

        def make(prompt: Any) -> Any:
            return lambda: np.asarray(ivc_jax.decode(self.model, prompt, _STEPS + 1, ()).tokens)

        runs = {spec: make(prompt) for spec, prompt in prompts.items()}
        sizes = self.model.config.decoder
        numbers = sizes.num_layers * shapes.count_block_params(sizes)
        numbers += sizes.vocab_size * sizes.hidden_size
        weights = numbers * self.model.dtype.itemsize
        for run in runs.values():
            run()  # compiles
        for spec, taken in alternate(runs, self.options.repeats, f"decode: batch {batch}").items():
            seconds, cache = [each / _STEPS for each in taken], prompts[spec].kv_bytes
            yield Row(
                f"decode: {spec}, {visual} visual tokens, batch {batch}", "ms a token",
                [1e3 * each for each in seconds], limit="bandwidth",
                of_limit=measure_share(weights + cache, seconds, self.machine["read_bytes"]),
                more={
                    "question": "decode", "method": spec, "visual_tokens": visual, "batch": batch,
                    "weight_bytes": weights, "cache_bytes": cache,
                },
            )  # fmt: skip


def compute_cap(tokens: list[int]) -> float:
    """Return the speed-up where matrices alone count, from the tokens that each block sees."""
    return tokens[0] * len(tokens) / sum(tokens)


def list_rows(options: argparse.Namespace, machine: dict[str, float]) -> Iterator[Row]:
    """Ask all questions."""
    quick = options.quick
    base, small = (64, 64) if quick else (1024, 512)
    shallow, deep = (Sweep(options, machine, blocks) for blocks in ((2, 2) if quick else (4, 8)))
    half = "ivc:layer=1,keep_ratio=0.5" if quick else "ivc:layer=2,keep_ratio=0.5"
    visual = small
    while visual <= options.largest:
        yield from shallow.prefill("tokens", visual, 1, [half])
        visual *= 2
    for batch in (2,) if quick else (1, 2, 4, 8, 16):
        yield from shallow.prefill("batch", small, batch, [half])
        yield from shallow.decode(small, batch, ["dense", "ivc:layer=1,keep_ratio=0.5"])
    kept = _RATIOS[:1] if quick else _RATIOS
    ratios = [f"ivc:layer={1 if quick else 2},keep_ratio={ratio}" for ratio in kept]
    yield from deep.prefill("keep ratio", base, 1, ratios)
    layers = [f"ivc:layer={layer},keep_ratio=0.5" for layer in range(1, 2 if quick else 8)]
    yield from deep.prefill("layer of the cut", base, 1, layers)


def main() -> None:
    """Run and write the record."""
    parser = make_parser(__doc__, repeats=2)
    parser.add_argument("--largest", type=int, help="visual tokens")
    options = read_options(parser)
    options.largest = options.largest or (64 if options.quick else 16384)
    machine = measure_machine(options.dtype, False, options.quick)
    rows = list(list_rows(options, machine))
    write_record(options, rows, machine=machine)


if __name__ == "__main__":
    main()
