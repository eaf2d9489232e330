"""Peak memory of loading a checkpoint of Qwen2-VL-2B's shape.

    python benchmarks/load_memory.py [--folder SCRATCH] [--out benchmarks/results/load_memory.json]

A random bfloat16 checkpoint (4.4 GB in two shards, written tensor by tensor) is made in a temporary
folder, loaded in a fresh process, converted, restored in another, and deleted. What counts is
anonymous memory (RssAnon): pages of mapped files can be dropped at any time. On CPU the devices'
memory is the host's, so the bound is the model itself + its largest tensor + 2 GB.
Expected on two CPU cores: both rows within the bound, a few minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SLACK = 2 * 10**9  # bytes allowed beside the model and its largest tensor
_SAMPLE_SECONDS = 0.005


def write_checkpoint(folder: Path, num_shards: int = 2) -> dict[str, int]:
    """Write random bfloat16 shards; return the bytes of the model and of its largest tensor."""
    import jax
    import ml_dtypes
    import numpy as np

    from ivc_jax.families import QWEN2_VL, parse_config
    from ivc_jax.nn.decoder import init_params
    from ivc_jax.weights import keymap

    config = parse_config(QWEN2_VL.sizes["qwen2-vl-2b"])
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    sizes = keymap.list_shapes(shapes, config, QWEN2_VL.rules)
    noise = np.random.default_rng(0).standard_normal(1 << 22, np.float32).astype(ml_dtypes.bfloat16)
    names, weight_map = list(sizes), {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[number::num_shards]
        _write_shard(folder / file, {name: sizes[name] for name in part}, noise)
        weight_map |= dict.fromkeys(part, file)
    (folder / "config.json").write_text(json.dumps(QWEN2_VL.sizes["qwen2-vl-2b"]))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    counts = [2 * int(np.prod(shape)) for shape in sizes.values()]
    return {"model_bytes": sum(counts), "largest_tensor_bytes": max(counts)}


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], noise: Any) -> None:
    """Write one safetensors file: length of the header, header, values one after the other."""
    import numpy as np

    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            file.write(np.resize(noise, int(np.prod(shape))).tobytes())


def read_status(field: str) -> int:
    """Return a memory field of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def load_and_measure(folder: Path) -> dict[str, Any]:
    """Load a directory in bfloat16 while a thread samples this process's anonymous memory."""
    import jax

    from ivc_jax.model import load_params, read_config
    from ivc_jax.weights.source import DTYPES

    jax.block_until_ready(jax.numpy.zeros(1))
    before, peak, done = read_status("RssAnon"), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, read_status("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    params = jax.block_until_ready(load_params(folder, read_config(folder), DTYPES["bfloat16"]))
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    return {
        "loaded_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "anonymous_before_bytes": before,
        "anonymous_peak_bytes": max(peak, read_status("RssAnon")),
        "resident_peak_bytes": read_status("VmHWM"),
        "seconds": round(seconds, 1),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def _run_in_process(arguments: list[str]) -> str:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _measure(form: str, folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    row = json.loads(_run_in_process([str(Path(__file__).resolve()), "--measure", str(folder)]))
    bound = sizes["model_bytes"] + sizes["largest_tensor_bytes"] + SLACK
    row = {"form": form, **sizes, **row, "bound_bytes": bound}
    row["within_bound"] = row["anonymous_peak_bytes"] <= bound
    print(
        f"{form}: peak {row['anonymous_peak_bytes'] / 1e9:.2f} GB anonymous, bound"
        f" {bound / 1e9:.2f} GB, {row['seconds']} s",
        flush=True,
    )
    return row


def run(scratch: Path | None, out: Path) -> bool:
    """Make the checkpoint, measure both forms, write the report; tell whether both held."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        source, target = Path(name) / "source", Path(name) / "converted"
        source.mkdir()
        sizes = write_checkpoint(source)
        rows = [_measure("safetensors", source, sizes)]
        _run_in_process(["-m", "checkpoints_convert", str(source), str(target)])
        rows.append(_measure("orbax", target, sizes))
    commit = ["git", "rev-parse", "HEAD"]
    report = {
        "benchmark": "load_memory",
        "shape": "Qwen2-VL-2B, bfloat16, 2 shards",
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "command": "python benchmarks/load_memory.py",
        "platform": os.environ.get("JAX_PLATFORMS", ""),
        "cpu_count": os.cpu_count(),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    return all(row["within_bound"] for row in rows)


def main() -> int:
    """Run the benchmark, or its measuring half inside the fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/load_memory.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(load_and_measure(chosen.measure)))
        return 0
    return 0 if run(chosen.folder, chosen.out) else 1


if __name__ == "__main__":
    sys.exit(main())
