"""How long does loading take over reading the bytes, and how much memory at most?

    python benchmarks/loading.py [--blocks 28]

Random checkpoints of Qwen2-VL-2B's shape, written tensor by tensor: the whole model in bfloat16,
and eight decoder blocks of it in float32, each loaded in the dtype of its file; the first one also
as `checkpoints_convert` writes it. Each load is a process of its own; its bytes are read there
before and after (plain reads of the files into one buffer, from the system's cache if they are in
it), and the times compared. `touched` is the load and a look at every page of what it returned,
because a mapped file is read when it is used; `over_reading` counts that. Memory: anonymous pages
(RssAnon; those of mapped files can be dropped at any time) against the bound of the project, the
model + its largest tensor + 2 GB, and the peak of all. torch loads the same files with
transformers.
Expected on two CPU cores: three minutes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import shapes
import torch_side
from record import Row, make_parser, read_options, write_record
from resident import measure_libraries, measure_peak, read_status, run_python, run_script

import ivc_jax
from ivc_jax.families import list_sizes

SLACK = 2 * 10**9  # bytes allowed beside the model and its largest tensor
_SAMPLE_SECONDS = 0.005
_SECONDS = ("seconds", "touched_seconds", "read_seconds")
_BUFFER = 2**26  # bytes of one plain read


def read_plainly(folder: Path) -> float:
    """Read every file of a folder into one buffer; return the seconds."""
    buffer, start = bytearray(_BUFFER), time.perf_counter()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def load(side: str, folder: Path, dtype: str) -> list[np.ndarray]:
    """Load a checkpoint; return its parameters, on CPU without a copy."""
    if side == "torch":
        return torch_side.TorchModel(folder, dtype).list_arrays()
    model = ivc_jax.load(folder, dtype=dtype, processor=False)[0]
    leaves = jax.block_until_ready(jax.tree.leaves(model.params))
    return [np.asarray(leaf) for leaf in leaves] if jax.default_backend() == "cpu" else []


def run_child(side: str, folder: Path, dtype: str) -> dict[str, float]:
    """Load in this process, between two plain reads, while a thread watches the memory."""
    measure_libraries(with_torch=side == "torch")  # importing them is not part of loading
    reads = [read_plainly(folder), read_plainly(folder)][1:]  # the first one fills the cache
    anonymous, seconds = read_status("RssAnon"), []

    def work() -> None:
        start = time.perf_counter()
        arrays = load(side, folder, dtype)
        seconds.append(time.perf_counter() - start)
        for array in arrays:  # a byte of every page: mapped files are read when they are used
            array.reshape(-1).view(np.uint8)[::4096].sum()
        seconds.append(time.perf_counter() - start)

    peak, found = _watch(lambda: measure_peak(work))
    reads.append(read_plainly(folder))
    return {
        "seconds": seconds[0],
        "touched_seconds": seconds[1],
        "read_seconds": statistics.median(reads),
        "anonymous_before_bytes": anonymous,
        "anonymous_peak_bytes": peak,
        "resident_peak_bytes": found["peak"],
    }


def _watch(work: Callable[[], Any]) -> tuple[int, Any]:
    """Return the peak of anonymous memory during some work, and what the work returned."""
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, read_status("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        found = work()
    finally:
        done.set()
        sampler.join()
    return max(peak, read_status("RssAnon")), found


def measure(options: argparse.Namespace, case: str, folder: Path, dtype: str, sizes: Any) -> Row:
    """Load a folder in fresh processes, in turns with torch where torch can read it."""
    sides = ["ours"] if options.alone or "converted" in case else ["ours", "torch"]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side in sides:
            found[side].append(run_script(__file__, "--child", side, folder, dtype))
            each = {name: f"{found[side][-1][name]:.2f} s" for name in _SECONDS}
            print(f"{case}: {side} {each}", flush=True)
    seconds = {side: [each["seconds"] for each in found[side]] for side in sides}
    peaks = [each["anonymous_peak_bytes"] for each in found["ours"]]
    over = [each["touched_seconds"] / each["read_seconds"] for each in found["ours"]]
    bound = sizes["model_bytes"] + sizes["largest_tensor_bytes"] + SLACK
    more = {
        "dtype": dtype, **sizes, "over_reading": statistics.median(over), "bound_bytes": bound,
        "within_bound": max(peaks) <= bound, "processes": found,
    }  # fmt: skip
    return Row(case, "s", seconds["ours"], seconds.get("torch", []), more=more)


def choose_sizes(options: argparse.Namespace, blocks: int) -> dict[str, Any]:
    """Return the `config.json` of Qwen2-VL-2B with so many decoder blocks, or of a tiny model."""
    if options.quick:
        return shapes.choose_sizes("tiny", blocks)
    sizes = {**list_sizes()["qwen2-vl-2b"], "num_hidden_layers": blocks}
    return {**sizes, "architectures": ["Qwen2VLForConditionalGeneration"]}


def main() -> None:
    """Run and write the record, or load in this process."""
    if sys.argv[1:2] == ["--child"]:
        side, folder, dtype = sys.argv[2:]
        print(json.dumps(run_child(side, Path(folder), dtype)))
        return
    parser = make_parser(__doc__, repeats=2)
    parser.add_argument("--blocks", type=int, default=28, help="of the decoder, in bfloat16")
    options = read_options(parser)
    blocks = 2 if options.quick else options.blocks
    rows = []
    for dtype, count in (("bfloat16", blocks), ("float32", min(8, blocks))):
        config = choose_sizes(options, count)
        with shapes.keep_checkpoint(options.scratch, config, dtype) as source:
            sizes = {
                "model_bytes": (source / "model.safetensors").stat().st_size,
                "largest_tensor_bytes": config["vocab_size"] * config["hidden_size"]
                * jax.numpy.dtype(dtype).itemsize,
            }  # fmt: skip
            case = f"{count} blocks, {dtype}, {sizes['model_bytes'] / 1e9:.2f} GB"
            rows.append(measure(options, case, source, dtype, sizes))
            if dtype == "float32" or options.quick:
                continue
            with tempfile.TemporaryDirectory(dir=source.parent) as target:
                run_python("-m", "checkpoints_convert", source, target)
                rows.append(measure(options, f"{case}, converted", Path(target), dtype, sizes))
    write_record(options, rows)


if __name__ == "__main__":
    main()
