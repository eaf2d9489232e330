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

from digit_scenes.model import STEP
from digit_scenes.questions import Box, Question, ask
from digit_scenes.scenes import Scene

# Tokens of the question and of the answer; every question of a task has the same length.
LENGTHS = {
    "grounding": (5, 9),
    "reading": (7, 1),
    "relations": (8, 1),
    "existence": (6, 1),
    "colour": (6, 1),
    "counting": (4, 1),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a packed sequence is laid out.

    `tasks` has one entry a question; `grid` counts visual tokens along a side of the picture.
    """

    tasks: tuple[str, ...]
    grid: int

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
    def segment(self) -> np.ndarray:
        """Question of each slot, [N] int32; -1 for the picture."""
        sizes = [_count_slots(task) for task in self.tasks]
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
        """M-RoPE positions of each slot, [3, N] int32."""
        positions = np.zeros((3, self.length), np.int32)
        grid, last = self.grid, self.picture - 1
        cell = np.arange(grid * grid)
        positions[:, 1:last] = 1 + np.stack([0 * cell, cell // grid, cell % grid])
        positions[:, last] = grid + 1
        for start, task in zip(self.starts, self.tasks, strict=True):
            positions[:, start : start + _count_slots(task)] = (
                grid + 2 + np.arange(_count_slots(task))
            )
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
    def prompt_end(self) -> np.ndarray:
        """Slot from which the first answer token of each question is predicted, [Q] int32."""
        ends = [s + LENGTHS[t][0] + 1 for s, t in zip(self.starts, self.tasks, strict=True)]
        return np.array(ends, np.int32)

    @functools.cached_property
    def look_index(self) -> np.ndarray:
        """Slots that have to find the digits of their question in the picture, [K] int32.

        The last slot of every prompt, and those that precede a coordinate.
        """
        parts = []
        for last, task in zip(self.prompt_end.tolist(), self.tasks, strict=True):
            parts += [last] + [last + i for i in (1, 3, 5, 7) if task == "grounding"]
        return np.array(parts, np.int32)

    @functools.cached_property
    def look_question(self) -> np.ndarray:
        """Question that each entry of `look_index` belongs to, [K] int32."""
        return self.segment[self.look_index]

    @functools.cached_property
    def answer_task(self) -> np.ndarray:
        """Question that each entry of `answer_index` belongs to, [A] int32."""
        return self.segment[self.answer_index]


def _count_slots(task: str) -> int:
    question, answer = LENGTHS[task]
    return question + 2 + answer  # <|im_end|><|im_start|> between them


def draw(random: np.random.Generator, scene: Scene, plan: Plan) -> list[Question | None]:
    """Draw the questions of one packed sequence; None where a scene allows none."""
    return [ask(random, scene, task) for task in plan.tasks]


def encode(
    tokenizer: Tokenizer,
    plan: Plan,
    questions: Sequence[Sequence[Question | None]],
    canvas: int,
) -> dict[str, np.ndarray]:
    """Tokenise packed questions of B scenes on a canvas of that many pixels along a side.

    Returns:
        "tokens" [B, N] int32, "answers" [B, A] int32 (-1: nothing to learn here) and "box"
        [B, Q, 4] float32, the true box in coordinate words (-1 without one), "look" [B, Q, 2, W]
        bool, the visual tokens of the question's subject and of its other digit, "apart"
        [B, Q, 2] float32, how far right of and below the subject the other digit is (in canvases),
        and "share" [B, Q, W] float32, the part of a digit that each visual token holds, for
        counting: its sum is the answer.
    """
    pad, end, start = (
        tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
    )
    picture = ["<|vision_start|>", *["<|image_pad|>"] * plan.grid**2, "<|vision_end|>"]
    tokens = np.full((len(questions), plan.length), pad, np.int32)
    tokens[:, : plan.picture] = [tokenizer.token_to_id(name) for name in picture]
    answers = np.full((len(questions), len(plan.answer_index)), -1, np.int32)
    box = np.full((len(questions), len(plan.tasks), 4), -1, np.float32)
    look = np.zeros((len(questions), len(plan.tasks), 2, plan.grid**2), bool)
    apart = np.zeros((len(questions), len(plan.tasks), 2), np.float32)
    share = np.zeros((len(questions), len(plan.tasks), plan.grid**2), np.float32)
    for row, asked in enumerate(questions):
        at = 0
        for number, (question, task) in enumerate(zip(asked, plan.tasks, strict=True)):
            width = LENGTHS[task][1] + 1
            if question is not None:
                text, answer = (
                    tokenizer.encode(part).ids for part in (question.text, question.answer)
                )
                if (len(text), len(answer)) != LENGTHS[task]:
                    raise ValueError(f"{question} has {len(text)} + {len(answer)} tokens")
                begin = plan.starts[number]
                tokens[row, begin : begin + _count_slots(task)] = [*text, end, start, *answer]
                answers[row, at : at + width] = [*answer, end]
                for kind, boxes in enumerate((question.subject, question.other)):
                    for found in boxes:
                        look[row, number, kind] |= find_covered(found, canvas, plan.grid)
                if task == "counting":
                    share[row, number] = sum(
                        measure_shares(b, canvas, plan.grid) for b in question.subject
                    )
                if question.other:
                    a, b = np.array(question.subject[0]), np.array(question.other[0])
                    apart[row, number] = ((b - a)[:2] + (b - a)[2:]) / (2 * canvas)
            if question is not None and question.box is not None:
                box[row, number] = np.array(question.box) * (1000 / STEP / canvas)
            at += width
    asked = {"tokens": tokens, "answers": answers, "box": box}
    return {**asked, "look": look, "apart": apart, "share": share}


@functools.lru_cache(maxsize=1 << 16)
def find_covered(box: Box, canvas: int, grid: int) -> np.ndarray:
    """Return which visual tokens lie by at least 0.4 of their area under a box, [W] bool.

    `canvas` is the side of the picture in pixels, `grid` in visual tokens.
    """
    cell = canvas / grid
    return _measure_areas(box, canvas, grid) >= 0.4 * cell * cell


@functools.lru_cache(maxsize=1 << 16)
def measure_shares(box: Box, canvas: int, grid: int) -> np.ndarray:
    """Return which part of a box lies under each visual token, [W] float32; they sum to 1."""
    x1, y1, x2, y2 = box
    return (_measure_areas(box, canvas, grid) / ((x2 - x1) * (y2 - y1))).astype(np.float32)


def _measure_areas(box: Box, canvas: int, grid: int) -> np.ndarray:
    """Return the area of each visual token under a box in pixels, [W]."""
    cell = canvas / grid
    edges = np.arange(grid) * cell
    x1, y1, x2, y2 = box
    wide = np.clip(np.minimum(edges + cell, x2) - np.maximum(edges, x1), 0, None)
    tall = np.clip(np.minimum(edges + cell, y2) - np.maximum(edges, y1), 0, None)
    return np.outer(tall, wide).reshape(-1)
