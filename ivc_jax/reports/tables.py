"""The sections of tables that every report has: scores, costs, budgets, categories, answers."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ivc_jax.evals.running import summary
from ivc_jax.evals.schema import Record, Row
from ivc_jax.reports import comparison
from ivc_jax.reports.labels import (
    label_methods,
    list_scored_by_unit,
    name_with_size,
    read_size,
    shorten_task,
    write_heading,
    write_points,
    write_rows_note,
)
from ivc_jax.reports.protocol import describe_protocol
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Cell, Section, Table

SCORES, COSTS, BUDGETS, LEFT_OUT = "Scores", "Costs", "Equal budgets", "Left out"
CATEGORIES, ANSWERS, FAILURES = "By category", "First answers", "Failed examples"

_COMPARISON = "comparison.json"
_EXAMPLES = 3  # of each task in the report
_OPEN = 8, 12  # columns and rows up to which a table of categories is not folded
_SCORES_TEXT = (
    "Percent, with the 95 % bootstrap interval. Marked: best pruned method at its budget or keep "
    "ratio.{points}{units} In every table `kept` is the share of the visual tokens left after the "
    "last cut, counted, not the ratio that was asked for (tokens are whole), and `cached` the mean "
    "over layers of their share in the cache, by which budgets are counted; every task weighs the "
    "same. Retention is the mean over tasks of score / dense score."
)
_POINTS_TEXT = (
    ' Columns headed "of N" are in the benchmark\'s own points, N at most; averages are in percent.'
)
_UNITS_TEXT = (
    " Intervals of {names} are a jackknife over the questions or pictures whose rows are scored "
    "together."
)
_COSTS_TEXT = (
    "Means over tasks of what one example costs. Times are medians over batches of {batch_size}, "
    "divided by the batch size, after warm-up; KV cache is what its arrays hold after prefill. "
    "GFLOP counts the decoder blocks of a prefill by formula (`ivc_jax/engine/cost.py`).{tower}"
)
_TOWER_TEXT = (
    " The vision tower ran once for all methods: prefill times leave it out, but for what a method "
    "asks it."
)
_BUDGETS_TEXT = (
    "Scores in percent by group of tasks, every task of a group weighing the same, with 95 % "
    "bootstrap intervals. Differences are to {reference} at the same budget, paired by example; "
    "marked where the interval excludes zero. Runs that differ in their seed alone are pooled. "
    "`kept` and `cached` are those of Scores, over the tasks of all groups."
)
_LEFT_OUT_TEXT = (
    "Not at every budget, because the blocks before the first cut hold too much already:"
)
_CATEGORIES_TEXT = (
    "Percent; of MME points of a category, up to 200; of OCRBench right answers. Rows without a "
    "category are left out."
)


class Compared(Protocol):
    """A score and a paired difference, with their intervals; NaN where there is none."""

    score: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


def write_score(cell: Compared) -> Cell:
    """Write a score and its interval in percent."""
    return Cell(f"{100 * cell.score:.1f}", (f"{100 * cell.low:.1f}", f"{100 * cell.high:.1f}"))


def write_difference(cell: Compared, marked: bool = True) -> Cell:
    """Write a paired difference and its interval in points; "-" where there is none.

    Args:
        marked: whether one whose interval excludes zero stands out.
    """
    if math.isnan(cell.difference):
        return Cell("-")
    low, high = 100 * cell.difference_low, 100 * cell.difference_high
    mark = "right" if low > 0 else "wrong" if high < 0 else ""
    interval = f"{low:+.1f}", f"{high:+.1f}"
    return Cell(f"{100 * cell.difference:+.1f}", interval, mark if marked else "")


def make_scores(results: Results) -> Section:
    """Show every method on every task, and its retention."""
    meta, rows = results.meta, results.rows
    labels, columns = label_methods(meta.methods), _list_columns(results)
    cells = {(row.method, row.task): row for row in rows}
    best = _find_best(meta.methods, cells)
    lines, starts, previous = [], [], None  # a line is drawn where the size changes
    for method, overall in _find_overall(results):
        size = read_size(method, overall.keep_ratio)
        if previous not in (None, size):
            starts.append(len(lines))  # a line between budgets
        previous = size
        written = [
            _write_row(row, (method, task) in best) if (row := cells.get((method, task))) else "-"
            for task in columns
        ]
        retained = overall.retention
        lines.append(
            (
                labels[method],
                f"{overall.kept_share:.3f}",
                f"{overall.metrics['cached_share']:.3f}",
                *written,
                "-" if retained is None else f"{100 * retained:.1f} %",
            )
        )
    by_unit = ", ".join(map(shorten_task, list_scored_by_unit(meta.tasks)))
    text = _SCORES_TEXT.format(
        points=_POINTS_TEXT
        if any(write_heading(task) != shorten_task(task) for task in columns)
        else "",
        units=_UNITS_TEXT.format(names=by_unit) if by_unit else "",
    )
    names = "method", "kept", "cached", *map(write_heading, columns), "retention"
    table = Table(names, tuple(lines), starts=tuple(starts))
    texts = tuple(filter(None, (text, describe_protocol(meta))))
    return Section(SCORES, texts, (table,))


def make_costs(results: Results) -> Section:
    """Show what one example costs under every method."""
    labels = label_methods(results.meta.methods)
    lines = tuple(
        (
            labels[method],
            f"{row.kept_share:.3f}",
            f"{row.metrics['cached_share']:.3f}",
            f"{row.visual_tokens:.0f}",
            f"{row.kept_tokens:.1f}",
            f"{row.kv_bytes / 1024:.1f}",
            f"{row.metrics['flops'] / 1e9:.3g}",
            f"{row.prefill_ms:.3f}",
            f"{row.decode_ms_per_token:.3f}",
        )
        for method, row in _find_overall(results)
    )
    names = (
        *("method", "kept", "cached", "visual tokens", "kept tokens", "KV cache (KiB)", "GFLOP"),
        *("prefill (ms)", "decode (ms a token)"),
    )
    tower = _TOWER_TEXT if results.meta.shared_tower else ""
    text = _COSTS_TEXT.format(batch_size=results.meta.batch_size, tower=tower)
    return Section(COSTS, (text,), (Table(names, lines),))


def make_budgets(results: Results) -> Section:
    """Show methods at equal budgets: one table a budget, rows of methods, columns of groups."""
    cells = results.comparison
    groups = list(dict.fromkeys(cell.group for cell in cells))
    # budget -> label -> group -> cell
    by_budget: dict[float, dict[str, dict[str, comparison.Cell]]] = {}
    for cell in cells:
        by_budget.setdefault(cell.budget, {}).setdefault(cell.label, {})[cell.group] = cell
    names = ["method", "runs", "kept", "cached", "KV (KiB)", "GFLOP"]
    names += [name for group in groups for name in (group, "difference")]
    tables = tuple(
        Table(
            tuple(names),
            tuple(_write_budget_row(label, list(line.values())) for label, line in lines.items()),
            f"Budget {budget:g}",
        )
        for budget, lines in by_budget.items()
    )
    text = _BUDGETS_TEXT.format(reference=comparison.REFERENCE) + write_rows_note(
        results.meta.tasks
    )
    content = json.dumps([dataclasses.asdict(cell) for cell in cells], indent=1)
    return Section(BUDGETS, (text,), tables, files={_COMPARISON: content + "\n"} if cells else {})


def make_left_out(results: Results) -> Section:
    """Name the methods that could not reach a budget."""
    return Section(LEFT_OUT, (_LEFT_OUT_TEXT,), notes=tuple(results.meta.unreachable.values()))


def make_categories(results: Results) -> Section:
    """Show parts of tasks: one table a task and measure, a column a category."""
    spelled = name_with_size(label_methods(results.meta.methods), results.rows)
    tables = []
    for found in summary.collect_categories(results.rows):
        lines = tuple(
            (spelled[method], *(_write_category(found.measure, value) for value in values))
            for method, values in found.lines.items()
        )
        title = f"{shorten_task(found.task)}: {found.measure} by {found.level}"
        folded = len(found.categories) > _OPEN[0] or len(lines) > _OPEN[1]
        tables.append(Table(("method", *found.categories), lines, title, folded=folded))
    return Section(CATEGORIES, (_CATEGORIES_TEXT,), tuple(tables))


def make_answers(results: Results) -> Section:
    """Show the first examples of each task with the answers of all methods."""
    labels, tables = label_methods(results.meta.methods), []
    for task in results.meta.tasks:
        examples: dict[str, dict[str, Record]] = {}
        for record in results.records:
            if record.task == task:
                examples.setdefault(record.example_id, {})[record.method] = record
        for by_method in list(examples.values())[:_EXAMPLES]:
            first = next(iter(by_method.values()))
            lines = tuple(
                (
                    labels[method],
                    f"{record.kept_tokens} of {record.visual_tokens}",
                    Cell(record.prediction, mark=_mark(record), code=True),
                    f"{record.score:g}",
                )
                for method in results.meta.methods
                if (record := by_method.get(method))
            )
            asked, target = _flatten(first.question), _flatten(first.target)
            tables.append(
                Table(
                    ("method", "kept tokens", "answer", "score"),
                    lines,
                    f"{shorten_task(task)} {first.example_id}",
                    f"{asked} Reference: `{target}`",
                    folded=bool(tables),
                )
            )
    return Section(ANSWERS, tables=tuple(tables))


def make_nothing(results: Results) -> Section:
    """Say that no row was scored, and why."""
    return Section(SCORES, notes=(explain_nothing(results),))


def explain_nothing(results: Results) -> str:
    """Say why no row was scored."""
    failed = results.meta.failed_rows
    if not failed:
        return "no row was scored: no file of the run's tasks has a row"
    first = results.meta.failures[0]
    return f"no row was scored: {failed} of {failed} rows failed, the first one as {first}"


def make_failures(results: Results) -> Section:
    """List what went wrong."""
    return Section(FAILURES, notes=tuple(results.meta.failures))


def _list_columns(results: Results) -> list[str]:
    """List the tasks, and the average over all, but not those over groups."""
    return [t for t in dict.fromkeys(row.task for row in results.rows) if "/" not in t]


def _find_overall(results: Results) -> Iterable[tuple[str, Row]]:
    """Yield each method and its average row, or that of the only task."""
    cells = {(row.method, row.task): row for row in results.rows}
    last = _list_columns(results)[-1]
    for method in results.meta.methods:
        if row := cells.get((method, summary.AVERAGE)) or cells.get((method, last)):
            yield method, row


def _find_best(
    methods: Sequence[str], cells: Mapping[tuple[str, str], Row]
) -> set[tuple[str, str]]:
    """Name the best pruned method of each task at each budget or keep ratio."""
    groups: dict[tuple[str, tuple[str, float]], list[tuple[float, str]]] = {}
    for (method, task), row in cells.items():
        if method != "dense":
            size = read_size(method, row.keep_ratio)
            # sums in another order must not break a tie
            groups.setdefault((task, size), []).append((round(row.score, 9), method))
    return {
        (method, task)
        for (task, _), scored in groups.items()
        for score, method in scored
        # where all score alike none is best
        if score == max(scored)[0] > min(scored)[0]
    }


def _write_row(row: Row, best: bool) -> Cell:
    task, found = row.task, row.metrics
    interval = None
    if "low" in found:
        interval = write_points(task, found["low"], 0), write_points(task, found["high"], 0)
    return Cell(write_points(task, row.score), interval, "best" if best else "")


def _write_budget_row(label: str, cells: Sequence[comparison.Cell]) -> tuple[Cell | str, ...]:
    any_ = cells[0]  # shares and costs of the first group, which is the average over all
    compared = [
        written for cell in cells for written in (write_score(cell), write_difference(cell))
    ]
    return (
        label,
        str(any_.runs),
        f"{any_.kept_share:.3f}",
        f"{any_.cached_share:.3f}",
        f"{any_.kv_bytes / 1024:.1f}",
        f"{any_.flops / 1e9:.3g}",
        *compared,
    )


def _write_category(measure: str, value: float | None) -> str:
    """Write a value of a category: percent, or points and counts as they are."""
    if value is None:
        return "-"
    return f"{value:.0f}" if measure in ("points", "count") else f"{100 * value:.1f}"


def _flatten(text: str) -> str:
    """Put a text of the data on one line, without what would set it as code."""
    return " ".join(text.split()).replace("`", "'")


def _mark(record: Record) -> str:
    return "right" if record.score >= 1 else "wrong"
