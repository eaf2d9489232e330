"""A trained model, held-out scenes, and packed questions about them with cells hidden."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from tokenizers import Tokenizer

import ivc_jax
from digit_scenes import digits, tower
from digit_scenes.glyphs import CELL
from digit_scenes.loop import Params
from digit_scenes.packed import compute_answer_logits
from digit_scenes.packing import Encoder, Plan, draw
from digit_scenes.questions import TASKS, Question
from digit_scenes.scenes import arrange, draw_cells
from ivc_jax.config import ModelConfig

ROWS = 16  # scenes that are asked about at once
# Questions of each task behind a picture, in the order of `TASKS`.
_QUESTIONS = (6, 4, 4, 4, 3, 3)
_CELLS = (4096, 2048)  # held-out cells with a digit, and without
_COUNTS = (3, 9)  # digits of a scene, fewest and most


@dataclasses.dataclass(frozen=True)
class Pupil:
    """What packed questions need of a model, and how they are packed."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    plan: Plan

    @classmethod
    def load(cls, folder: pathlib.Path, grid: int) -> "Pupil":
        """Read a checkpoint that `digit_scenes.train` wrote for a grid."""
        model, _ = ivc_jax.load(folder, dtype="float32")
        words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tasks = tuple(task for task, n in zip(TASKS, _QUESTIONS, strict=True) for _ in range(n))
        plan = Plan(tasks, grid, model.config.decoder.rope.sections is None)
        return cls(model.config, model.params, words, plan)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, heads, and visual tokens of a picture: (L, H, W)."""
        decoder = self.config.decoder
        return decoder.num_layers, decoder.num_heads, self.plan.grid**2

    @functools.cached_property
    def run(self) -> "jax.stages.Wrapped":
        """Answer, compiled: decoder, tokens, visual, seen [L, B, H, W] to logits [B, A, vocab]."""
        return jax.jit(
            lambda decoder, tokens, visual, seen: compute_answer_logits(
                self.config.decoder, decoder, self.plan, tokens, visual, seen
            )
        )

    def answer(self, sheet: "Sheet", seen: np.ndarray) -> jax.Array:
        """Return logits [ROWS, A, vocab] where blocks and heads see what `seen` says."""
        blocks, heads, cells = self.shape
        whole = np.broadcast_to(seen, (blocks, ROWS, heads, cells))
        return self.run(self.params["decoder"], sheet.tokens, sheet.visual, whole)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Some scenes and the questions about each.

    Attributes:
        tokens: int32 [ROWS, N].
        answers: int32 [ROWS, A], -1 where a scene allowed no question.
        visual: float32 [ROWS, W, D].
        objects: bool [ROWS, W], cells that hold a digit.
        targets: int [ROWS, Q], cell that a question is to locate, -1 for other questions.
    """

    tokens: np.ndarray
    answers: np.ndarray
    visual: np.ndarray
    objects: np.ndarray
    targets: np.ndarray


def draw_sheets(pupil: Pupil, scenes: int, seed: int) -> Iterator[Sheet]:
    """Draw held-out scenes and questions, ROWS at a time; a seed always gives the same.

    Raises:
        ValueError: `scenes` is no multiple of ROWS.
    """
    if scenes % ROWS:
        raise ValueError(f"scenes={scenes} must be a multiple of {ROWS}")
    random = np.random.default_rng((2, seed))
    cells = draw_cells(random, digits.load("test"), *_CELLS)
    tokens = tower.encode_bank(pupil.config.vision, pupil.params["vision"], cells)
    encode = Encoder(pupil.tokenizer, pupil.plan)
    for _ in range(scenes // ROWS):
        counts = random.integers(_COUNTS[0], _COUNTS[1] + 1, ROWS).tolist()
        drawn = [arrange(random, cells, count, pupil.plan.grid) for count in counts]
        questions = [draw(random, scene, pupil.plan) for scene, _ in drawn]
        picks = np.stack([picks for _, picks in drawn])  # [ROWS, W]
        objects = np.isin(picks, cells.with_digit)
        yield Sheet(
            **encode(questions),
            visual=tokens[picks],
            objects=objects,
            targets=find_targets(questions, pupil.plan.grid),
        )


def find_targets(questions: Sequence[Sequence[Question | None]], grid: int) -> np.ndarray:
    """Return the raster numbers of the cells to locate, int [B, Q]; -1 for other questions."""
    targets = np.full((len(questions), len(questions[0])), -1)
    for row, asked in enumerate(questions):
        for column, question in enumerate(asked):
            if question is not None and question.box is not None:
                targets[row, column] = (question.box[1] // CELL) * grid + question.box[0] // CELL
    return targets
