"""Reports as Markdown."""

import textwrap

from ivc_jax.reports.rendering import make_environment
from ivc_jax.reports.section import Cell, Report

_WIDTH = 100


def render(report: Report) -> str:
    """Write a report; its figures are referred to by their paths."""
    templates = make_environment(__file__)
    templates.filters |= {"wrap": wrap, "cell": _escape, "written": _write}
    return templates.get_template("report.md.jinja").render(report=report)


def _write(cell: Cell | str) -> str:
    """Write a cell such as "**91.8** [90, 93]"; what a model said is code, and never bold."""
    cell = Cell(cell) if isinstance(cell, str) else cell
    text = _escape(cell.text)
    text = f"`{text}`" if cell.code else f"**{text}**" if cell.mark else text
    return f"{text} [{', '.join(cell.interval)}]" if cell.interval else text


def _escape(text: str) -> str:
    """Make text safe for one cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("`", "'")


def wrap(text: str) -> str:
    """Break a paragraph into lines."""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
