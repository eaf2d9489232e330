"""Rows of benchmark files as what a step trains on, in an order that the seed alone decides."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from ivc_jax.evals.benchmarks import prompts, tasks
from ivc_jax.evals.benchmarks.scorers.open_ended import EXACT_MATCH
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.evals.running.survey import TaskEntry, survey
from ivc_jax.inputs.batch import Batch
from ivc_jax.inputs.bucket import collate, list_steps
from ivc_jax.inputs.processor import Processor
from ivc_jax.methods.covipal import count_kept
from ivc_jax.model import Model
from ivc_jax.studies.covipal.losses import Answers
from ivc_jax.types import Inputs

_BUCKETS = list_steps(8, 2**16)  # lengths that answers are padded to

Place = tuple[int, int]  # file and row


def open_file(path: pathlib.Path) -> TaskEntry:
    """Open a file: that of a known task with its prompt, any other with questions as they are.

    Raises:
        TsvError: it cannot be used.
    """
    known = tasks.TASKS.get(path.stem)
    if known is None:
        known = tasks.Task(
            path.stem, EXACT_MATCH, "", "", prompts.AS_IT_IS, 0, source=str(path.parent)
        )
    return TaskEntry.open(known, path)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What can be trained on.

    Attributes:
        places: of all rows that can be read.
        failures: why others cannot.
    """

    model: Model
    processor: Processor
    entries: Sequence[TaskEntry]
    places: Sequence[Place]
    failures: Sequence[str]

    @classmethod
    def find(
        cls,
        model: Model,
        processor: Processor,
        entries: Sequence[TaskEntry],
        limit: int | None = None,
        report: Callable[[int], None] = lambda count: None,
    ) -> "Rows":
        """Look at every row once.

        Args:
            limit: rows of each file.
            report: called now and then with the number of rows seen.

        Raises:
            ValueError: no row can be used.
        """
        measure = ModelAnswerer(model, processor).measure
        found, failures = survey(entries, limit, model.config.family, measure, report)
        places = [(example.task, example.position) for example in found if example.size.visual]
        if not places:
            why = f": {failures[0].error}" if failures else ""
            raise ValueError(f"no row with a picture to train on{why}")
        return cls(model, processor, entries, places, [failure.error for failure in failures])

    def choose(self, seed: Sequence[int], step: int, batch: int) -> list[Place]:
        """Return the rows of a step, counted from 0: every row once before any comes again."""
        numbers, total = np.arange(step * batch, (step + 1) * batch), len(self.places)
        orders = {  # of each round through all rows
            turn: np.random.default_rng((*seed, turn)).permutation(total)
            for turn in np.unique(numbers // total).tolist()
        }
        return [self.places[orders[n // total][n % total]] for n in numbers.tolist()]

    def ask(self, places: Sequence[Place]) -> list[Batch]:
        """Read the prompts of rows, a batch of one each."""
        return [self._read(place)[0] for place in places]

    def read_answers(self, places: Sequence[Place]) -> list[list[int]]:
        """Read the cells of their answers as tokens, an end token behind them."""
        texts = [self._read(place)[1] for place in places]
        end = list(self.model.stop_ids[:1])
        return [[*ids, *end] for ids in self.processor.encode(texts)]

    def _read(self, place: Place) -> tuple[Batch, str]:
        entry = self.entries[place[0]]
        row = entry.read(place[1])
        messages = entry.write_messages(row, self.model.config.family)
        return self.processor(prompts=[messages]), row.cells.get("answer", "")


def join_prompts(model: Model, samples: Sequence[Batch]) -> Inputs:
    """Pad prompts to a bucket."""
    return collate(Batch.join(samples), model.config)


def join_answers(
    model: Model, samples: Sequence[Batch], answers: Sequence[Sequence[int]], ratio: float
) -> tuple[Inputs, Answers]:
    """Pad prompts with their answers to a bucket; count what `ratio` keeps of each."""
    whole = []
    for sample, answer in zip(samples, answers, strict=True):
        (tokens,) = sample.tokens
        both = np.concatenate([tokens, np.asarray(answer, tokens.dtype)])
        whole.append(dataclasses.replace(sample, tokens=(both,)))
    inputs = collate(Batch.join(whole), model.config)
    layout = inputs.layout
    counts = count_kept(ratio, layout.visual_slots)[np.asarray(layout.visual_count)]
    longest = max(map(len, answers))
    width = next(size for size in _BUCKETS if size >= longest)
    table = np.zeros((len(answers), width), np.int32)
    for target, answer in zip(table, answers, strict=True):
        target[: len(answer)] = answer
    lengths = np.array([len(answer) for answer in answers])[:, None]
    return inputs, Answers(
        prompts=np.array([len(sample.tokens[0]) for sample in samples], np.int32),
        tokens=table,
        valid=np.arange(width) < lengths,
        counts=counts,
    )
