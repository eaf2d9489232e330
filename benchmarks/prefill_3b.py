"""Time and peak memory of a prefill at Qwen2.5-VL-3B's shape: dense against IVC-Prune.

    python benchmarks/prefill_3b.py [--rows 30] [--columns 50] [--repeats 2]
        [--methods dense ivc:keep_ratio=0.5]

Random float32 weights (15 GB) are drawn in memory, one image of rows x columns visual tokens and a
short question are prefilled, methods in turn within one process. The first call of each method
compiles and is left out. Needs about 20 GB of memory.
Expected on two CPU cores: about three minutes a prefill, the pruned one cheaper in later blocks.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import jax
from shapes import ROOT, draw_params, make_batch, write_report

import ivc_jax
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.inputs.bucket import Buckets, collate

METHODS = ("dense", "ivc:keep_ratio=0.5")


def measure(rows: int, columns: int, repeats: int, specs: list[str]) -> dict[str, Any]:
    """Prefill with each method in turn; return seconds, bytes and the process's peak memory."""
    config = parse_config(list_sizes()["qwen2.5-vl-3b"])
    model = ivc_jax.Model(config, draw_params(config))
    buckets = Buckets(text=(40,), visual=(rows * columns,))
    inputs = collate(make_batch(config, rows, columns), config, buckets)
    found: dict[str, dict[str, Any]] = {spec: {"seconds": []} for spec in specs}
    for repeat in range(repeats + 1):
        for spec, row in found.items():
            start = time.perf_counter()
            prompt = ivc_jax.prefill(model, inputs, ivc_jax.methods.parse(spec))
            jax.block_until_ready((prompt.logits, prompt.cache))
            seconds = round(time.perf_counter() - start, 2)
            if repeat:
                row["seconds"].append(seconds)
            else:
                row["first_call_seconds"] = seconds
            row |= {"kv_bytes": prompt.kv_bytes, "kept_tokens": len(prompt.kept[0])}
            print(f"{spec}: {seconds} s, cache {prompt.kv_bytes / 1e6:.1f} MB", flush=True)
    return {
        "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "visual_tokens": rows * columns,
        "methods": found,
    }


def main() -> None:
    """Run and write benchmarks/results/prefill_3b.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/prefill_3b.json")
    chosen = parser.parse_args()
    found = measure(chosen.rows, chosen.columns, chosen.repeats, chosen.methods)
    write_report(chosen.out, "prefill_3b", shape="Qwen2.5-VL-3B, float32, batch 1", **found)


if __name__ == "__main__":
    main()
