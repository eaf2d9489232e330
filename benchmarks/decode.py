"""How fast are tokens generated, how near to reading weights and cache once, and beside torch?

    python benchmarks/decode.py [--size 7b --dtype bfloat16] [--batches 1 8 32]

Random weights of Qwen2-VL-2B's width, as a released checkpoint lies. After a prompt of 64 text and
1,024 visual tokens, dense or cut to half before block 1, 17 tokens are chosen greedily: 16 times
through the model. Batch 1 has 8 blocks, batch 8 has 4. torch runs its blocks in a loop, with the
growing or the static cache of transformers, whichever is faster. `of_limit` compares the bytes of
weights and cache with the read bandwidth of the same run. The two sides must choose equal tokens
first (in float32).
Expected on two CPU cores: three minutes.
"""

import argparse
import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import shapes
import torch_side
from prefill import make_ours, make_torch
from record import Row, make_parser, read_options, write_record
from timing import alternate, measure_machine, measure_share

import ivc_jax

STEPS = 16
METHODS = {"dense": "dense", "pruned": "ivc:layer=1,keep_ratio=0.5"}


def measure(
    options: argparse.Namespace, batch: int, peak: float, model: Any, other: Any
) -> Iterator[Row]:
    """Time decodes of one batch after a dense and a pruned prompt; yield a row for each."""
    blocks = model.config.decoder.num_layers
    visual = 64 if options.quick else 1024
    inputs = shapes.make_inputs(model.config, visual, batch)
    embedded = other and other.embed(inputs)
    placed = shapes.place_inputs(inputs, options.dtype)
    runs, sizes = {}, {}
    for name, spec in METHODS.items():
        prompt = make_ours(model, placed, spec)()
        sizes[name] = prompt.kv_bytes
        runs[f"ours {name}"] = make_decode(model, prompt)
        if other:
            cut = None if name == "dense" else 1
            logits, cache = make_torch(other, embedded, cut, prompt.kept)()
            position = other.to_tensor(prompt.next_position)
            for kind in ("growing", "static"):
                runs[f"torch {name} {kind}"] = make_torch_decode(
                    other, logits, cache, position, kind == "static"
                )
    tokens = {name: run() for name, run in runs.items()}
    for name, found in tokens.items():
        if options.dtype == "float32":
            check(tokens[f"ours {name.split()[1]}"], found)
    label = f"batch {batch}, {blocks} blocks, {STEPS} steps"
    seconds = alternate(runs, options.repeats, label)
    per_token = {name: [each / STEPS for each in taken] for name, taken in seconds.items()}
    weights = count_weight_bytes(model)
    for name in METHODS:
        theirs = [per_token[run] for run in runs if run.startswith(f"torch {name}")]
        ours = per_token[f"ours {name}"]
        read = weights + sizes[name]
        yield Row(
            f"{name}, batch {batch}, {blocks} blocks, {visual} visual tokens", "ms a token",
            [1e3 * each for each in ours],
            [1e3 * each for each in min(theirs, key=statistics.median, default=[])],
            "bandwidth", measure_share(read, ours, peak),
            {
                "batch": batch, "blocks": blocks, "visual_tokens": visual,
                "cache_bytes": sizes[name], "weight_bytes": weights,
                "read_rate": read / statistics.median(ours),
                "torch_by_cache": {
                    run.split()[-1]: round(1e3 * statistics.median(per_token[run]), 3)
                    for run in runs if run.startswith(f"torch {name}")
                },
            },
        )  # fmt: skip


def make_decode(model: Any, prompt: Any) -> Callable[[], np.ndarray]:
    """Return our decode of `STEPS` + 1 tokens as a function of no arguments."""

    def run() -> np.ndarray:
        return np.asarray(ivc_jax.decode(model, prompt, STEPS + 1, stop_ids=()).tokens)

    return run


def make_torch_decode(
    other: Any, logits: Any, cache: Any, position: Any, static: bool
) -> Callable[[], np.ndarray]:
    """Return torch's decode of as many tokens."""
    return lambda: other.decode(logits, cache, position, STEPS, static).cpu().numpy()


def count_weight_bytes(model: Any) -> int:
    """Return the bytes of weights that a token cannot do without: blocks and output head."""
    sizes = model.config.decoder
    numbers = sizes.num_layers * shapes.count_block_params(sizes)
    return (numbers + sizes.vocab_size * sizes.hidden_size) * model.dtype.itemsize


def check(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Refuse to time two sides that do not choose the same tokens."""
    if not np.array_equal(ours, theirs):
        raise SystemExit(f"tokens differ:\n{ours}\n{theirs}")


def main() -> None:
    """Run and write the record."""
    parser = make_parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="+")
    options = read_options(parser)
    machine = measure_machine(options.dtype, not options.alone, options.quick)
    rows = []
    for batch in options.batches or ([2] if options.quick else [1, 8]):
        blocks = 2 if options.quick else 4 if batch > 1 else 8
        sizes = shapes.choose_sizes(options.size, blocks)
        with shapes.keep_checkpoint(options.scratch, sizes, options.dtype) as folder:
            model = ivc_jax.load(folder, dtype=options.dtype, processor=False)[0]
            other = None if options.alone else torch_side.TorchModel(folder, options.dtype)
            rows += measure(options, batch, machine["read_bytes"], model, other)
            del model, other
            gc.collect()
    write_record(options, rows, machine=machine)


if __name__ == "__main__":
    main()
