"""The paper's tables on the terminal, as paper.md and as paper.json."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ivc_jax.evals.running.records import write_atomically
from ivc_jax.reports.points import PERCENT, points_of
from ivc_jax.reports.rendering import environment
from ivc_jax.studies.paper.published import PUBLISHED
from ivc_jax.studies.paper.tables import Cell, Table, build

PARTIAL, SECOND_HAND = "*", "†"
NAMES = ("paper.md", "paper.json")
_SHOWN_META = ("command", "model", "device", "dtype", "limit", "commits", "date", "failed_rows")


def show(console: Console, results: Mapping[str, Any]) -> None:
    """Print every table, and what its marks mean."""
    for table in build(results):
        shown = RichTable(title=title(table))
        shown.add_column("method")
        for name in headings(table):
            shown.add_column(name, justify="right")
        for label, cells in lines(table):
            shown.add_row(label, *cells)
        console.print(shown)
        for note in notes(table, results["meta"]):
            console.print(note, markup=False, highlight=False)


def write(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Write paper.md and paper.json."""
    meta, tables = results["meta"], build(results)
    templates = environment(__file__)
    text = templates.get_template("paper.md.jinja").render(
        meta=meta, tables=tables, title=title, headings=headings, lines=lines, notes=notes
    )
    content = {
        "meta": {key: meta[key] for key in (*_SHOWN_META, "paper")},
        "tables": [dataclasses.asdict(table) for table in tables],
    }
    write_atomically(folder / "paper.md", text)
    write_atomically(folder / "paper.json", json.dumps(content, indent=1) + "\n")


def title(table: Table) -> str:
    """Name a table and say how many of its sets ran."""
    return f"{table.name}: {len(table.tasks)} of {len(table.columns)} sets"


def headings(table: Table) -> list[str]:
    """List the headings of all columns but the first."""
    return ["tokens kept, %", *table.columns.values(), "Avg. %"]


def lines(table: Table) -> Iterator[tuple[str, list[str]]]:
    """Write the lines of a table: the method and its cells, "-" where nothing ran."""
    digits = [1 if points_of(set_) == PERCENT else 0 for set_ in table.columns]
    for line in table.lines:
        cells = [written(cell, n) for cell, n in zip(line.cells, digits, strict=True)]
        yield line.label, [written(line.kept, 1, 0), *cells, written(line.average)]


def written(cell: Cell, digits: int = 1, published_digits: int | None = None) -> str:
    """Write a cell such as "91.8* (92.0)"; the published number has as many digits unless told."""
    ours = "-" if cell.ours is None else f"{cell.ours:.{digits}f}{PARTIAL * cell.partial}"
    if cell.paper is None:
        return ours
    published = f"{cell.paper.value:.{digits if published_digits is None else published_digits}f}"
    return f"{ours} ({published}{SECOND_HAND * cell.paper.second_hand})"


def notes(table: Table, meta: Mapping[str, Any]) -> list[str]:
    """Say whose the numbers in parentheses are and what the marks mean."""
    model = meta["paper"]["model"]
    if model is None:
        known = ", ".join(published.model for published in PUBLISHED)
        found = [f"No published numbers: those known are for {known}, not for this checkpoint."]
    else:
        found = [f"In parentheses: published for {model}, arXiv 2602.03060."]
    numbers = [line_cell.paper for line in table.lines for line_cell in (*line.cells, line.average)]
    if any(number is not None and number.second_hand for number in numbers):
        found.append(f"{SECOND_HAND} from a summary of the paper by others.")
    if table.partial or len(table.tasks) < len(table.columns):
        found.append(_partial_note(table, meta["limit"]))
    return found


def _partial_note(table: Table, limit: int | None) -> str:
    parts = [
        f"{table.columns[set_]} {count} rows" + (f" of {usual}" if usual else "")
        for set_, (count, usual) in table.partial.items()
    ]
    missing = [name for set_, name in table.columns.items() if set_ not in table.tasks]
    note = f"{PARTIAL} not on everything that the paper's number is on"
    note += f" (--limit {limit})" if limit is not None and parts else ""
    note += f": {', '.join(parts)}" if parts else ""
    return f"{note}; did not run: {', '.join(missing)}." if missing else f"{note}."
