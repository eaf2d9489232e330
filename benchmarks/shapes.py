"""Random weights, a prompt, and the header of a record: what benchmarks share."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ivc_jax
from ivc_jax.config import ModelConfig
from ivc_jax.nn.decoder import init_params

ROOT = Path(__file__).parent.parent


def draw_params(config: ModelConfig) -> dict[str, Any]:
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


def write_report(path: Path, name: str, **found: Any) -> None:
    """Write a record: what ran, where, at which commit, and what was found."""
    commit = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    report = {
        "benchmark": name,
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "command": " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "jax_version": jax.__version__,
        **found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
