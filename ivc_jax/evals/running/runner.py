"""The evaluation loop: every method on every batch, one record an example and method.

Methods take turns on each batch, so that slow drifts of the machine touch all of them alike; on the
first batch of a shape each is compiled, asked and recorded before the next ones are compiled.
Batches depend on the data and the settings alone, never on what an earlier run left undone:
resuming runs the same batches and writes the missing records only. Several processes walk through
the same batches together, each loads and records its own rows.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ivc_jax.evals.benchmarks.released import Bounds
from ivc_jax.evals.benchmarks.scorers.base import Reader
from ivc_jax.evals.benchmarks.tasks import COMPILED, READING, Task
from ivc_jax.evals.running.batching import BatchPlan, plan_batches
from ivc_jax.evals.running.loading import BatchLoader, LoadedBatch, load_ahead
from ivc_jax.evals.running.recording import (
    Answer,
    MethodEntry,
    RunIdentity,
    record_answer,
    record_failure,
)
from ivc_jax.evals.running.records import RecordFile, RunFolder
from ivc_jax.evals.running.survey import Failure, TaskEntry, survey
from ivc_jax.evals.schema import Statistics
from ivc_jax.inputs.bucket import Shape, Size
from ivc_jax.inputs.messages import Messages
from ivc_jax.inputs.objects import Box
from ivc_jax.parallel.processes import any_process


class Answerer(Protocol):
    """A model that answers batches of prompts, cut into `num_shards` equal shards.

    All methods up to `collate` work on the host, in any thread. `compiles_at_once` programs are
    compiled at a time. With `share_pictures` a picture of several samples goes through the tower
    once.
    """

    family: str
    num_shards: int
    local_shards: Sequence[int]
    compiles_at_once: int
    share_pictures: bool

    def find_owner(self, shard: int) -> int:
        """Return the process that records a shard."""

    def make_reader(self, bounds: Bounds | None) -> Reader:
        """Return what reads the answers about pictures within these bounds."""

    def measure(self, messages: Messages, bounds: Bounds | None) -> Size:
        """Say what a conversation takes up; ValueError if it cannot be used."""

    def process(
        self, messages: Messages, bounds: Bounds | None, objects: Sequence[Sequence[Box]] | None
    ) -> Any:
        """Make a sample of a conversation; ValueError if it cannot be used.

        Args:
            objects: boxes of the objects of each of its pictures, if the run asks for them.
        """

    def collate(self, samples: Sequence[Any], shape: Shape, holders: Sequence[int | None]) -> Any:
        """Pad the samples of one shard; something stands in for one that is None.

        Args:
            holders: samples with the same number have the same pictures.
        """

    def place(self, parts: Mapping[int, Any]) -> Any:
        """Put the local shards of a batch on the devices."""

    def warm_up(
        self,
        prepared: Any,
        methods: Sequence[Any],
        max_new_tokens: int,
        report: Callable[[], None],
    ) -> None:
        """Compile what these methods need for a batch of this shape, unless done before.

        Args:
            report: called after each method that was not.
        """

    def answer(self, prepared: Any, method: Any, max_new_tokens: int) -> list[Answer]:
        """Answer a placed batch under a pruning method, all its shards."""


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What to run.

    Attributes:
        batch_size: of all shards together.
        limit: rows of each task, None for all.
        buckets: bound on the padded shapes of the run.
        max_new_tokens: instead of the bounds of the tasks, by name of the task; "" for all others.
        process_index: of this process; where there are several, each writes files of its own.
    """

    tasks: Sequence[TaskEntry]
    methods: Sequence[MethodEntry]
    batch_size: int
    identity: RunIdentity
    limit: int | None = None
    buckets: int = 6
    max_new_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    process_index: int = 0
    process_count: int = 1

    def name_records(self, task: Task) -> str:
        """Name the record file of a task."""
        suffix = f".{self.process_index}" if self.process_count > 1 else ""
        return f"{task.name}{suffix}"

    def list_methods(self, task: int) -> list[MethodEntry]:
        """List the methods that can run on a task, which is named by its place."""
        known = self.tasks[task].objects
        return [method for method in self.methods if known or not method.with_objects]

    def bound_answers(self, task: Task) -> int:
        """Return the bound on the answers of a task."""
        usual = self.max_new_tokens.get("", task.max_new_tokens)
        return self.max_new_tokens.get(task.name, usual)


Progress = Callable[[str, int, int], None]


def run(plan: RunPlan, answerer: Answerer, folder: RunFolder, progress: Progress) -> Statistics:
    """Evaluate a plan, appending to the records of `folder`.

    Args:
        progress: called with (task, records present so far, records wanted), over all tasks, and
            with `READING` for the task and counts of rows while these are measured, `COMPILED`
            and counts of methods by shape while these are compiled.

    Raises:
        TaskError: a task has no prompt for the model.
        ValueError: the batch size does not fit the shards.
    """
    if plan.batch_size % answerer.num_shards:
        raise ValueError(
            f"batch_size {plan.batch_size} must be a multiple of the {answerer.num_shards} shards"
            " of the mesh's data axis"
        )
    for entry in plan.tasks:
        entry.task.prompt(dict.fromkeys(entry.task.scoring.columns, ""), answerer.family)
    files = [folder.open_records(plan.name_records(entry.task)) for entry in plan.tasks]
    try:
        return _Run(plan, answerer, files, progress).go()
    finally:
        for file in files:
            file.close()


class _Run:
    """The state of a run between its batches."""

    def __init__(
        self, plan: RunPlan, answerer: Answerer, files: Sequence[RecordFile], progress: Progress
    ) -> None:
        self.plan, self.answerer, self.files, self.progress = plan, answerer, files, progress
        self.statistics = Statistics()
        self.present = self.total = 0  # records of this process: there already, and wanted
        self.compiled = self.to_compile = 0  # methods by shape
        self.placed: set[Shape] = set()  # shapes that have been through `place`

    def go(self) -> Statistics:
        """Survey, then run what is missing."""
        plan, methods, start = self.plan, self.plan.methods, time.perf_counter()
        # this reads every file once
        rows = sum(len(entry.file.list_ids(plan.limit)) for entry in plan.tasks)
        examples, failures = survey(
            plan.tasks, plan.limit, self.answerer.family, self.answerer.measure,
            lambda done: self.progress(READING, done, rows),
        )  # fmt: skip
        shards = self.answerer.num_shards
        batches = plan_batches(
            examples, plan.batch_size, shards, plan.buckets, self.answerer.share_pictures
        )
        # no device is needed for these, so the processes deal them out
        own = [failures[n] for n in range(plan.process_index, len(failures), plan.process_count)]
        self._count(batches, own)
        self.statistics.survey = time.perf_counter() - start
        self.statistics.buckets = len({batch.shape for batch in batches})
        self._record_failures(own)
        # [batches, methods]: some process lacks a record, so that all of them must run it
        lacking = [[bool(self._list_missing(batch, m)) for m in methods] for batch in batches]
        needed = any_process(np.array(lacking, bool).reshape(len(batches), len(methods)))
        self._run_batches([(b, row) for b, row in zip(batches, needed, strict=True) if row.any()])
        return self.statistics

    def _run_batches(self, wanted: Sequence[tuple[BatchPlan, np.ndarray]]) -> None:
        """Run batches, each under the methods that its mask [methods] names."""
        # `waited` restarts behind each batch: what is between is the host's
        start = waited = time.perf_counter()
        wanted = [
            (batch, [m for m, chosen in zip(self.plan.methods, needed, strict=True) if chosen])
            for batch, needed in wanted
        ]
        self.to_compile = len(
            {
                (batch.shape, self.plan.bound_answers(self.plan.tasks[batch.task].task), m.spec)
                for batch, methods in wanted
                for m in methods
            }
        )
        loader = BatchLoader(self.plan.tasks, self.answerer)
        loaded = load_ahead(loader, [batch for batch, _ in wanted])
        for (_, methods), batch in zip(wanted, loaded, strict=True):
            self.statistics.wait += time.perf_counter() - waited
            self._run_batch(batch, methods)
            self.statistics.batches += 1
            waited = time.perf_counter()
        self.statistics.total = time.perf_counter() - start

    def _run_batch(self, batch: LoadedBatch, methods: Sequence[MethodEntry]) -> None:
        """Answer a batch under these methods and record what is missing of its rows."""
        plan, answerer = self.plan, self.answerer
        entry, file = plan.tasks[batch.plan.task], self.files[batch.plan.task]
        task, reader = entry.task, answerer.make_reader(entry.bounds)
        start = time.perf_counter()
        placed = answerer.place(batch.parts)
        if batch.plan.shape in self.placed:
            self.statistics.device += time.perf_counter() - start
        else:  # the tower, if it is shared, was compiled
            self.statistics.compile += time.perf_counter() - start
        self.placed.add(batch.plan.shape)
        owned = self._list_own(batch.plan)  # slots of this process
        for method in self._compile(placed, methods, plan.bound_answers(task)):
            start = time.perf_counter()
            answers = answerer.answer(placed, method.method, plan.bound_answers(task))
            self.statistics.device += time.perf_counter() - start
            for slot in owned:
                name = self._find_id(batch.plan, slot)
                if (name, method.spec) in file.done:
                    continue
                failure = batch.failures.get(slot)
                if failure is None and (error := answers[slot].error) is not None:
                    error = f"{entry.locate(batch.rows[slot])}: {error}"
                    failure = Failure(batch.plan.task, batch.plan.positions[slot], error)
                if failure is not None:
                    record = record_failure(plan.identity, task, method, name, failure)
                else:
                    record = record_answer(
                        plan.identity, task, method, batch.rows[slot], answers[slot],
                        reader,
                    )  # fmt: skip
                file.append(record)
                self.present += 1
            file.sync()
            self._show(batch.plan.task)

    def _compile(
        self, placed: Any, methods: Sequence[MethodEntry], max_new_tokens: int
    ) -> Iterator[MethodEntry]:
        """Yield each method when it is compiled for a batch; nothing compiles while one answers."""

        def report() -> None:
            self.compiled += 1
            self.progress(COMPILED, self.compiled, self.to_compile)

        step = self.answerer.compiles_at_once
        for first in range(0, len(methods), step):
            group, start = methods[first : first + step], time.perf_counter()
            self.answerer.warm_up(placed, [each.method for each in group], max_new_tokens, report)
            self.statistics.compile += time.perf_counter() - start
            yield from group

    def _record_failures(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            file, entry = self.files[failure.task], self.plan.tasks[failure.task]
            name = entry.file.find_id(failure.position)
            for method in self.plan.list_methods(failure.task):
                if (name, method.spec) not in file.done:
                    identity = self.plan.identity
                    file.append(record_failure(identity, entry.task, method, name, failure))
                    self.present += 1
        if failures:
            for file in self.files:
                file.sync()

    def _list_missing(self, batch: BatchPlan, method: MethodEntry) -> list[str]:
        """List the ids of own rows of a batch that have no record under a method.

        A method that cannot run on the task misses none.
        """
        if method not in self.plan.list_methods(batch.task):
            return []
        names = [self._find_id(batch, slot) for slot in self._list_own(batch)]
        return [n for n in names if (n, method.spec) not in self.files[batch.task].done]

    def _list_own(self, batch: BatchPlan) -> list[int]:
        """List the slots of a batch that this process records.

        A shard may lie on devices of several processes (a model split over hosts): all of them load
        it, and one owns its records. Slots from `count` on are repetitions.
        """
        size, answerer = len(batch.positions) // self.answerer.num_shards, self.answerer
        shards = [
            s for s in answerer.local_shards if answerer.find_owner(s) == self.plan.process_index
        ]
        slots = [slot for s in shards for slot in range(s * size, (s + 1) * size)]
        return [slot for slot in slots if slot < batch.count]

    def _find_id(self, batch: BatchPlan, slot: int) -> str:
        return self.plan.tasks[batch.task].file.find_id(batch.positions[slot])

    def _count(self, batches: Sequence[BatchPlan], failures: Sequence[Failure]) -> None:
        """Count the records that this process has and those that it wants."""
        rows = [(batch.task, len(self._list_own(batch))) for batch in batches]
        rows += [(failure.task, 1) for failure in failures]
        self.total = sum(count * len(self.plan.list_methods(task)) for task, count in rows)
        missing = sum(len(self._list_missing(b, m)) for b in batches for m in self.plan.methods)
        for failure in failures:
            name = self.plan.tasks[failure.task].file.find_id(failure.position)
            done = self.files[failure.task].done
            methods = self.plan.list_methods(failure.task)
            missing += sum((name, method.spec) not in done for method in methods)
        self.present = self.total - missing
        self._show(batches[0].task if batches else 0)

    def _show(self, task: int) -> None:
        self.progress(self.plan.tasks[task].task.name, self.present, self.total)
