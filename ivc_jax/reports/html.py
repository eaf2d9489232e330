"""Reports as one HTML page that needs no other file."""

import base64
import pathlib
import re
from collections.abc import Sequence

import markupsafe

from ivc_jax.reports.browser import Page
from ivc_jax.reports.rendering import make_environment
from ivc_jax.reports.section import Cell, Report, short_name
from ivc_jax.reports.tables import ANSWERS

_CODE = re.compile(r"`([^`]*)`")
_USUAL = {"browsed": ANSWERS, "answers": None, "form": None, "wide": False}  # of every page
_TEMPLATES = pathlib.Path(__file__).with_name("templates")


def render(report: Report, pages: Sequence[Page] = ()) -> str:
    """Write a report; its figures are part of the page.

    Args:
        pages: of the answers; the first one is part of the report.
    """
    answers = pages[0] if pages else None
    return render_page("report.html.jinja", report=report, answers=answers, pages=pages)


def render_answers(title: str, page: Page, pages: Sequence[Page]) -> str:
    """Write a further page of answers."""
    return render_page("answers.html.jinja", title=title, answers=page, pages=pages)


def render_text(title: str, body: markupsafe.Markup) -> str:
    """Write a page of text that is HTML already."""
    return render_page("text.html.jinja", title=title, body=body)


def render_page(template: str, **values: object) -> str:
    """Write a page from one of the templates.

    Args:
        template: its file.
        values: what it shows.
    """
    templates = make_environment(__file__, escape=True)
    templates.filters |= {
        "prose": _write_prose,
        "data_uri": write_data_uri,
        "source": _read_source,
        "short_name": short_name,
        "raw": markupsafe.Markup,  # of JSON that `browser.write_json` made safe
    }
    templates.tests["cell"] = lambda value: isinstance(value, Cell)
    return templates.get_template(template).render({**_USUAL, **values})


def _read_source(name: str) -> markupsafe.Markup:
    """Return a style sheet or a script as it is."""
    return markupsafe.Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _write_prose(text: str) -> markupsafe.Markup:
    """Escape a text and set what stands between backticks as code."""
    # escaped first: what a benchmark asks may hold tags
    escaped = str(markupsafe.escape(text)).replace(" %", "&nbsp;%")
    return markupsafe.Markup(_CODE.sub(r"<code>\1</code>", escaped))


def write_data_uri(png: bytes) -> str:
    """Write a figure as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
