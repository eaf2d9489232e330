"""Time and peak memory of a prefill at Qwen2.5-VL-3B's shape: dense against IVC-Prune.

    python benchmarks/prefill_3b.py [--rows 30] [--columns 50] [--repeats 2]
        [--methods dense ivc:keep_ratio=0.5]

Random float32 weights (15 GB) are drawn in memory, one image of rows x columns visual tokens and a
short question are prefilled, methods in turn within one process. The first call of each method
compiles and is left out. Needs about 20 GB of memory.
Expected on two CPU cores: about three minutes a prefill, the pruned one cheaper in later blocks.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ivc_jax
from ivc_jax.config import ModelConfig, from_hf
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.nn.decoder import init_params

ROOT = Path(__file__).parent.parent

# The sizes that the published config.json of Qwen2.5-VL-3B-Instruct states.
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
    "max_position_embeddings": 128000,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "hidden_act": "silu",
    },
}
METHODS = ("dense", "ivc:keep_ratio=0.5")


def random_params(config: ModelConfig) -> dict[str, Any]:
    """Draw every parameter on its own, so that no second copy of the model is ever held."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves, structure = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0)
    made = []
    for leaf in leaves:
        values = draw.random(leaf.shape, np.float32)
        values -= 0.5
        values *= 0.05
        made.append(jnp.asarray(values))
    return jax.tree.unflatten(structure, made)


def make_batch(config: ModelConfig, rows: int, columns: int) -> ivc_jax.Batch:
    """Make one prompt: 15 tokens, an image of rows x columns merged cells, 20 tokens."""
    draw = np.random.default_rng(1)
    image = [config.image_token_id] * (rows * columns)
    tokens = [*range(100, 114), config.vision_start_id, *image, config.vision_end_id]
    tokens += range(200, 219)
    return ivc_jax.Batch.from_hf(
        input_ids=np.array([tokens]),
        pixel_values=draw.standard_normal(
            (4 * rows * columns, config.vision.patch_values), np.float32
        ),
        image_grid_thw=np.array([[1, 2 * rows, 2 * columns]]),
    )


def measure(rows: int, columns: int, repeats: int, specs: list[str]) -> dict[str, Any]:
    """Prefill with each method in turn; return seconds, bytes and the process's peak memory."""
    config = from_hf(CONFIG)
    model = ivc_jax.Model(config, random_params(config))
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
    commit = ["git", "rev-parse", "HEAD"]
    report = {
        "benchmark": "prefill_3b",
        "shape": "Qwen2.5-VL-3B, float32, batch 1",
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "command": " ".join(["python", "benchmarks/prefill_3b.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "jax_version": jax.__version__,
        **found,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
