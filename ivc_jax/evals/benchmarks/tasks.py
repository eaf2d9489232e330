"""The table of benchmarks.

A new benchmark of a known kind is one entry here: its file, kind, group and prompts.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ivc_jax.evals.benchmarks import prompts
from ivc_jax.evals.benchmarks.prompts import ByFamily
from ivc_jax.evals.benchmarks.scorers.base import Cells, Scoring, Sizes
from ivc_jax.evals.benchmarks.scorers.choice import CHOICE, CIRCULAR_CHOICE
from ivc_jax.evals.benchmarks.scorers.grounding import (
    GROUNDING,
    GROUNDING_OF_SCENES,
    GROUNDING_RESIZED,
)
from ivc_jax.evals.benchmarks.scorers.open_ended import (
    ANLS,
    EXACT_MATCH,
    OCR,
    RELAXED_ACCURACY,
    RELAXED_ACCURACY_FIXED,
    SAME_AS_ANY,
    SAME_ON_AVERAGE,
    VQA_ACCURACY,
)
from ivc_jax.evals.benchmarks.scorers.yes_no import HALLUSION, MME, POPE, YES_NO
from ivc_jax.inputs.messages import Messages
from ivc_jax.nearest import suggest

PROMPTS_VERSION = 2  # raise it when a prompt or a parser changes: old records no longer compare
BUNDLED_PREFIX = "DigitScenes_"
READING = "reading rows"  # in progress messages, for the task while rows are measured
COMPILED = "compiled programs"  # likewise, after each program that was compiled
RESIZED_SUFFIX = "_for_qwen25vl"

# The bound on answers is the released one of the Qwen families, for every set, boxes included: a
# letter, a "yes" or a box may stand at the end of a long answer, so that a smaller one could change
# scores. The larger ones of the other families (2048, 4096) only prolong answers that do not end.
_LONGEST_ANSWER = 512

_NO_CELLS = {"question": ""}  # what every prompt can be written from
_PUBLIC = "VLMEvalKit's public download of that name"
_MADE = "made from the published annotations by: python experiments/run.py refcoco"


class TaskError(ValueError):
    """A task that is not in the table or cannot run; the message names the choices."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark; its file is `{name}.tsv`.

    Attributes:
        split: name of the split in the records.
        group: tasks of one group are averaged ("grounding", "general VQA", "further VQA",
            "spatial", "semantic", "video").
        prompts: by model family; "" is for every other family.
        max_new_tokens: bound on the answer.
        bundled: the file is drawn by the `digit_scenes` package if no folder holds it.
        rows: usual number of rows of the file, None if unknown.
        source: where the file comes from, for a message.
    """

    name: str
    scoring: Scoring
    group: str
    split: str
    prompts: ByFamily
    max_new_tokens: int
    bundled: bool = False
    rows: int | None = None
    source: str = _PUBLIC

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

    def write_messages(
        self, cells: Cells, family: str, pictures: Sequence[Any], videos: Sequence[Any] = ()
    ) -> Messages:
        """Return what a model is asked about a row: its pictures, its videos, then the prompt.

        What comes from a cell is text: `<image>` in a question is one of its words.
        """
        text, bare = self.prompt(cells, family), self.prompt(_NO_CELLS, family)
        if bare.startswith(prompts.PICTURE):  # the template's own mark
            text = text.removeprefix(prompts.PICTURE)
        content = [*({"type": "image", "image": picture} for picture in pictures)]
        content += [{"type": "video", "video": video} for video in videos]
        return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]

    def check_cells(self, cells: Cells, sizes: Sizes = ()) -> None:
        """Check what the score needs of a row, so that it shows before the model runs.

        Args:
            sizes: of the row's pictures, to be compared with the cells that name them.

        Raises:
            ValueError: a cell cannot be used.
        """
        self.scoring.check(cells, sizes)

    def remark_on_rows(self, found: int) -> str | None:
        """Return a remark if a file has another number of rows than usual, else None."""
        if self.rows is None or found == self.rows:
            return None
        return f"{self.file_name} has {found} rows, usually {self.rows}: is it the same release?"


def _define_bundled(skill: str, scoring: Scoring, group: str) -> Task:
    # One bound for all six: it sizes the decode cache, so that they share compiled programs.
    return Task(
        name=f"{BUNDLED_PREFIX}{skill}",
        scoring=scoring,
        group=group,
        split="test",
        prompts=prompts.AS_IT_IS,
        max_new_tokens=24,
        bundled=True,
        source="drawn by the digit_scenes package",
    )


def _define_films(skill: str) -> Task:
    return Task(
        name=f"DigitVideos_{skill}",
        scoring=EXACT_MATCH,
        group="video",
        split="test",
        prompts=prompts.AS_IT_IS,
        max_new_tokens=24,
        source="drawn by: python -m digit_scenes.film_tsv DIR",
    )


def _define_refcoco(name: str, rows: int, resized: bool = False) -> Task:
    # Files with the suffix hold the boxes in the resized frame of Qwen2.5-VL.
    return Task(
        name=f"{name}{RESIZED_SUFFIX}" if resized else name,
        scoring=GROUNDING_RESIZED if resized else GROUNDING,
        group="grounding",
        split=name.split("_")[1],
        prompts=prompts.GROUNDING,
        max_new_tokens=_LONGEST_ANSWER,
        rows=rows,
        source=f"{_MADE} --qwen25" if resized else _MADE,
    )


def _define_vqa(
    name: str,
    scoring: Scoring,
    wording: ByFamily,
    rows: int | None = None,
    *,
    split: str = "test",
    group: str = "general VQA",
) -> Task:
    return Task(name, scoring, group, split, wording, _LONGEST_ANSWER, rows=rows)


def _define_more(name: str, scoring: Scoring, wording: ByFamily, rows: int | None = None) -> Task:
    split = "val" if name.endswith("_VAL") else "test"
    return _define_vqa(name, scoring, wording, rows, split=split, group="further VQA")


# Numbers of rows are those of the public cards of the data sets.
_REFCOCO_ROWS = {
    **{"RefCOCO_val": 10834, "RefCOCO_testA": 5657, "RefCOCO_testB": 5095},
    **{"RefCOCO+_val": 10758, "RefCOCO+_testA": 5726, "RefCOCO+_testB": 4889},
    **{"RefCOCOg_val": 4896, "RefCOCOg_test": 9602},
}
REFCOCO = tuple(_REFCOCO_ROWS)
# The six sets that the released scripts name, then the three that complete the nine of the paper
# (arXiv 2602.03060) as far as it can be inferred.
_GENERAL_VQA = (
    _define_vqa("SEEDBench_IMG", CHOICE, prompts.CHOICE, 14232),
    _define_vqa("MMBench_DEV_EN_V11", CIRCULAR_CHOICE, prompts.CHOICE, split="dev"),
    _define_vqa("MMStar", CHOICE, prompts.CHOICE, 1500),
    _define_vqa("RealWorldQA", CHOICE, prompts.CHOICE, 765),
    _define_vqa("MME", MME, prompts.MME, 2374),
    _define_vqa("POPE", POPE, prompts.POPE, 5127),
    _define_vqa("TextVQA_VAL", VQA_ACCURACY, prompts.OPEN_ENDED, 5000, split="val"),
    _define_vqa("ChartQA_TEST", RELAXED_ACCURACY, prompts.OPEN_ENDED, 2500),
    _define_vqa("AI2D_TEST", CHOICE, prompts.CHOICE, 3088),
)
_FURTHER_VQA = (
    _define_more("AI2D_TEST_NO_MASK", CHOICE, prompts.CHOICE, 3088),
    _define_more("HallusionBench", HALLUSION, prompts.HALLUSION, 951),
    _define_more("OCRBench", OCR, prompts.OCR, 1000),
    _define_more("DocVQA_VAL", ANLS, prompts.OPEN_ENDED, 5349),
    _define_more("InfoVQA_VAL", ANLS, prompts.OPEN_ENDED, 2801),
    _define_more("ScienceQA_TEST", CHOICE, prompts.CHOICE, 2017),
    _define_more("GQA_TestDev_Balanced", SAME_ON_AVERAGE, prompts.OPEN_ENDED, 12578),
    _define_more("OCRVQA_TESTCORE", SAME_AS_ANY, prompts.OPEN_ENDED),
)
_TABLE = (
    _define_bundled("grounding", GROUNDING_OF_SCENES, "grounding"),
    _define_bundled("reading", EXACT_MATCH, "spatial"),
    _define_bundled("relations", YES_NO, "spatial"),
    _define_bundled("existence", YES_NO, "semantic"),
    _define_bundled("colour", EXACT_MATCH, "semantic"),
    _define_bundled("counting", EXACT_MATCH, "semantic"),
    *(_define_films(skill) for skill in ("when", "where", "order", "colour")),
    *(_define_refcoco(name, rows) for name, rows in _REFCOCO_ROWS.items()),
    *(_define_refcoco(name, rows, resized=True) for name, rows in _REFCOCO_ROWS.items()),
    *_GENERAL_VQA,
    *_FURTHER_VQA,
)
TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
BUNDLED = tuple(task.name for task in _TABLE if task.bundled)
GENERAL_VQA = tuple(task.name for task in _GENERAL_VQA)


def use_official_prompt(task: Task) -> Task:
    """Return the task with the released Qwen2-VL prompt, which cuts the last character."""
    if task.prompts.get("qwen2_vl") is not prompts.ask_qwen2_box:
        return task
    official = {**task.prompts, "qwen2_vl": prompts.ask_qwen2_box_as_released}
    return dataclasses.replace(task, prompts=official)


def use_fixed_relaxed_accuracy(task: Task) -> Task:
    """Return the task with errors of numbers relative to the reference.

    The released score of ChartQA takes them relative to the answer.
    """
    if task.scoring is not RELAXED_ACCURACY:
        return task
    return dataclasses.replace(task, scoring=RELAXED_ACCURACY_FIXED)


def find(names: Iterable[str]) -> list[Task]:
    """Look up tasks by name, without regard to case.

    A bundled one is also known by its last word ("grounding"), another one by its first ("GQA") if
    no other begins with it.

    Raises:
        TaskError: unknown name.
    """
    firsts = Counter(name.partition("_")[0] for name in TASKS)
    known = {first.lower(): task for name, task in TASKS.items()
             if firsts[first := name.partition("_")[0]] == 1}  # fmt: skip
    known |= {name.removeprefix(BUNDLED_PREFIX): TASKS[name] for name in BUNDLED}
    known |= {name.lower(): task for name, task in TASKS.items()}
    found = []
    for name in names:
        if name.lower() not in known:
            names = f"{', '.join(TASKS)}{suggest(name, known)}"
            raise TaskError(f"unknown task {name!r}; known: {names}")
        if known[name.lower()] not in found:
            found.append(known[name.lower()])
    return found
