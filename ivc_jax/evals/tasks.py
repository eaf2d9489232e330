"""The table of benchmarks.

A new benchmark of a known kind is one entry here: its file, kind, group and prompts.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from ivc_jax.evals.scoring import (
    EXACT_MATCH,
    GROUNDING,
    GROUNDING_RESIZED,
    YES_NO,
    Cells,
    Scoring,
)

PROMPTS_VERSION = 1  # raise it when a prompt or a parser changes: old records no longer compare
BUNDLED_PREFIX = "DigitScenes_"

Prompt = Callable[[Cells], str]


class TaskError(ValueError):
    """A task that is not in the table or cannot run; the message names the choices."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark; its file is `{name}.tsv`.

    Attributes:
        split: name of the split in the records.
        group: tasks of one group are averaged ("grounding", "spatial", "semantic").
        prompts: by model family; "" is for every other family.
        max_new_tokens: bound on the answer.
        bundled: the file is drawn by the `digit_scenes` package if no folder holds it.
    """

    name: str
    scoring: Scoring
    group: str
    split: str
    prompts: Mapping[str, Prompt]
    max_new_tokens: int
    bundled: bool = False

    @property
    def file_name(self) -> str:
        """Name of the TSV file within the data folder."""
        return f"{self.name}.tsv"

    def prompt(self, cells: Cells, family: str) -> str:
        """Return the prompt of a row for a model family.

        Raises:
            TaskError: the family is unknown to the task.
        """
        build = self.prompts.get(family) or self.prompts.get("")
        if build is None:
            raise TaskError(f"task {self.name} has no prompt for the model family {family!r}")
        return build(cells)

    def check_cells(self, cells: Cells, family: str) -> None:
        """Score an empty answer, so that a broken reference shows before the model runs.

        Raises:
            ValueError: a cell cannot be used.
        """
        self.scoring.score(self.scoring.parse("", cells, family), cells, family)


def _question(cells: Cells) -> str:
    return cells["question"]


def _qwen2_detect(cells: Cells) -> str:
    # the released template drops the last character, taking it for a period; captions without
    # one keep theirs here
    expression = cells["question"].removesuffix(".").lower()
    return f"\n<|object_ref_start|>Detect {expression}<|object_ref_end|>"


def _qwen2_detect_official(cells: Cells) -> str:
    # as released: the last character goes whatever it is
    expression = cells["question"][:-1].lower()
    return f"\n<|object_ref_start|>Detect {expression}<|object_ref_end|>"


def _qwen2_5_locate(cells: Cells) -> str:
    return f"\nLocate {cells['question']} and output the bbox coordinates in JSON format."


def _digit_scenes(skill: str, scoring: Scoring, group: str) -> Task:
    # One bound for all six: it sizes the decode cache, so that they share compiled programs.
    return Task(
        name=f"{BUNDLED_PREFIX}{skill}",
        scoring=scoring,
        group=group,
        split="test",
        prompts={"": _question},
        max_new_tokens=24,
        bundled=True,
    )


def _refcoco(name: str, resized: bool = False) -> Task:
    # "_for_qwen25vl" files hold the boxes in the resized frame of Qwen2.5-VL.
    return Task(
        name=f"{name}_for_qwen25vl" if resized else name,
        scoring=GROUNDING_RESIZED if resized else GROUNDING,
        group="grounding",
        split=name.split("_")[1],
        prompts={"qwen2_vl": _qwen2_detect, "qwen2_5_vl": _qwen2_5_locate},
        max_new_tokens=128,
    )


REFCOCO = (
    *("RefCOCO_val", "RefCOCO_testA", "RefCOCO_testB"),
    *("RefCOCO+_val", "RefCOCO+_testA", "RefCOCO+_testB"),
    *("RefCOCOg_val", "RefCOCOg_test"),
)
_TABLE = (
    _digit_scenes("grounding", GROUNDING, "grounding"),
    _digit_scenes("reading", EXACT_MATCH, "spatial"),
    _digit_scenes("relations", YES_NO, "spatial"),
    _digit_scenes("existence", YES_NO, "semantic"),
    _digit_scenes("colour", EXACT_MATCH, "semantic"),
    _digit_scenes("counting", EXACT_MATCH, "semantic"),
    *(_refcoco(name) for name in REFCOCO),
    *(_refcoco(name, resized=True) for name in REFCOCO),
)
TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
BUNDLED = tuple(task.name for task in _TABLE if task.bundled)


def with_official_prompt(task: Task) -> Task:
    """Return the task with the released Qwen2-VL prompt, which cuts the last character."""
    if task.prompts.get("qwen2_vl") is not _qwen2_detect:
        return task
    return dataclasses.replace(task, prompts={**task.prompts, "qwen2_vl": _qwen2_detect_official})


def find(names: Iterable[str]) -> list[Task]:
    """Look up tasks by name; a bundled one also by its last word ("grounding").

    Raises:
        TaskError: unknown name.
    """
    known = {name.lower(): task for name, task in TASKS.items()}
    known |= {name.removeprefix(BUNDLED_PREFIX): TASKS[name] for name in BUNDLED}
    found = []
    for name in names:
        if name.lower() not in known:
            raise TaskError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
        if known[name.lower()] not in found:
            found.append(known[name.lower()])
    return found
