"""The paper's tables: a section of the report, paper.md, paper.html and paper.json."""

import dataclasses
import json
from collections.abc import Iterator

from ivc_jax.evals.schema import Meta
from ivc_jax.reports import html, markdown, section
from ivc_jax.reports.labels import PERCENT, find_points
from ivc_jax.reports.protocol import describe_protocol, write_pixel_bounds
from ivc_jax.reports.report import write_command
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Report, Section
from ivc_jax.studies.paper.published import PUBLISHED
from ivc_jax.studies.paper.tables import Cell, Table, build

PARTIAL, SECOND_HAND = "*", "†"  # marks behind our numbers and behind published ones
_META = (
    *("command", "model", "device", "dtype", "protocol", "pixel_bounds", "limit", "commits"),
    *("date", "failed_rows"),
)
_READING = (
    "Scores in the benchmark's own points: percent, of MME up to 2800. `tokens kept` is the mean "
    "over layers of the share of visual tokens in the cache. `Avg. %` is the mean over the sets "
    "that ran of 100 x score / vanilla score of this very run; the paper does not say how it "
    "averages, nor are all nine of its VQA sets named in the released scripts (TextVQA, ChartQA "
    "and AI2D are inferred).",
    "What a difference to a published number cannot show: all methods here get the same prompts, "
    "while the released evaluation asks vanilla and pruned models with different ones; an answer "
    "that names no option counts as wrong here, while there a language model judges it; tokens are "
    "ranked by float32 scores here, by half-precision ones with many ties there.",
)
_UNKNOWN_SETTINGS = (
    "The paper does not say how it ran the removal of IVC tokens, PDrop and the rows with `+ IVC`."
)


def make_sections(results: Results) -> list[Section]:
    """Make the section of the paper's tables; none where the run is not `run.py paper`."""
    meta = results.meta
    if meta.paper is None:
        return []
    tables = build(results)
    # The same tables go into the report and onto a page of their own.
    shown = tuple(
        section.Table(
            ("method", *list_headings(table)),
            tuple((label, *cells) for label, cells in write_lines(table)),
            write_title(table),
            notes=tuple(write_notes(table, meta)),
        )
        for table in tables
    )
    content = {
        "meta": {name: getattr(meta, name) for name in (*_META, "paper")},
        "tables": [dataclasses.asdict(table) for table in tables],
    }
    text = json.dumps(content, indent=1) + "\n"
    page = _make_page(meta, shown)
    files = {"paper.md": markdown.render(page), "paper.html": html.render(page), "paper.json": text}
    return [Section("The paper's tables", tables=shown, files=files, printed=True)]


def _make_page(meta: Meta, tables: tuple[section.Table, ...]) -> Report:
    facts = {
        "device": meta.device,
        "dtype": meta.dtype,
        "protocol": meta.protocol,
        "pixels of a picture": write_pixel_bounds(meta) or "any",
        "rows of each set": "all" if meta.limit is None else f"the first {meta.limit}",
        "commit": ", ".join(meta.commits),
        "date": meta.date,
        "failed examples": meta.failed_rows,
    }
    # without published numbers their settings do not matter
    reading = _READING if meta.paper["model"] is None else (*_READING, _UNKNOWN_SETTINGS)
    settings = tuple(
        f"{meta.paper['rows'].get(method, method)}: `{resolved}`"
        for method, resolved in meta.paper["resolved"].items()
    )
    sections = (
        *(Section(table.title, tables=(dataclasses.replace(table, title=""),)) for table in tables),
        Section("How to read this", reading),
        Section("Settings", notes=settings),
    )
    name = f"The paper's tables: {meta.model}"
    return Report(name, write_command(meta), facts, sections)


def write_title(table: Table) -> str:
    """Name a table and say how many of its sets ran."""
    return f"{table.name}: {len(table.tasks)} of {len(table.columns)} sets"


def list_headings(table: Table) -> list[str]:
    """List the headings of all columns but the first."""
    return ["tokens kept, %", *table.columns.values(), "Avg. %"]


def write_lines(table: Table) -> Iterator[tuple[str, list[str]]]:
    """Write the lines of a table: the method and its cells, "-" where nothing ran."""
    # MME has up to 2800 points: no decimals
    digits = [1 if find_points(set_) == PERCENT else 0 for set_ in table.columns]
    for line in table.lines:
        cells = [write_cell(cell, n) for cell, n in zip(line.cells, digits, strict=True)]
        yield line.label, [write_cell(line.kept, 1, 0), *cells, write_cell(line.average)]


def write_cell(cell: Cell, digits: int = 1, published_digits: int | None = None) -> str:
    """Write a cell such as "91.8* (92.0)"; the published number has as many digits unless told."""
    ours = "-" if cell.ours is None else f"{cell.ours:.{digits}f}{PARTIAL * cell.partial}"
    if cell.paper is None:
        return ours
    published = f"{cell.paper.value:.{digits if published_digits is None else published_digits}f}"
    return f"{ours} ({published}{SECOND_HAND * cell.paper.second_hand})"


def write_notes(table: Table, meta: Meta) -> list[str]:
    """Say whose the numbers in parentheses are and what the marks mean."""
    model = meta.paper["model"]
    if model is None:
        known = ", ".join(published.model for published in PUBLISHED)
        found = [f"No published numbers: those known are for {known}, not for this checkpoint."]
    else:
        found = [f"In parentheses: published for {model}, arXiv 2602.03060."]
    # "kept" is never second-hand
    numbers = [line_cell.paper for line in table.lines for line_cell in (*line.cells, line.average)]
    if any(number is not None and number.second_hand for number in numbers):
        found.append(f"{SECOND_HAND} from a summary of the paper by others.")
    if table.partial or len(table.tasks) < len(table.columns):
        found.append(_write_partial_note(table, meta.limit))
    return list(filter(None, (*found, describe_protocol(meta))))


def _write_partial_note(table: Table, limit: int | None) -> str:
    parts = [
        f"{table.columns[set_]} {count} rows" + (f" of {usual}" if usual else "")
        for set_, (count, usual) in table.partial.items()
    ]
    missing = [name for set_, name in table.columns.items() if set_ not in table.tasks]
    note = f"{PARTIAL} not on everything that the paper's number is on"
    note += f" (--limit {limit})" if limit is not None and parts else ""
    note += f": {', '.join(parts)}" if parts else ""
    return f"{note}; did not run: {', '.join(missing)}." if missing else f"{note}."
