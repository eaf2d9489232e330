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

from digit_scenes.questions import LENGTHS, Question, ask
from digit_scenes.scenes import Scene


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a packed sequence is laid out.

    Attributes:
        tasks: one entry a question.
        grid: visual tokens along a side of what is shown of the picture.
        line: all slots are numbered on one line, instead of visual tokens by row and column.
        whole: visual tokens along a side of the whole picture, if only its top left corner is
            shown: all slots are numbered as they are behind the whole.
    """

    tasks: tuple[str, ...]
    grid: int
    line: bool = False
    whole: int | None = None

    @property
    def picture(self) -> int:
        """Slots of <|vision_start|>, the grid and <|vision_end|>."""
        return self.grid * self.grid + 2

    @property
    def length(self) -> int:
        """Slots of the sequence."""
        return self.picture + sum(map(self.count_slots, self.tasks))

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """First slot of each question."""
        sizes = map(self.count_slots, self.tasks[:-1])
        return tuple(itertools.accumulate(sizes, initial=self.picture))

    @functools.cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """(first slot, slots of a question, questions) of each run of one task."""
        runs, at = [], self.picture
        for task, group in itertools.groupby(self.tasks):
            runs.append((at, self.count_slots(task), len(list(group))))
            at += runs[-1][1] * runs[-1][2]
        return tuple(runs)

    def count_slots(self, task: str) -> int:
        """Count the slots of a question and its answer, which follows its last word."""
        return sum(LENGTHS[task])

    @functools.cached_property
    def segment(self) -> np.ndarray:
        """Question of each slot, [N] int32; -1 for the picture."""
        sizes = [self.count_slots(task) for task in self.tasks]
        parts = np.repeat(np.arange(len(sizes)), sizes)
        return np.concatenate([np.full(self.picture, -1), parts]).astype(np.int32)

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Which slots see which, [1, 1, N, N] bool."""
        earlier = np.tril(np.ones((self.length, self.length), bool))
        visible = (self.segment[None] == -1) | (self.segment[:, None] == self.segment[None])
        return (earlier & visible)[None, None]

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """M-RoPE positions of each slot, [3, N] int32; on a line all axes are alike."""
        positions = np.zeros((3, self.length), np.int32)
        whole, last = self.whole or self.grid, self.picture - 1
        row, column = np.divmod(np.arange(self.grid**2), self.grid)
        number = row * whole + column
        places = [number, number, number] if self.line else [0 * row, row, column]
        positions[:, 1:last] = 1 + np.stack(places)
        positions[:, last] = end = 1 + (whole * whole if self.line else whole)
        for start, task in zip(self.starts, self.tasks, strict=True):
            count = self.count_slots(task)
            positions[:, start : start + count] = end + 1 + np.arange(count)
        return positions

    @functools.cached_property
    def answer_index(self) -> np.ndarray:
        """Slots whose prediction is an answer token or the end that follows it, [A] int32."""
        parts = []
        for start, task in zip(self.starts, self.tasks, strict=True):
            question, answer = LENGTHS[task]
            parts.append(start + question - 1 + np.arange(answer + 1))
        return np.concatenate(parts).astype(np.int32)

    @functools.cached_property
    def answer_task(self) -> np.ndarray:
        """Question that each entry of `answer_index` belongs to, [A] int32."""
        return self.segment[self.answer_index]


class Encoder:
    """Turns packed questions into tokens; remembers the words of texts that it has met."""

    def __init__(self, tokenizer: Tokenizer, plan: Plan) -> None:
        self.plan = plan
        find = tokenizer.token_to_id
        self._end = find("<|im_end|>")
        picture = ["<|vision_start|>", *["<|image_pad|>"] * plan.grid**2, "<|vision_end|>"]
        self._blank = np.full(plan.length, find("<|endoftext|>"), np.int32)
        self._blank[: plan.picture] = [find(name) for name in picture]
        self._read = functools.lru_cache(maxsize=1 << 17)(lambda text: tokenizer.encode(text).ids)

    def __call__(self, questions: Sequence[Sequence[Question | None]]) -> dict[str, np.ndarray]:
        """Tokenise the questions of B scenes; None is a question that a scene does not allow.

        Returns:
            "tokens" [B, N] int32 and "answers" [B, A] int32 (-1: nothing to learn here).
        """
        plan = self.plan
        tokens = np.tile(self._blank, (len(questions), 1))
        answers = np.full((len(questions), len(plan.answer_index)), -1, np.int32)
        for row, mine in enumerate(questions):
            at = 0
            for start, task, question in zip(plan.starts, plan.tasks, mine, strict=True):
                if question is not None:
                    text = self._read(question.text.rstrip(".?"))
                    answer = self._read(question.answer)
                    if (len(text), len(answer)) != LENGTHS[task]:
                        raise ValueError(f"{question} has {len(text)} + {len(answer)} tokens")
                    slots = [*text, *answer]
                    tokens[row, start : start + len(slots)] = slots
                    answers[row, at : at + len(answer) + 1] = [*answer, self._end]
                at += LENGTHS[task][1] + 1
        return {"tokens": tokens, "answers": answers}


def draw(random: np.random.Generator, scene: Scene, plan: Plan) -> list[Question | None]:
    """Draw the questions of one packed sequence; None where a scene allows none."""
    return [ask(random, scene, task) for task in plan.tasks]
