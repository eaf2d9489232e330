"""The evaluation loop: every method on every batch, one record an example and method.

Methods take turns on each batch, so that slow drifts of the machine touch all of them alike.
Batches are consecutive rows in file order and do not depend on what an earlier run left undone:
resuming runs the same batches and writes the missing records only.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import PIL.Image

from ivc_jax.evals.records import Record, RecordFile, RunFolder
from ivc_jax.evals.tasks import Task
from ivc_jax.evals.tsv import Row, RowError, TsvFile


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said to one prompt, and what it cost; times are shares of the batch's.

    `cached_share` is the mean over layers of the share of visual tokens in the cache, `flops` the
    operations of the decoder in the prefill.
    """

    text: str
    visual_tokens: int
    kept: list[int]
    grids: list[list[int]]
    kv_bytes: float
    prefill_ms: float
    decode_ms: float
    decode_steps: int
    cached_share: float = 1.0
    flops: float = 0.0


class Answerer(Protocol):
    """A model that answers batches of prompts."""

    family: str

    def prepare(self, prompts: Sequence[str], images: Sequence[Sequence[PIL.Image.Image]]) -> Any:
        """Tokenize a batch and put it on the device; ValueError if a prompt cannot be used."""

    def warm_up(self, prepared: Any, methods: Sequence[Any], max_new_tokens: int) -> None:
        """Compile what these methods need for a batch of this shape, unless done before."""

    def answer(self, prepared: Any, method: Any, max_new_tokens: int) -> list[Answer]:
        """Answer a prepared batch under a pruning method."""


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """A pruning method and how records call it."""

    spec: str
    keep_ratio: float
    method: Any


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """A task and its open file."""

    task: Task
    file: TsvFile


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What to run.

    Attributes:
        limit: rows of each task, None for all.
        process_index: this process takes the batches whose number is `process_index` modulo
            `process_count` and writes files of its own.
    """

    tasks: Sequence[TaskEntry]
    methods: Sequence[MethodEntry]
    batch_size: int
    model: str
    seed: int
    commit: str
    limit: int | None = None
    process_index: int = 0
    process_count: int = 1

    def record_name(self, task: Task) -> str:
        """Name of the record file of a task."""
        suffix = f".{self.process_index}" if self.process_count > 1 else ""
        return f"{task.name}{suffix}"


Progress = Callable[[str, int, int], None]


def run(plan: RunPlan, answerer: Answerer, folder: RunFolder, progress: Progress) -> None:
    """Evaluate a plan, appending to the records of `folder`.

    Args:
        progress: called with (task, records present so far, records wanted), over all tasks.

    Raises:
        TaskError: a task has no prompt for the model.
    """
    for entry in plan.tasks:
        entry.task.prompt(dict.fromkeys(entry.task.scoring.columns, ""), answerer.family)
    files = [folder.records(plan.record_name(entry.task)) for entry in plan.tasks]
    batches = [_batches(plan, entry.file) for entry in plan.tasks]
    specs = {entry.spec for entry in plan.methods}
    wanted = [{row for batch in parts for row in batch} for parts in batches]
    total = sum(map(len, wanted)) * len(specs)
    ids = [entry.file.ids(plan.limit) for entry in plan.tasks]
    present = 0
    for file, rows, names in zip(files, wanted, ids, strict=True):
        here = {names[row] for row in rows}
        present += sum(name in here and spec in specs for name, spec in file.done)
    for entry, file, parts in zip(plan.tasks, files, batches, strict=True):
        progress(entry.task.name, present, total)
        try:
            for positions in parts:
                for _ in _run_batch(plan, entry, answerer, file, positions):
                    present += 1
                progress(entry.task.name, present, total)
        finally:
            file.close()


def _batches(plan: RunPlan, file: TsvFile) -> list[list[int]]:
    """Cut the rows of a file into batches and take those of this process."""
    count = len(file.ids(plan.limit))
    starts = range(0, count, plan.batch_size)
    return [
        list(range(start, min(start + plan.batch_size, count)))
        for number, start in enumerate(starts)
        if number % plan.process_count == plan.process_index
    ]


def _run_batch(
    plan: RunPlan, entry: TaskEntry, answerer: Answerer, file: RecordFile, positions: list[int]
) -> Any:
    """Run what is missing of one batch; yield after each record."""
    names = [entry.file.ids(plan.limit)[position] for position in positions]
    missing = {
        method.spec: {name for name in names if (name, method.spec) not in file.done}
        for method in plan.methods
    }
    if not any(missing.values()):
        return
    rows, failures = _read(entry, positions, names, answerer.family)
    prepared, rows = _prepare(plan, entry, answerer, rows, failures)
    if rows:
        needed = [method.method for method in plan.methods if missing[method.spec]]
        answerer.warm_up(prepared, needed, entry.task.max_new_tokens)
    for method in plan.methods:
        if not missing[method.spec]:
            continue
        records = [
            _failed(plan, entry.task, method, name, position, error)
            for name, position, error in failures
        ]
        if rows:
            answers = answerer.answer(prepared, method.method, entry.task.max_new_tokens)
            # answers beyond the rows belong to the padding of a partial batch
            for row, answer in zip(rows, answers, strict=False):
                records.append(_scored(plan, entry.task, method, row, answer, answerer.family))
        records.sort(key=lambda record: record.row)
        for record in records:
            if record.example_id in missing[method.spec]:
                file.append(record)
                missing[method.spec].discard(record.example_id)
                yield
        file.sync()


Failure = tuple[str, int, str]  # example id, position in the file, message


def _read(
    entry: TaskEntry, positions: Sequence[int], names: Sequence[str], family: str
) -> tuple[list[Row], list[Failure]]:
    rows, failures = [], []
    for position, name in zip(positions, names, strict=True):
        try:
            row = entry.file.read(position)
        except RowError as error:
            failures.append((name, position, str(error)))
            continue
        try:
            entry.task.check_cells(row.cells, family)
            rows.append(row)
        except ValueError as error:
            failures.append((name, position, f"{_place(entry, row)}: {error}"))
    return rows, failures


def _place(entry: TaskEntry, row: Row) -> str:
    return f"{entry.file.path.name} row {row.number} (index {row.example_id})"


def _prepare(
    plan: RunPlan,
    entry: TaskEntry,
    answerer: Answerer,
    rows: list[Row],
    failures: list[Failure],
) -> tuple[Any, list[Row]]:
    """Prepare a batch; rows that the model cannot take move to `failures`."""
    if not rows:
        return None, rows
    try:
        return _prepare_rows(plan, entry, answerer, rows), rows
    except ValueError:
        # Some row is at fault: find it by preparing each alone, then prepare the others.
        usable = []
        for row in rows:
            try:
                _prepare_rows(plan, entry, answerer, [row])
                usable.append(row)
            except ValueError as error:
                failures.append((row.example_id, row.number - 1, f"{_place(entry, row)}: {error}"))
    if not usable:
        return None, usable
    return _prepare_rows(plan, entry, answerer, usable), usable


def _prepare_rows(plan: RunPlan, entry: TaskEntry, answerer: Answerer, rows: list[Row]) -> Any:
    prompts = [entry.task.prompt(row.cells, answerer.family) for row in rows]
    images = [row.images for row in rows]
    # A partial batch repeats its last row: the batch size is part of the compiled shape.
    padding = plan.batch_size - len(rows)
    return answerer.prepare(prompts + prompts[-1:] * padding, images + images[-1:] * padding)


def _scored(
    plan: RunPlan, task: Task, method: MethodEntry, row: Row, answer: Answer, family: str
) -> Record:
    parsed = task.scoring.parse(answer.text, row.cells, family)
    return Record(
        task=task.name,
        split=row.cells.get("split") or task.split,
        example_id=row.example_id,
        model=plan.model,
        method=method.spec,
        keep_ratio=method.keep_ratio,
        prediction=answer.text,
        parsed=parsed,
        score=task.scoring.score(parsed, row.cells, family),
        target=row.cells["answer"],
        question=row.cells["question"],
        category=row.cells.get("category", ""),
        visual_tokens=answer.visual_tokens,
        kept_tokens=len(answer.kept),
        kept=answer.kept,
        grids=answer.grids,
        kv_bytes=answer.kv_bytes,
        prefill_ms=round(answer.prefill_ms, 4),
        decode_ms=round(answer.decode_ms, 4),
        decode_steps=answer.decode_steps,
        cached_share=round(answer.cached_share, 6),
        flops=answer.flops,
        picture=row.picture,
        seconds=round((answer.prefill_ms + answer.decode_ms) / 1000, 6),
        seed=plan.seed,
        commit=plan.commit,
        row=row.number,
    )


def _failed(
    plan: RunPlan, task: Task, method: MethodEntry, name: str, position: int, error: str
) -> Record:
    return Record(
        task=task.name,
        split=task.split,
        example_id=name,
        model=plan.model,
        method=method.spec,
        keep_ratio=method.keep_ratio,
        prediction=None,
        parsed=None,
        score=None,
        target=None,
        question=None,
        category="",
        visual_tokens=0,
        kept_tokens=0,
        kept=[],
        grids=[],
        kv_bytes=0,
        prefill_ms=0.0,
        decode_ms=0.0,
        decode_steps=0,
        seconds=0.0,
        seed=plan.seed,
        commit=plan.commit,
        row=position + 1,
        failed=True,
        error=error,
    )
