"""Records of models of cells -> docs/coordinates.md: which cells carry coordinates.

    python experiments/coordinates.py docs/evidence/cells docs/coordinates.md

Every number comes from a record that `digit_scenes.study.measure` wrote.
"""

import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from digit_scenes.study.claims import Difference, compare, draw_all
from digit_scenes.study.conditions import RULES
from digit_scenes.study.figures import draw_lines, draw_maps
from digit_scenes.study.record import Record
from digit_scenes.study.rules import Trial, try_rules
from digit_scenes.study.sets import Condition
from digit_scenes.study.verdicts import CLAIMS, Count, decide
from ivc_jax.evals.running.records import write_atomically
from ivc_jax.reports.figures import save
from ivc_jax.reports.rendering import make_environment
from ivc_jax.reports.section import Figure

KINDS = ("sections", "interleaved", "line")
TASKS = ("grounding", "reading", "relations", "existence", "colour", "counting")


_LINES = (
    (
        "hide",
        (
            "ivc",
            "random",
            "first",
            "nearest",
            "first columns",
            "mirror lr",
            "mirror both",
            "lattice",
        ),
        "Background cells hidden",
        "As many background cells hidden in every line, from a block on; the lower, the more they"
        " are needed.",
    ),
    (
        "keep",
        ("ivc", "random", "lattice", "farthest", "phase", "nothing"),
        "Digits and references alone",
        "All cells with digits are kept, and as many references by each rule; the higher, the"
        " better the rule.",
    ),
)
_MAPS = {
    "by_place": "Which places in the picture locating a digit needs, by block and head: what is"
    " lost where a background cell is hidden. Grey is less than two standard errors.",
    "from_target": "The same, as seen from the digit in the middle.",
}


class Models:
    """The records below a folder, one folder a model named KIND-SEED."""

    def __init__(self, folder: pathlib.Path) -> None:
        records = [Record.read(path) for path in sorted(folder.glob("*/answers.json"))]
        if not records:
            raise ValueError(f"{folder} has no */answers.json")
        name = lambda record: record.meta["model"].rsplit("-", 1)[0]  # noqa: E731
        groups = itertools.groupby(sorted(records, key=name), key=name)
        found = {kind: list(group) for kind, group in groups}
        self.records = {kind: found[kind] for kind in KINDS if kind in found}
        if not self.records:
            raise ValueError(f"{folder}: models must be named KIND-SEED, of {', '.join(KINDS)}")

    @functools.cached_property
    def differences(self) -> dict[str, list[Difference]]:
        """All differences, by kind of model."""
        return {kind: compare(records) for kind, records in self.records.items()}

    @functools.cached_property
    def trials(self) -> list[Trial]:
        """Rules, each chosen on some models and reported on others."""
        return list(try_rules(self.records))

    def find(self, kind: str, claim: str) -> list[Difference]:
        """Return the differences of a claim."""
        return [each for each in self.differences[kind] if each.claim == claim]

    def score(self, kind: str, task: str, *conditions: Condition) -> float:
        """Return the mean share of right answers, over models and conditions."""
        shares = [record.mean(each.key, task)
                  for record in self.records[kind] for each in conditions]  # fmt: skip
        return float(np.mean(shares))


def list_rivals(differences: Sequence[Difference]) -> str:
    """Name the controls of (i) that the IVC cells do not surely outdo, and from which blocks on."""
    asked = [each for each in differences if each.claim == "i"]
    blocks: dict[str, list[int]] = {}
    for each in asked:
        if each.sure <= 0:
            blocks.setdefault(each.label.removesuffix(" - IVC"), []).append(each.block)
    if sum(map(len, blocks.values())) == len(asked):
        return "all of them, everywhere"
    named = (f"{label} ({', '.join(map(str, found))})" for label, found in blocks.items())
    return "; ".join(named) or "none"


def write_change(difference: Difference) -> str:
    """Write a difference in points, its interval and the adjusted p; bold if sure."""
    value = f"{100 * difference.value:+.1f}"
    value = f"**{value}**" if difference.sure else value
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    return f"{value} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}], {p}"


def draw(models: Models, folder: pathlib.Path) -> Iterator[Figure]:
    """Draw the figures of the page: what hiding costs, what keeping is worth, and maps."""
    kinds = list(models.records)
    blocks = max(record[0].meta["blocks"] for record in models.records.values())

    def score(kind_of_set: str, kind: str, name: str, block: int) -> float | None:
        conditions = draw_all(kind_of_set, name.replace(" ", "_"), block)
        try:
            return models.score(kind, "grounding", *conditions)
        except KeyError:  # later blocks are asked about IVC and random cells alone
            return None

    for kind_of_set, names, title, caption in _LINES:
        drawn = draw_lines(
            *(kinds, names, range(blocks - 1), functools.partial(score, kind_of_set)),
            lambda kind: models.score(kind, "grounding", Condition("all")),
        )
        yield save(kind_of_set, title, caption, drawn)
    # the first model of each kind; `maps.json` of the others lies beside their answers
    for first in (folder / records[0].meta["model"] for records in models.records.values()):
        if not (path := first / "maps.json").exists():
            continue
        record = json.loads(path.read_text())
        for view, caption in _MAPS.items():
            name = f"{path.parent.name}_{view}"
            yield save(
                name,
                f"{path.parent.name}, {view.replace('_', ' ')}",
                caption,
                draw_maps(record, view),
            )


def render(models: Models, figures: Sequence[Figure]) -> str:
    """Write the page."""
    template = make_environment(__file__).get_template("coordinates.md.jinja")
    names = {"claims": CLAIMS, "tasks": TASKS, "rules": RULES, "whole": Condition("all")}
    helpers = {
        **{"change": write_change, "rivals": list_rivals},
        **{"decide": decide, "count": Count.of},
    }
    return template.render(models=models, figures=figures, **names, **helpers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page from the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 2:
        print("usage: coordinates.py RECORDS PAGE", file=sys.stderr)
        return 2
    folder, page = map(pathlib.Path, given)
    try:
        models = Models(folder)
        figures = list(draw(models, folder))
        (folder / "figures").mkdir(exist_ok=True)
        for figure in figures:
            (folder / "figures" / f"{figure.name}.png").write_bytes(figure.png)
        write_atomically(page, render(models, figures))
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
