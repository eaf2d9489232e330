"""Many questions behind one picture, each seeing the picture and itself only.

Positions restart after the picture, so every question meets exactly what it would meet alone:

                 <vs> i i i </vs>  Q1 Q1 A1  Q2 Q2 A2
    position       0  1 1 1   4     5  6  7   5  6  7      (time axis; a 1 x 3 grid here)
    picture        x  x x x   x     .  .  .   .  .  .
    first A        x  x x x   x     x  x  x   .  .  .      x: may look at
    second A       x  x x x   x     .  .  .   x  x  x
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from digit_cells.questions import Question

# Tokens of the question and of the answer; every question of a task has the same length.
LENGTHS = {
    "grounding": (5, 4),
    "reading": (7, 1),
    "relations": (8, 1),
    "existence": (6, 1),
    "colour": (6, 1),
    "counting": (4, 1),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a packed sequence is laid out.

    Attributes:
        tasks: one entry a question; those of a task lie side by side.
        grid: visual tokens along a side of the picture.
        line: all slots are numbered on one line, instead of visual tokens by row and column.
    """

    tasks: tuple[str, ...]
    grid: int
    line: bool = False

    @property
    def picture(self) -> int:
        """Slots of <|vision_start|>, the grid and <|vision_end|>."""
        return self.grid * self.grid + 2

    @property
    def length(self) -> int:
        """Slots of the sequence."""
        return self.picture + sum(map(_count_slots, self.tasks))

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """First slot of each question."""
        sizes = map(_count_slots, self.tasks[:-1])
        return tuple(itertools.accumulate(sizes, initial=self.picture))

    @functools.cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """(first slot, slots of a question, questions) of each run of one task."""
        runs, at = [], self.picture
        for task, group in itertools.groupby(self.tasks):
            runs.append((at, _count_slots(task), len(list(group))))
            at += runs[-1][1] * runs[-1][2]
        return tuple(runs)

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Which slots see which, [N, N] bool; nobody forms it in training."""
        sizes = [_count_slots(task) for task in self.tasks]
        # the question of each slot, [N]; -1 for the picture
        segment = np.repeat(np.arange(-1, len(sizes)), [self.picture, *sizes])
        visible = (segment[None] == -1) | (segment[:, None] == segment[None])
        return np.tril(visible)

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """M-RoPE positions of each slot, [3, N] int32; of a line all axes are alike."""
        positions = np.zeros((3, self.length), np.int32)
        grid, last = self.grid, self.picture - 1
        cell = np.arange(grid * grid)
        places = [cell, cell, cell] if self.line else [0 * cell, cell // grid, cell % grid]
        positions[:, 1:last] = 1 + np.stack(places)
        positions[:, last] = end = positions.max() + 1
        for start, task in zip(self.starts, self.tasks, strict=True):
            count = _count_slots(task)
            positions[:, start : start + count] = end + 1 + np.arange(count)
        return positions

    @functools.cached_property
    def answer_index(self) -> np.ndarray:
        """Slots whose prediction is an answer token or the end that follows it, [A] int32."""
        parts = []
        for start, task in zip(self.starts, self.tasks, strict=True):
            question, answer = LENGTHS[task]
            parts.append(start + question + 1 + np.arange(answer + 1))
        return np.concatenate(parts).astype(np.int32)

    @functools.cached_property
    def answer_owner(self) -> np.ndarray:
        """Question that each entry of `answer_index` belongs to, [A] int32."""
        sizes = [LENGTHS[task][1] + 1 for task in self.tasks]
        return np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)


def _count_slots(task: str) -> int:
    question, answer = LENGTHS[task]
    return question + 2 + answer  # <|im_end|><|im_start|> between them


class Encoder:
    """Turns packed questions into tokens; remembers the words of texts that it has met."""

    def __init__(self, tokenizer: Tokenizer, plan: Plan) -> None:
        self.plan = plan
        find = tokenizer.token_to_id
        self._end, self._start = find("<|im_end|>"), find("<|im_start|>")
        pads = ["<|image_pad|>"] * plan.grid**2
        self._blank = np.full(plan.length, find("<|endoftext|>"), np.int32)
        self._blank[: plan.picture] = [
            find(name) for name in ("<|vision_start|>", *pads, "<|vision_end|>")
        ]
        self._read = functools.lru_cache(maxsize=1 << 17)(lambda text: tokenizer.encode(text).ids)

    def __call__(self, questions: Sequence[Sequence[Question | None]]) -> dict[str, np.ndarray]:
        """Tokenise the questions of B scenes; None is a question that a scene does not allow.

        Returns:
            "tokens" [B, N] int32 and "answers" [B, A] int32 (-1: nothing to learn here).
        """
        plan = self.plan
        tokens = np.tile(self._blank, (len(questions), 1))
        answers = np.full((len(questions), len(plan.answer_index)), -1, np.int32)
        for row, asked in enumerate(questions):
            at = 0
            for start, task, question in zip(plan.starts, plan.tasks, asked, strict=True):
                if question is not None:
                    text, answer = self._read(question.text), self._read(question.answer)
                    if (len(text), len(answer)) != LENGTHS[task]:
                        raise ValueError(f"{question} has {len(text)} + {len(answer)} tokens")
                    slots = [*text, self._end, self._start, *answer]
                    tokens[row, start : start + len(slots)] = slots
                    answers[row, at : at + len(answer) + 1] = [*answer, self._end]
                at += LENGTHS[task][1] + 1
        return {"tokens": tokens, "answers": answers}
