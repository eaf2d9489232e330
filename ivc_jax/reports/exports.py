"""Tables of a report as files for other programs: CSV and LaTeX."""

import csv
import io
import pathlib
from collections.abc import Callable, Iterator, Sequence

from ivc_jax.evals.running.records import write_atomically
from ivc_jax.reports.section import Cell, Report, Table, short_name

FOLDER = "tables"
_LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def write(folder: pathlib.Path, report: Report, formats: Sequence[str]) -> list[pathlib.Path]:
    """Write every table of a report into `tables/` of a result folder, one file a format.

    Args:
        formats: of `FORMATS`.

    Returns:
        The files.
    """
    paths = []
    for name, table in name_tables(report):
        for chosen in formats:
            ending, render = FORMATS[chosen]
            path = folder / FOLDER / f"{name}.{ending}"
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, render(table))
            paths.append(path)
    return paths


def name_tables(report: Report) -> Iterator[tuple[str, Table]]:
    """Name each table by its section and title, such as `equal-budgets-0-5`, no two alike."""
    seen: dict[str, int] = {}
    for section in report.sections:
        for table in section.tables:
            name = short_name(f"{section.title} {table.title}")
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), table


def to_csv(table: Table) -> str:
    """Write a table headed as in the report; the ends of intervals have columns of their own.

    A cell that says "-", where there is nothing to say, is empty.
    """
    rows = [[_read(cell) for cell in row] for row in table.rows]
    wide = {i for row in rows for i, cell in enumerate(row) if cell.interval}
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    ends = [(name, f"{name} low", f"{name} high") for name in table.columns]
    out.writerow([one for i, name in enumerate(ends) for one in (name if i in wide else name[:1])])
    for row in rows:
        written: list[str] = []
        for i, cell in enumerate(row):
            written.append("" if cell.text == "-" else cell.text)
            written += (cell.interval or ("", "")) if i in wide else ()
        out.writerow(written)
    return text.getvalue()


def to_latex(table: Table) -> str:
    r"""Write a table as a `tabular` with the rules of the package booktabs, to be \input."""
    lines = [f"% {' '.join(note.split())}" for note in (table.title, table.text) if note]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_escape, table.columns)) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        if number in table.starts:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_write_latex_cell, map(_read, row))) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _read(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _write_latex_cell(cell: Cell) -> str:
    text = _escape(" ".join(cell.text.split()))
    if cell.code:
        return rf"\texttt{{{text}}}"
    text = rf"\textbf{{{text}}}" if cell.mark else text
    return rf"{text} {{\scriptsize [{', '.join(cell.interval)}]}}" if cell.interval else text


def _escape(text: str) -> str:
    return "".join(_LATEX_SIGNS.get(sign, sign) for sign in text)


FORMATS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "csv": ("csv", to_csv),
    "latex": ("tex", to_latex),
}
