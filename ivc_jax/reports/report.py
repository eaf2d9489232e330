"""Records -> results.json, report.md, report.html and figures.

python ivc_jax/reports/report.py runs/default        # again, from the records of a run
"""

import base64
import dataclasses
import functools
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ivc_jax.evals.running import summary
from ivc_jax.evals.running.records import read_all, write_atomically
from ivc_jax.reports import comparison
from ivc_jax.reports.labels import short_labels, short_task, size_of
from ivc_jax.reports.points import heading, in_points, scored_by_unit
from ivc_jax.reports.rendering import environment
from ivc_jax.studies import study, table

_RESULTS = "results.json"
_COMPARISON = "comparison.json"
_LISTED_FAILURES = 1000
_STUDY_META = ("command", "commits", "date", "device", "dtype", "jax_version", "model", "limit")
_EXAMPLES = 3  # of each task in the report


def summarize(folder: pathlib.Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Aggregate the records of a run, write results.json and return its content."""
    records = _wanted(folder, meta)
    failures = {
        (record["task"], record["example_id"]): record["error"]
        for record in records
        if record["failed"]
    }
    meta = meta | {
        "failed_rows": len(failures),
        "failures": list(failures.values())[:_LISTED_FAILURES],
        "commits": sorted({record["commit"] for record in records}),
    }
    results = {"meta": meta, "rows": summary.rows(records, meta["tasks"], meta["methods"])}
    write_atomically(folder / _RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def write(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Draw the figures and write both reports."""
    from ivc_jax.reports import figures  # matplotlib takes a while to import

    records = [record for record in _wanted(folder, results["meta"]) if not record["failed"]]
    cells = comparison.compare(records, results["meta"]["methods"])
    if cells:
        text = json.dumps([dataclasses.asdict(cell) for cell in cells], indent=1)
        write_atomically(folder / _COMPARISON, text + "\n")
    studies = [study.from_json(content) for content in results["meta"].get("studies", ())]
    tables = [(asked, table.tabulate(asked, records)) for asked in studies]
    for asked, rows in tables:
        content = {
            "meta": {key: results["meta"][key] for key in _STUDY_META},
            "study": {
                "title": asked.title,
                "question": asked.question,
                "reference": asked.reference,
            },
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        text = json.dumps(content, indent=1)
        write_atomically(folder / f"study_{asked.name}.json", text + "\n")
    drawn = figures.draw(folder, results, records, cells, tables)
    content = _content(results, records) | {"comparison": _by_budget(cells), "studies": tables}
    content |= {"study_groups": table.shown_groups(tables), "study_difference": _difference}
    content["difference"] = functools.partial(_difference, bold="**")
    content["p_value"] = functools.partial(_p_value, bold="**")
    markdown = _render("report.md.jinja", content, escape=False, figures=drawn)
    write_atomically(folder / "report.md", markdown)
    inlined = [{**figure, "source": _data_uri(folder / figure["path"])} for figure in drawn]
    content |= {"difference": _difference, "p_value": _p_value}
    html = _render("report.html.jinja", content, escape=True, figures=inlined)
    write_atomically(folder / "report.html", html)
    if "paper" in results["meta"]:
        from ivc_jax.studies.paper import report as paper  # no other run needs it

        paper.write(folder, results)


def _wanted(folder: pathlib.Path, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the records of this run's tasks, methods and rows; the folder may hold more.

    They come in order of task, row and method, whatever processes and batches they are from.
    """
    methods = {name: place for place, name in enumerate(meta["methods"])}
    tasks, last = {name: place for place, name in enumerate(meta["tasks"])}, meta["limit"]
    found = [
        record
        for record in read_all(folder)
        if record["method"] in methods
        and record["task"] in tasks
        and (last is None or record["row"] <= last)
    ]
    return sorted(found, key=lambda r: (tasks[r["task"]], r["row"], methods[r["method"]]))


def _content(results: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Collect what both templates show."""
    meta, rows = results["meta"], results["rows"]
    labels = short_labels(meta["methods"])
    names = list(dict.fromkeys(row["task"] for row in rows))
    cells = {(row["method"], row["task"]): row for row in rows}
    return {
        "meta": meta,
        "facts": _facts(meta),
        "labels": labels,
        "spelled": _spelled(labels, rows),
        "tasks": names,
        "columns": [name for name in names if "/" not in name],
        "short_task": short_task,
        "heading": heading,
        "in_points": in_points,
        "in_own_points": any(heading(name) != short_task(name) for name in names),
        "scored_by_unit": [short_task(task) for task in scored_by_unit(meta["tasks"])],
        "categories": summary.categories(rows),
        "in_category": _in_category,
        "size_of": size_of,
        "cells": cells,
        "best": _best(meta["methods"], cells),
        "rows": rows,
        "examples": _examples(meta, records),
    }


def _spelled(labels: dict[str, str], rows: list[dict[str, Any]]) -> dict[str, str]:
    """Name methods with their budget or keep ratio, for tables without a column of it."""
    sizes = {row["method"]: size_of(row["method"], row["keep_ratio"])[1] for row in rows}
    return {
        method: labels[method] if method == "dense" else f"{labels[method]}, {size:g}"
        for method, size in sizes.items()
    }


def _facts(meta: dict[str, Any]) -> dict[str, Any]:
    """Name what both headers show; results of earlier versions lack some of it."""
    facts = {
        "device": meta["device"],
        "mesh": ", ".join(f"{name}={size}" for name, size in (meta.get("mesh") or {}).items()),
        "processes": meta.get("processes"),
        "dtype": meta["dtype"],
        "jax": meta["jax_version"],
        "commit": ", ".join(meta["commits"]),
        "date": meta["date"],
        "seed": meta["seed"],
        "batch size": meta["batch_size"],
        "rows of each task": meta["limit"] or "all",
        "prefill programs compiled": meta["compiled_programs"],
        **_statistics(meta.get("statistics")),
        "failed examples": meta["failed_rows"],
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _statistics(statistics: dict[str, Any] | None) -> dict[str, Any]:
    """Say how the time went, which is unknown where every record was there already."""
    if statistics is None:
        return {}
    facts = {"padded shapes": statistics["buckets"]}
    if statistics["busy_share"] is not None:
        facts["devices busy, without compiling"] = f"{100 * statistics['busy_share']:.1f} %"
        facts["waited for the host"] = f"{statistics['wait']:.1f} s"
    return facts


def _in_category(measure: str, value: float | None) -> str:
    """Write a value of a table of categories: percent, or points and counts as they are."""
    if value is None:
        return "-"
    return f"{value:.0f}" if measure in ("points", "count") else f"{100 * value:.1f}"


def _best(methods: list[str], cells: dict[tuple[str, str], dict[str, Any]]) -> set[tuple[str, str]]:
    """Name the best pruned method of each task at each budget or keep ratio."""
    groups: dict[tuple[str, tuple[str, float]], list[tuple[float, str]]] = {}
    for (method, task), row in cells.items():
        if method != "dense":
            size = size_of(method, row["keep_ratio"])
            groups.setdefault((task, size), []).append((round(row["score"], 9), method))
    return {
        (method, task)
        for (task, _), scored in groups.items()
        for score, method in scored
        if score == max(scored)[0] > min(scored)[0]
    }


def _by_budget(cells: Sequence[comparison.Cell]) -> dict[str, Any]:
    """Arrange a comparison as one table a budget: rows of methods, columns of task groups."""
    groups = list(dict.fromkeys(cell.group for cell in cells))
    tables: dict[float, dict[str, dict[str, comparison.Cell]]] = {}
    for cell in cells:
        tables.setdefault(cell.budget, {}).setdefault(cell.label, {})[cell.group] = cell
    return {"groups": groups, "tables": tables, "reference": comparison.REFERENCE}


def _difference(cell: comparison.Cell | table.Cell, bold: str = "") -> str:
    """Write a paired difference and its interval in points; "-" where there is none."""
    if math.isnan(cell.difference):
        return "-"
    low, high = 100 * cell.difference_low, 100 * cell.difference_high
    mark = bold if low > 0 or high < 0 else ""
    return f"{mark}{100 * cell.difference:+.1f}{mark} [{low:+.1f}, {high:+.1f}]"


def _p_value(cell: table.Cell, bold: str = "") -> str:
    """Write an adjusted p value; "-" where nothing was compared."""
    if math.isnan(cell.p_holm):
        return "-"
    text = "<0.001" if cell.p_holm < 0.001 else f"{cell.p_holm:.3f}"
    return f"{bold}{text}{bold}" if cell.p_holm < 0.05 else text


def _examples(meta: dict[str, Any], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the first examples of each task with the answers of all methods."""
    shown = []
    for task in meta["tasks"]:
        answers: dict[str, dict[str, Any]] = {}
        for record in records:
            if record["task"] == task:
                answers.setdefault(record["example_id"], {})[record["method"]] = record
        for by_method in list(answers.values())[:_EXAMPLES]:
            first = next(iter(by_method.values()))
            shown.append({"task": task, "first": first, "answers": by_method})
    return shown


def _render(template: str, content: dict[str, Any], escape: bool, figures: list) -> str:
    templates = environment(__file__, escape)
    templates.filters["cell"] = _table_cell
    return templates.get_template(template).render(**content, figures=figures)


def _table_cell(text: str) -> str:
    """Make text safe for one cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("`", "'")


def _data_uri(path: pathlib.Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def main() -> int:
    """Make the report of a finished run again."""
    if len(sys.argv) != 2:
        print("usage: report.py FOLDER", file=sys.stderr)
        return 2
    folder = pathlib.Path(sys.argv[1])
    try:
        meta = json.loads((folder / _RESULTS).read_text())["meta"]
        write(folder, summarize(folder, meta))
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {folder} holds no finished run: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
