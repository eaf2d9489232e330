"""The report of a run: which sections it has, and its files."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ivc_jax.evals.running.records import write_atomically
from ivc_jax.evals.schema import Meta, Statistics
from ivc_jax.reports import browser, exports, html, markdown, tables, thumbnails
from ivc_jax.reports.protocol import write_pixel_bounds
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Report, Section

FIGURES = "Figures"
DRAWN = "drawn.jsonl"  # the records that figures show: with results.json they can be drawn again


def _draw(results: Results) -> Section:
    from ivc_jax.reports import figures  # matplotlib takes a while to import

    drawn = figures.list_drawn_records(results)
    content = "".join(json.dumps(vars(record)) + "\n" for record in drawn)
    files = {DRAWN: content} if drawn else {}
    return Section(FIGURES, figures=tuple(figures.draw(results)), files=files)


# In the order of the page; empty ones are left out, replaced ones are not even made.
_USUAL: dict[str, Callable[[Results], Section]] = {
    tables.SCORES: tables.make_scores,
    tables.COSTS: tables.make_costs,
    tables.BUDGETS: tables.make_budgets,
    tables.LEFT_OUT: tables.make_left_out,
    tables.CATEGORIES: tables.make_categories,
    FIGURES: _draw,
    tables.ANSWERS: tables.make_answers,
    tables.FAILURES: tables.make_failures,
}

# Nothing can be tabulated or drawn then.
_WITHOUT_ROWS: dict[str, Callable[[Results], Section]] = {
    tables.SCORES: tables.make_nothing,
    tables.FAILURES: tables.make_failures,
}


def compose(results: Results, leading: Sequence[Section] = ()) -> Report:
    """Put the page of a run together.

    Args:
        leading: sections that come before the usual ones, and replace some of them.
    """
    replaced = {title for section in leading for title in section.replaces}
    made = _USUAL if results.rows else _WITHOUT_ROWS
    usual = [make(results) for title, make in made.items() if title not in replaced]
    meta = results.meta
    return Report(
        f"Visual-token pruning: {meta.model}",
        write_command(meta),
        _list_facts(meta),
        tuple(section for section in (*leading, *usual) if not section.empty),
    )


def write(
    folder: pathlib.Path,
    results: Results,
    leading: Sequence[Section] = (),
    formats: Sequence[str] = (),
) -> list[pathlib.Path]:
    """Write report.md, report.html, the figures and whatever files the sections bring.

    The answers of all examples are part of report.html; of a large run the first ones are, and
    further pages beside it have the others. Thumbnails of the pictures are made once.

    Args:
        formats: of the files that each table becomes besides (`exports.FORMATS`).

    Returns:
        The files of tables.
    """
    report = compose(results, leading)
    (folder / "figures").mkdir(exist_ok=True)
    for section in report.sections:
        for figure in section.figures:
            (folder / figure.path).write_bytes(figure.png)
        for name, content in section.files.items():
            write_atomically(folder / name, content)
    write_atomically(folder / "report.md", markdown.render(report))
    pages = _write_answers(folder, results, report)
    write_atomically(folder / "report.html", html.render(report, pages))
    return exports.write(folder, report, formats)


def _write_answers(folder: pathlib.Path, results: Results, report: Report) -> list[browser.Page]:
    """Make the pages of answers, and write all but the first one."""
    for old in folder.glob("answers-*.html"):  # of more records, or of larger pages
        old.unlink()
    records = [*results.records, *results.failed]
    pages = browser.make_pages(results, thumbnails.collect(folder, results.meta, records))
    for page in pages[1:]:
        write_atomically(folder / page.file, html.render_answers(report.title, page, pages))
    return pages


def write_command(meta: Meta) -> str:
    """Write the command of a run as it is given in a shell; records name the script alone."""
    command = meta.command
    return f"python experiments/{command}" if command.startswith("run.py") else command


def _list_facts(meta: Meta) -> dict[str, Any]:
    """Name what the header shows; results of earlier versions lack some of it."""
    facts = {
        "device": meta.device,
        "mesh": ", ".join(f"{name}={size}" for name, size in (meta.mesh or {}).items()),
        "processes": meta.processes,
        "dtype": meta.dtype,
        "jax": meta.jax_version,
        "commit": ", ".join(meta.commits),
        "date": meta.date,
        "seed": meta.seed,
        "batch size": meta.batch_size,
        "rows of each task": meta.limit or "all",
        "pixels of a picture": write_pixel_bounds(meta),
        "prefill programs compiled": meta.compiled_programs,
        **_list_time_facts(meta.statistics),
        "failed examples": meta.failed_rows,
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _list_time_facts(statistics: Statistics | None) -> dict[str, Any]:
    """Say how the time went, which is unknown where every record was there already."""
    if statistics is None:
        return {}
    facts = {"padded shapes": statistics.buckets}
    if statistics.busy_share is not None:
        facts["devices busy, without compiling"] = f"{100 * statistics.busy_share:.1f} %"
        facts["waited for the host"] = f"{statistics.wait:.1f} s"
    return facts
