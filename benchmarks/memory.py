"""How much memory does a prefill take beside the weights?

    python benchmarks/memory.py [--size 7b --dtype bfloat16] [--visual 4096]

Each case runs in a process of its own: a random checkpoint of Qwen2-VL-2B's width and four blocks
is loaded, then a prompt of 4,096 or 16,384 visual tokens prefilled, dense and cut to half before
block 2; and the tower (one block of it) sees the 16,384 patches of 4,096 visual tokens. What counts
is the peak of what is resident, compiling included, minus the bytes of the weights and what was
resident before anything was loaded (libraries: 0.4 GB on our side, more on torch's, where JAX is
imported too). `beside_weights` is our peak with the libraries. On a GPU it is the memory of the
device.
Expected on two CPU cores: four minutes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import shapes
import torch_side
from prefill import make_ours, make_torch
from record import Row, make_parser, read_options, write_record
from resident import measure_libraries, measure_peak, run_script
from tower import choose_sizes, draw_pictures

import ivc_jax
from ivc_jax.families import parse_config

BLOCKS = 4
METHODS = {"dense": "dense", "pruned": "ivc:layer=2,keep_ratio=0.5"}


def list_cases(options: argparse.Namespace) -> list[tuple[str, int]]:
    """List what is measured: "dense", "pruned" or "tower", and the visual tokens."""
    if options.quick:
        return [("pruned", options.visual)]
    cases = [(name, options.visual) for name in (*METHODS, "tower")]
    return [*cases, ("dense", 4 * options.visual)]


def measure(options: argparse.Namespace, name: str, visual: int, folder: Path) -> Row:
    """Measure one case on both sides."""
    weights = (folder / "model.safetensors").stat().st_size
    found: dict[str, dict[str, int]] = {}
    # The largest prompt is a question about us alone.
    alone = options.alone or visual > options.visual
    for side in ("ours",) if alone else ("ours", "torch"):
        child = {"side": side, "name": name, "visual": visual, "dtype": options.dtype}
        found[side] = run_script(__file__, "--child", json.dumps(child), folder)
        beside = (found[side]["peak"] - weights) / 1e9
        print(f"{name}, {visual} visual tokens: {side} weights + {beside:.2f} GB", flush=True)
    beside = {
        side: [(each["peak"] - each["libraries"] - weights) / 1e9] for side, each in found.items()
    }
    more = {"visual_tokens": visual, "weight_bytes": weights, "resident": found}
    more["beside_weights"] = (found["ours"]["peak"] - weights) / 1e9
    case = f"{name}, {visual} visual tokens"
    return Row(case, "GB", beside["ours"], beside.get("torch", []), more=more)


def run_child(case: dict[str, Any], folder: Path) -> dict[str, int]:
    """Load and run one side of a case in this process."""
    side = int((4 * case["visual"]) ** 0.5)  # patches, of the tower's picture
    if case["side"] == "ours":
        model = ivc_jax.load(folder, dtype=case["dtype"], processor=False)[0]
        if case["name"] == "tower":
            batch = draw_pictures(model.config, 1, side)[0]
            return measure_peak(lambda: jax.block_until_ready(ivc_jax.encode(model, batch)))
        inputs = shapes.make_inputs(model.config, case["visual"])
        placed = shapes.place_inputs(inputs, case["dtype"])
        return measure_peak(make_ours(model, placed, METHODS[case["name"]]))
    config = parse_config(json.loads((folder / "config.json").read_text()))
    other = torch_side.TorchModel(folder, case["dtype"])
    if case["name"] == "tower":
        _, *drawn = draw_pictures(config, 1, side)
        arguments = [other.to_tensor(each) for each in drawn]
        return torch_side.measure_peak(lambda: other.encode(*arguments))
    embedded = other.embed(shapes.make_inputs(config, case["visual"]))
    # Half of the visual tokens, whichever: which ones makes no difference to memory.
    kept = [np.arange(shapes.TEXT + case["visual"] // 2)]
    layer = None if case["name"] == "dense" else 2
    return torch_side.measure_peak(make_torch(other, embedded, layer, kept))


def main() -> None:
    """Run and write the record, or run one case in this process."""
    if sys.argv[1:2] == ["--child"]:
        case = json.loads(sys.argv[2])
        libraries = measure_libraries(with_torch=case["side"] == "torch")
        print(json.dumps({"libraries": libraries, **run_child(case, Path(sys.argv[3]))}))
        return
    parser = make_parser(__doc__)
    parser.add_argument("--visual", type=int, help="visual tokens; and four times as many")
    options = read_options(parser)
    options.visual = options.visual or (64 if options.quick else 4096)
    rows = []
    decoder = shapes.choose_sizes(options.size, BLOCKS)
    tower = choose_sizes("qwen2-vl-2b", 1, options.quick)
    for name, visual in list_cases(options):
        sizes = tower if name == "tower" else decoder
        with shapes.keep_checkpoint(options.scratch, sizes, options.dtype) as folder:
            rows.append(measure(options, name, visual, folder))
    write_record(options, rows)


if __name__ == "__main__":
    main()
