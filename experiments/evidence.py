"""Records of the ablations, read back, and their numbers as pages write them."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ivc_jax.studies.table import Cell, Row, read_row

_SURE = 0.05  # adjusted p below which a difference counts


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a study file holds: `meta` of its run, and its rows."""

    meta: Mapping[str, Any]
    rows: Sequence[Row]


class Evidence:
    """The study files below a folder, one folder a run."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._read: dict[pathlib.Path, Recorded] = {}

    def study(self, run: str, name: str) -> Recorded:
        """Return one study.

        Raises:
            ValueError: there is no such file, or it is not one.
        """
        path = self.folder / run / f"study_{name}.json"
        if path not in self._read:
            try:
                content = json.loads(path.read_text())
                rows = [read_row(row) for row in content["rows"]]
            except (OSError, ValueError) as error:
                raise ValueError(f"cannot read {path}: {error}") from None
            self._read[path] = Recorded(content["meta"], rows)
        return self._read[path]

    def rows(self, run: str, name: str, **fields: Any) -> list[Row]:
        """Return the rows of a study whose fields have these values."""
        rows = self.study(run, name).rows
        return [row for row in rows if all(getattr(row, key) == fields[key] for key in fields)]

    def row(self, run: str, name: str, **fields: Any) -> Row:
        """Return the only such row.

        Raises:
            ValueError: there is none, or several.
        """
        (found,) = self.rows(run, name, **fields) or [None]
        if found is None:
            raise ValueError(f"{run}/{name} has no row with {fields}")
        return found

    def file(self, path: str) -> Any:
        """Read another JSON file below the folder."""
        return json.loads((self.folder / path).read_text())

    def source(self, run: str, name: str) -> str:
        """Say where a study comes from: file, command and commits."""
        meta = self.study(run, name).meta
        commits = ", ".join(meta["commits"])
        return (
            f"`docs/evidence/{run}/study_{name}.json`, `python experiments/{meta['command']}`,"
            f" commit {commits}, {meta['device']}, {meta['dtype']}"
        )


def score(cell: Cell) -> str:
    """Write a score and its interval in percent."""
    return f"{100 * cell.score:.1f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"


def change(cell: Cell) -> str:
    """Write a paired difference in points, its interval, and the adjusted p; bold if sure."""
    low, high = 100 * cell.difference_low, 100 * cell.difference_high
    text = f"{100 * cell.difference:+.1f}"
    text = f"**{text}**" if is_sure(cell) else text
    p = cell.p_holm
    written = "" if math.isnan(p) else ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    return f"{text} [{low:+.1f}, {high:+.1f}]{written}"


def is_sure(cell: Cell) -> bool:
    """Say whether a difference stands after adjusting for all rows of its study."""
    return cell.p_holm < _SURE


def tally(cells: Iterable[Cell]) -> dict[str, int]:
    """Count differences that are surely below zero, surely above, and neither."""
    counts = {"worse": 0, "better": 0, "unclear": 0}
    for cell in cells:
        kind = "unclear" if not is_sure(cell) else "worse" if cell.difference < 0 else "better"
        counts[kind] += 1
    return counts


def retention(cell: Cell, full: Cell) -> tuple[float, float, float]:
    """Return score / full score in percent and its interval, the full score taken as known.

    Args:
        cell: of the pruned run.
        full: of the unpruned one, compared with the pruned one.
    """
    share = 100 / full.score
    low, high = full.difference_low, full.difference_high
    return cell.score * share, 100 - high * share, 100 - low * share


def ranked(rows: Sequence[Row], group: str) -> list[Row]:
    """Sort rows by their score on a group, best first."""
    return sorted(rows, key=lambda row: -row.cells[group].score)
