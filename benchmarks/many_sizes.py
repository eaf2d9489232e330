"""An evaluation of many image sizes: programs compiled, host work hidden, memory flat.

    python benchmarks/many_sizes.py [--images 2000] [--sizes 200] [--buckets 6] [--batch-size 16]

Images of random sizes, JPEG in a TSV, are asked one question each; the bundled checkpoint answers
(what it says does not matter here). Its image processor is told to keep the sizes: 64 to 260
pixels a side.
"""

import argparse
import base64
import dataclasses
import io
import pathlib
import resource
import tempfile
import threading
import time

import jax
import numpy as np
import PIL.Image
from record import ROOT, write_report

import digit_scenes
import ivc_jax
from ivc_jax.engine.decode import run_decode
from ivc_jax.engine.prefill import run_prefill
from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.running import runner
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.evals.running.recording import MethodEntry, RunIdentity
from ivc_jax.evals.running.records import RunFolder, read_all
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.evals.running.tsv import TsvFile

_TASK = tasks.TASKS["DigitScenes_colour"]
_METHOD = "ivc:keep_ratio=0.5"
_SMALLEST, _LARGEST = 64, 260


def write_images(path: pathlib.Path, images: int, sizes: int) -> None:
    """Write a TSV of noisy pictures in so many sizes."""
    draw = np.random.default_rng(0)
    shapes = set()
    while len(shapes) < sizes:
        shapes.add(tuple(int(side) for side in draw.integers(_SMALLEST, _LARGEST, 2)))
    shapes = sorted(shapes)
    with path.open("w") as file:
        file.write("index\timage\tquestion\tanswer\n")
        for number in range(images):
            width, height = (
                shapes[draw.integers(len(shapes))] if number >= sizes else shapes[number]
            )
            pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
            buffer = io.BytesIO()
            PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            cell = base64.b64encode(buffer.getvalue()).decode()
            file.write(f"{number}\t{cell}\tWhat colour is the 7?\tred\n")


def read_resident() -> float:
    """Return the resident memory of this process in megabytes."""
    fields = pathlib.Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 1e6


class Watch(threading.Thread):
    """Notes the resident memory twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[float] = []
        self.stop = threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        while not self.stop.wait(0.5):
            self.seen.append(read_resident())

    def quarters(self) -> list[float]:
        """Return the largest value of each quarter of the time."""
        return [round(float(part.max()), 1) for part in np.array_split(np.array(self.seen), 4)]


def main() -> None:
    """Run and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sizes", type=int, default=200)
    parser.add_argument("--buckets", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    model, processor = ivc_jax.load(digit_scenes.CHECKPOINT)
    kept = dataclasses.replace(processor.images, min_pixels=1, max_pixels=_LARGEST**2)
    processor = dataclasses.replace(processor, images=kept)
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / _TASK.file_name
        write_images(path, arguments.images, arguments.sizes)
        entry = TaskEntry(_TASK, TsvFile(path, _TASK.scoring.columns))
        method = MethodEntry(_METHOD, 0.5, ivc_jax.methods.parse(_METHOD))
        plan = runner.RunPlan(
            [entry], [method], arguments.batch_size, RunIdentity("bundled", 0, ""),
            buckets=arguments.buckets,
        )  # fmt: skip
        folder, watch, marks = RunFolder(pathlib.Path(scratch) / "out"), Watch(), []

        def progress(task: str, done: int, total: int) -> None:
            if task == _TASK.name and done:
                marks.append((done, time.perf_counter()))
                if not watch.is_alive() and not watch.seen and done >= total // 10:
                    watch.start()  # after the programs of the usual sizes are compiled

        start = time.perf_counter()
        statistics = runner.run(plan, ModelAnswerer(model, processor), folder, progress)
        seconds = time.perf_counter() - start
        watch.stop.set()
        records = read_all(folder.path)
        write_report(
            arguments.out or ROOT / "benchmarks" / "results" / "many_sizes.json", "many_sizes",
            images=arguments.images,
            sizes=arguments.sizes,
            batch_size=arguments.batch_size,
            method=_METHOD,
            records=len(records),
            failed=sum(record.failed for record in records),
            distinct_visual_counts=len({record.visual_tokens for record in records}),
            buckets=statistics.buckets,
            bound_on_buckets=arguments.buckets,
            prefill_programs=run_prefill._cache_size(),
            decode_programs=run_decode._cache_size(),
            seconds=round(seconds, 1),
            statistics={k: round(v, 2) for k, v in dataclasses.asdict(statistics).items()},
            device_busy_share=round(statistics.busy_share, 4),
            tsv_megabytes=round(path.stat().st_size / 1e6, 1),
            resident_megabytes_by_quarter=watch.quarters(),
            jax_backend=jax.default_backend(),
        )  # fmt: skip
        folder.close()


if __name__ == "__main__":
    main()
