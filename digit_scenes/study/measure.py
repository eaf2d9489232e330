"""Ask a model everything in `conditions`; the same command goes on after a kill.

    python -m digit_scenes.study.measure RUN/hf docs/evidence/cells/interleaved-0/answers.json

The record holds, by condition and task, one digit a scene: how many questions were answered right.
Answers to grounding are also looked at by axis ("columns": both words of x, "rows": both of y). An
answer is right if each of its tokens is, predicted behind the true ones before it.
"""

import contextlib
import dataclasses
import functools
import time

import jax
import numpy as np
from rich.progress import track

from digit_scenes.packing import Plan
from digit_scenes.questions import TASKS
from digit_scenes.study.conditions import list_conditions
from digit_scenes.study.exam import Pupil, Sheet, draw_sheets
from digit_scenes.study.record import Record, make_parser
from digit_scenes.study.sets import Condition, find_hidden, lay_out
from ivc_jax.config import RopeConfig
from ivc_jax.types import Layout

SEED = 0  # of the scenes that are asked about
_WORDS = {"columns": (0, 2), "rows": (1, 3)}  # words of a box, by axis


def count_right(plan: Plan, hits: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
    """Count right answers by task and scene.

    Args:
        hits: bool [B, A], the token was predicted.
        answers: int [B, A], -1 where nothing was asked.

    Returns:
        int [B, 2] by task: right answers, and questions.
    """
    owner = np.eye(len(plan.tasks), dtype=int)[plan.answer_task]  # [A, Q]
    asked = (answers >= 0) @ owner > 0  # [B, Q]
    right = asked & ((~hits & (answers >= 0)) @ owner == 0)  # [B, Q]
    tasks = np.array(plan.tasks)
    found = {
        task: np.stack([x[:, tasks == task].sum(axis=1) for x in (right, asked)], axis=1)
        for task in TASKS
    }
    located = np.flatnonzero(tasks == "grounding")
    first = np.array([np.flatnonzero(plan.answer_task == question)[0] for question in located])
    for axis, words in _WORDS.items():
        both = np.all([hits[:, first + word] for word in words], axis=0) & asked[:, located]
        found[axis] = np.stack([both.sum(axis=1), asked[:, located].sum(axis=1)], axis=1)
    return found


def see_until(hidden: np.ndarray, block: int, blocks: int) -> np.ndarray:
    """Return which cells blocks see, bool [L, B, 1, W]: all of them, from `block` on the others.

    Args:
        hidden: bool [B, W].
    """
    blind = np.arange(blocks)[:, None, None, None] >= block
    return ~(hidden[None, :, None] & blind)


def stop_axis(pupil: Pupil, axis: str) -> Pupil:
    """Return the model with the planes of an axis that do not turn; "" is the model itself."""
    if not axis:
        return pupil
    rope = pupil.config.decoder.rope
    turning = rope.axis_of_plane != ("time", "height", "width").index(axis)
    rope = dataclasses.replace(rope, frequency_mask=tuple(turning.tolist()))
    decoder = dataclasses.replace(pupil.config.decoder, rope=rope)
    return dataclasses.replace(pupil, config=dataclasses.replace(pupil.config, decoder=decoder))


def measure(pupil: Pupil, sheets: list[Sheet], record: Record) -> None:
    """Ask what the record lacks yet."""
    rope = pupil.config.decoder.rope
    with _on_host():
        layout = lay_out(pupil)
    stopped = functools.cache(lambda axis: stop_axis(pupil, axis))
    left = [c for c in list_conditions(pupil.shape[0], rope) if c.key not in record.right]
    for condition in track(left, "conditions"):
        begin = time.monotonic()
        found = [_ask(stopped(condition.stop), condition, layout, rope, sheet, number)
                 for number, sheet in enumerate(sheets)]  # fmt: skip
        counts = {task: np.concatenate([each[task] for each in found]) for task in found[0]}
        record.add(condition.key, counts, time.monotonic() - begin)


def _on_host() -> contextlib.AbstractContextManager:
    """Choose sets on the CPU: of so many small operations an accelerator would compile each."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def _ask(
    pupil: Pupil,
    condition: Condition,
    layout: Layout,
    rope: RopeConfig,
    sheet: Sheet,
    number: int,
) -> dict[str, np.ndarray]:
    with _on_host():
        hidden = find_hidden(condition, layout, rope, sheet, number)  # [B, W]
    logits = pupil.answer(sheet, see_until(hidden, condition.block, pupil.shape[0]))
    hits = np.asarray(logits.argmax(-1)) == sheet.answers
    return count_right(pupil.plan, hits, sheet.answers)


def main(argv: list[str] | None = None) -> None:
    """Measure one model."""
    options = make_parser(__doc__).parse_args(argv)
    pupil = Pupil.load(options.checkpoint, options.grid)
    sheets = list(draw_sheets(pupil, options.scenes, SEED))
    record = Record.open(options.record, pupil, options.scenes)
    with jax.default_matmul_precision("highest"):
        measure(pupil, sheets, record)


if __name__ == "__main__":
    main()
