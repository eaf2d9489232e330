"""Batches read, decoded and padded on the host while the devices work on earlier ones."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain

from ivc_jax.evals.running.batching import BatchPlan
from ivc_jax.evals.running.survey import Failure, TaskEntry
from ivc_jax.evals.running.tsv import Row, RowError
from ivc_jax.evals.running.video_cells import VIDEO

# Batches in the making or ready at a time; patches of a large one take hundreds of megabytes.
_AHEAD = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class LoadedRow:
    """What stays of a row once its visuals are patches; rows with one `holder` have the same."""

    number: int
    example_id: str
    cells: dict[str, str]
    picture: str
    holder: int


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A batch on the host.

    Attributes:
        plan: what it is made of.
        parts: padded inputs of the shards that this process holds.
        rows: by slot in the batch, those of these shards that can be used; no repetitions.
        failures: by slot, those that cannot.
    """

    plan: BatchPlan
    parts: Mapping[int, Any]
    rows: Mapping[int, LoadedRow]
    failures: Mapping[int, Failure]


class BatchLoader:
    """Loads planned batches; grain's threads call it."""

    def __init__(self, entries: Sequence[TaskEntry], answerer: Any) -> None:
        self._entries = entries
        self._answerer = answerer

    def __call__(self, plan: BatchPlan) -> LoadedBatch:
        """Read, decode, cut and pad the local shards of one batch."""
        # slots   0 1 2 3 | 4 5 6 7    two shards of four; from `count` on rows are repetitions,
        # shards     0    |    1       which fill the shape and are recorded nowhere
        size = len(plan.positions) // self._answerer.num_shards
        parts, rows, failures = {}, {}, {}
        for shard in self._answerer.local_shards:
            samples, holders = [], []
            for slot in range(shard * size, (shard + 1) * size):
                sample, row = self._load(plan, slot)
                samples.append(sample)  # None where the row is broken: something stands in for it
                holders.append(None if isinstance(row, Failure) else row.holder)
                if slot >= plan.count:
                    continue
                if isinstance(row, Failure):
                    failures[slot] = row
                else:
                    rows[slot] = row
            parts[shard] = self._answerer.collate(samples, plan.shape, holders)
        return LoadedBatch(plan, parts, rows, failures)

    def _load(self, plan: BatchPlan, slot: int) -> tuple[Any, LoadedRow | Failure]:
        entry, position = self._entries[plan.task], plan.positions[slot]
        try:
            row: Row = entry.read(position)
        except RowError as error:
            return None, Failure(plan.task, position, str(error))
        try:
            messages = entry.write_messages(row, self._answerer.family)
            objects = entry.find_objects(row)
            sample = self._answerer.process(messages, entry.bounds, objects)
        except ValueError as error:
            return None, Failure(plan.task, position, f"{entry.locate(row)}: {error}")
        # the cells of visuals are long, and nobody reads them again
        cells = {name: cell for name, cell in row.cells.items() if name not in ("image", VIDEO)}
        return sample, LoadedRow(row.number, row.example_id, cells, row.picture, row.holder)


def load_ahead(loader: BatchLoader, plans: Sequence[BatchPlan]) -> Iterator[LoadedBatch]:
    """Yield the batches in order, the next ones being loaded meanwhile."""
    if not plans:
        return
    # batches, not rows: an element of the data set is a plan
    options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
    yield from grain.MapDataset.source(plans).map(loader).to_iter_dataset(options)
