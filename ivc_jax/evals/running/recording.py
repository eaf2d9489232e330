"""Answers -> records."""

import dataclasses
from typing import Any

from ivc_jax.evals.benchmarks.cells import read_text
from ivc_jax.evals.benchmarks.scorers.base import Reader
from ivc_jax.evals.benchmarks.tasks import Task
from ivc_jax.evals.running.loading import LoadedRow
from ivc_jax.evals.running.survey import Failure
from ivc_jax.evals.schema import Record


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said to one prompt, and what it cost; times are shares of the batch's.

    `cached_share` is the mean over layers of the share of visual tokens in the cache, `flops` the
    operations of the decoder in the prefill. An `error` says why there is no answer.
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
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """A pruning method and how records call it; some run only where objects are known."""

    spec: str
    keep_ratio: float
    method: Any
    with_objects: bool = False


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What all records of a run share: the name of the model, the seed and the commit."""

    model: str
    seed: int
    commit: str


def record_answer(
    run: RunIdentity,
    task: Task,
    method: MethodEntry,
    row: LoadedRow,
    answer: Answer,
    reader: Reader,
) -> Record:
    """Parse and score an answer, and make its record."""
    parsed = task.scoring.parse(answer.text, row.cells, reader)
    return Record(
        task=task.name,
        split=read_text(row.cells, "split") or task.split,  # a file may hold several splits
        example_id=row.example_id,
        model=run.model,
        method=method.spec,
        keep_ratio=method.keep_ratio,
        prediction=answer.text,
        parsed=parsed,
        score=task.scoring.score(parsed, row.cells, reader),
        target=row.cells["answer"],
        question=row.cells["question"],
        category=read_text(row.cells, "category"),
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
        cells={name: read_text(row.cells, name) for name in task.scoring.cells},
        # the vision tower is in it unless methods share it
        seconds=round((answer.prefill_ms + answer.decode_ms) / 1000, 6),
        seed=run.seed,
        commit=run.commit,
        row=row.number,
    )


def record_failure(
    run: RunIdentity, task: Task, method: MethodEntry, name: str, failure: Failure
) -> Record:
    """Make the record of a row that cannot be used."""
    return Record(
        task=task.name,
        split=task.split,
        example_id=name,
        model=run.model,
        method=method.spec,
        keep_ratio=method.keep_ratio,
        prediction=None,  # nobody was asked
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
        seed=run.seed,
        commit=run.commit,
        row=failure.position + 1,  # rows count from 1, positions from 0
        failed=True,
        error=failure.error,
    )
