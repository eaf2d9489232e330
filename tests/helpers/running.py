"""A run whose answers need no model."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from helpers.readers import read_as
from helpers.tsv import HEADER, IMAGE, write_tsv

from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.running import runner, tsv
from ivc_jax.evals.running.recording import Answer, MethodEntry, RunIdentity
from ivc_jax.evals.running.records import RunFolder
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.inputs.bucket import Size

COLOUR = tasks.TASKS["DigitScenes_colour"]


class FakeAnswerer:
    """Answers "red" under dense and "blue" under anything else; counts its batches."""

    family = "qwen2_vl"

    def __init__(self, batch_size, broken=(), shards=1, local=(0,), owners=(0,)):
        self.batch_size, self.broken, self.calls = batch_size, broken, []
        self.compiles_at_once, self.share_pictures, self.warm = 1, False, set()
        self.num_shards, self.local_shards, self.owners = shards, local, owners

    def find_owner(self, shard):
        return self.owners[shard]

    def make_reader(self, bounds):
        return read_as(self.family)

    def measure(self, messages, bounds):
        width, height = messages[0]["content"][0]["image"].size
        return Size(4, width * height, width * height, 1, 1, 8)

    def process(self, messages, bounds, objects):
        *_, text = messages[0]["content"]
        if text["text"] in self.broken:
            raise ValueError("the prompt is too long")
        return text["text"]

    def collate(self, samples, shape, holders):
        assert len(holders) == len(samples)
        return list(samples)

    def place(self, parts):
        return [sample for shard in sorted(parts) for sample in parts[shard]]

    def warm_up(self, prepared, methods, max_new_tokens, report):
        self.warmed = (prepared, methods)
        assert len(methods) <= self.compiles_at_once
        for method in methods:
            if method not in self.warm:
                self.warm.add(method)
                report()

    def answer(self, prepared, method, max_new_tokens):
        assert len(prepared) == self.batch_size // self.num_shards * len(self.local_shards)
        assert self.warmed[0] is prepared
        assert method in self.warmed[1]
        self.calls.append((method, tuple(prepared)))
        text = "Red." if method == "dense" else "blue"
        answer = Answer(text, 4, [0, 3], [[1, 2, 2]], 128.0, 2.0, 6.0, 3)
        return [answer] * self.batch_size  # those of other processes come along


def make_plan(
    folder: pathlib.Path,
    count: int = 5,
    batch_size: int = 2,
    methods: Sequence[str] = ("dense", "half"),
    rows: Sequence[Sequence[str]] | None = None,
    **options: Any,
) -> runner.RunPlan:
    """Plan a run over questions that "red" answers."""
    rows = rows or [[str(n), IMAGE, f"q{n}", "red"] for n in range(count)]
    path = write_tsv(folder / COLOUR.file_name, HEADER, rows)
    entry = TaskEntry(COLOUR, tsv.TsvFile(path, COLOUR.scoring.columns))
    entries = [MethodEntry(name, 1.0 if name == "dense" else 0.5, name) for name in methods]
    return runner.RunPlan([entry], entries, batch_size, RunIdentity("m", 0, "c"), **options)


def run(
    plan: runner.RunPlan, out: pathlib.Path, answerer: FakeAnswerer | None = None
) -> tuple[FakeAnswerer, list[tuple]]:
    """Run a plan; return the answerer and the progress on records."""
    answerer = answerer or FakeAnswerer(plan.batch_size)
    folder, seen = RunFolder(out, plan.process_index), []
    show: Callable = lambda *event: seen.append(event)  # noqa: E731
    try:
        runner.run(plan, answerer, folder, show)
    finally:
        folder.close()
    return answerer, [event for event in seen if event[0] not in (tasks.READING, tasks.COMPILED)]
