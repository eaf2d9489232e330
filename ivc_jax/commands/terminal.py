"""What a run prints at its end."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ivc_jax.evals.schema import Meta
from ivc_jax.reports.labels import label_methods, write_heading, write_points
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Section

_SHOWN_FAILURES = 5


def print_results(console: Console, results: Results, leading: Sequence[Section] = ()) -> None:
    """Print the tables of the leading sections that ask for it, or else the usual scores."""
    tables = [table for section in leading if section.printed for table in section.tables]
    for found in tables:
        table = Table(title=found.title)
        for number, name in enumerate(found.columns):
            table.add_column(name, justify="right" if number else "left")
        for row in found.rows:
            table.add_row(*(cell if isinstance(cell, str) else cell.text for cell in row))
        console.print(table)
        for note in found.notes:
            console.print(note, markup=False, highlight=False)
    if not tables:
        console.print(_make_table(results))


def _make_table(results: Results) -> Table:
    """Lay out scores by task, the average and the costs of each method."""
    rows = results.rows
    methods = list(dict.fromkeys(row.method for row in rows))
    tasks = [task for task in dict.fromkeys(row.task for row in rows) if "/" not in task]
    labels = label_methods(methods)
    cells = {(row.task, row.method): row for row in rows}
    table = Table(title="Score in percent or points; costs are means over tasks, times per example")
    for name in ("method", "kept", "cached"):
        table.add_column(name)
    for name in (*map(write_heading, tasks), "retention", "kept tokens", "KV", "prefill"):
        table.add_column(name, justify="right")
    for method in methods:
        here = [cells[task, method] for task in tasks if (task, method) in cells]
        scores = [
            write_points(task, cells[task, method].score) if (task, method) in cells else "-"
            for task in tasks
        ]
        last = here[-1]  # the average where several tasks ran
        table.add_row(
            labels[method],
            f"{last.kept_share:.3f}",
            f"{last.metrics['cached_share']:.3f}",
            *scores,
            "-" if last.retention is None else f"{100 * last.retention:.1f} %",
            f"{last.kept_tokens:.0f} of {last.visual_tokens:.0f}",
            f"{last.kv_bytes / 1024:.0f} KiB",
            f"{last.prefill_ms:.2f} ms",
        )
    return table


def print_failures(console: Console, meta: Meta) -> None:
    """Say how many examples failed and show the first few."""
    failed, messages = meta.failed_rows, meta.failures
    if failed:
        console.print(f"{failed} examples failed and are left out of the scores:")
        for message in messages[:_SHOWN_FAILURES]:
            console.print(f"  {message}", markup=False)
        if failed > _SHOWN_FAILURES:
            console.print("  and others, which the report lists")


def print_end(console: Console, meta: Meta) -> None:
    """Say what was compiled, how busy the devices were, and how long it took."""
    statistics = meta.statistics
    if statistics is None:
        return  # a run of an earlier version
    console.print(
        f"{statistics.buckets} padded shapes; {meta.compiled_programs} prefill and"
        f" {meta.compiled_decodes} decode programs compiled; {meta.wall_seconds:.0f} s in all"
    )
    if statistics.busy_share is not None:
        console.print(
            f"devices busy {100 * statistics.busy_share:.1f} % of the time without compiling,"
            f" waited {statistics.wait:.1f} s for the host"
        )
