"""Which background cells do blocks and heads need to locate a digit?

    python -m digit_scenes.study.maps RUN/hf docs/evidence/cells/interleaved-0/maps.json

Half of the background of every scene, drawn anew each time, is hidden from one head of one block,
or from all of its heads, and the words of the right box lose log probability. What a cell is worth
is the loss where it is hidden less the loss where it is seen, averaged over scenes and questions:
by its place in the picture, and by its place as seen from the digit that is asked for.
"""

import dataclasses
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from digit_scenes.study.exam import Pupil, Sheet, draw_sheets
from digit_scenes.study.record import check_same, describe, make_parser, save

SEED = 1  # of the scenes


@dataclasses.dataclass
class Worth:
    """Sums over questions in which a place was hidden, and in which it was seen.

    `sums` is [2, 3, places]: hidden or seen; number, losses, their squares.
    """

    sums: np.ndarray

    @classmethod
    def empty(cls, places: int) -> "Worth":
        """Nothing was asked yet."""
        return cls(np.zeros((2, 3, places)))

    def add(self, places: np.ndarray, hidden: np.ndarray, losses: np.ndarray) -> None:
        """Add questions [n] about background places [n, W]; -1 is no place of the background."""
        size = self.sums.shape[-1]
        for state, chosen in enumerate((hidden, ~hidden)):
            known = chosen & (places >= 0)
            each = np.broadcast_to(losses[:, None], places.shape)[known]
            for power in range(3):
                self.sums[state, power] += np.bincount(places[known], each**power, size)

    def measure(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the worth of every place and its standard error; NaN where nobody knows."""
        with np.errstate(invalid="ignore", divide="ignore"):
            count, total, square = np.moveaxis(self.sums, 1, 0)  # [2, places] each
            mean = total / count
            error = np.sqrt((square / count - mean**2).clip(0) / count)
            return mean[0] - mean[1], np.hypot(*error)


def measure_losses(pupil: Pupil) -> Any:
    """Make a function of logits [B, A, vocab] and answers [B, A]: loss of each question [B, Q]."""
    owner = jax.nn.one_hot(pupil.plan.answer_task, len(pupil.plan.tasks))  # [A, Q]

    @jax.jit
    def run(logits: jax.Array, answers: jax.Array) -> jax.Array:
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), answers.clip(0)[..., None], axis=-1
        )[..., 0]
        return -(jnp.where(answers >= 0, chosen, 0) @ owner)

    return run


def find_places(sheet: Sheet, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the questions that locate something, and the places of all cells for each.

    Returns:
        (row, question) [n, 2]; cells [n, W], -1 where a digit lies; and the same cells as seen
        from the target: (rows down + grid - 1) * (2 grid - 1) + columns right + grid - 1.
    """
    asked = np.argwhere(sheet.targets >= 0)  # [n, 2]
    target = sheet.targets[asked[:, 0], asked[:, 1]]
    cells = np.broadcast_to(np.arange(grid**2), (len(asked), grid**2))
    background = ~sheet.objects[asked[:, 0]]
    down = cells // grid - target[:, None] // grid + grid - 1
    right = cells % grid - target[:, None] % grid + grid - 1
    away = down * (2 * grid - 1) + right
    return asked, np.where(background, cells, -1), np.where(background, away, -1)


def measure_head(
    pupil: Pupil, sheets: list[Sheet], block: int, head: int | None, repeats: int
) -> tuple[Worth, Worth]:
    """Hide cells from a head of a block, or from all: worth by place, and by place from target."""
    blocks, heads, cells = pupil.shape
    losses = measure_losses(pupil)
    placed, away = Worth.empty(cells), Worth.empty((2 * pupil.plan.grid - 1) ** 2)
    blind = np.zeros((blocks, 1, heads, 1), bool)
    blind[block, :, slice(None) if head is None else head] = True
    random = np.random.default_rng((block, 0 if head is None else head + 1))
    for sheet in sheets:
        answers = jnp.asarray(sheet.answers)
        before = losses(pupil.answer(sheet, np.ones((1, 1, 1, 1), bool)), answers)
        asked, cell, seen_from = find_places(sheet, pupil.plan.grid)
        for _ in range(repeats):
            hidden = ~sheet.objects & (random.random(sheet.objects.shape) < 0.5)  # [B, W]
            after = losses(pupil.answer(sheet, ~(blind & hidden[None, :, None])), answers)
            loss = np.asarray(after - before)[asked[:, 0], asked[:, 1]]
            placed.add(cell, hidden[asked[:, 0]], loss)
            away.add(seen_from, hidden[asked[:, 0]], loss)
    return placed, away


def main(argv: list[str] | None = None) -> None:
    """Map one model."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args(argv)
    pupil = Pupil.load(options.checkpoint, options.grid)
    sheets = list(draw_sheets(pupil, options.scenes, SEED))
    meta = describe(pupil, options.record, scenes=options.scenes, repeats=options.repeats)
    found: dict[str, Any] = {"meta": meta, "maps": {}}
    if options.record.exists():
        found = json.loads(options.record.read_text())
        check_same(options.record, found["meta"], meta)
    blocks, heads, _ = pupil.shape
    for block, head in track([*itertools.product(range(blocks), (None, *range(heads)))], "heads"):
        name = f"block {block}" + ("" if head is None else f" head {head}")
        if name in found["maps"]:
            continue
        worths = measure_head(pupil, sheets, block, head, options.repeats)
        found["maps"][name] = {
            kind: [[None if np.isnan(x) else round(float(x), 5) for x in part]
                   for part in worth.measure()]
            for kind, worth in zip(("by_place", "from_target"), worths, strict=True)
        }  # fmt: skip
        save(options.record, found)


if __name__ == "__main__":
    main()
