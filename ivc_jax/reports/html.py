"""Reports as one HTML page that needs no other file."""

import base64
import re

import markupsafe

from ivc_jax.reports.rendering import make_environment
from ivc_jax.reports.section import Cell, Report

_CODE = re.compile(r"`([^`]*)`")


def render(report: Report) -> str:
    """Write a report; its figures are part of the page."""
    templates = make_environment(__file__, escape=True)
    templates.filters |= {"prose": _write_prose, "data_uri": _write_data_uri}
    templates.tests["cell"] = lambda value: isinstance(value, Cell)
    return templates.get_template("report.html.jinja").render(report=report)


def _write_prose(text: str) -> markupsafe.Markup:
    """Escape a text and set what stands between backticks as code."""
    # escaped first: what a benchmark asks may hold tags
    escaped = str(markupsafe.escape(text)).replace(" %", "&nbsp;%")
    return markupsafe.Markup(_CODE.sub(r"<code>\1</code>", escaped))


def _write_data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
