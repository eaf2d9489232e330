"""Reports that are written as Markdown, as one HTML page that needs no other file."""

import pathlib

import markdown_it
import markupsafe
from markdown_it.token import Token

from ivc_jax.evals.running.records import write_atomically
from ivc_jax.reports import html

_OPEN = '<div class="scroll" tabindex="0" role="region" aria-label="Table">'  # wide ones scroll


def write(folder: pathlib.Path, text: str) -> None:
    """Write report.md and report.html.

    Args:
        folder: result folder; figures that the text refers to lie in it.
        text: Markdown with tables; tags in it are shown and not followed.
    """
    write_atomically(folder / "report.md", text)
    write_atomically(folder / "report.html", render(folder, text))


def render(folder: pathlib.Path, text: str) -> str:
    """Return the page of a text; figures of the folder become part of it."""
    reader = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
    # the data of figures is made here, and no other address is a picture
    reader.validateLink = lambda url: not url.startswith(("javascript:", "data:"))
    tokens = reader.parse(text)
    for token in tokens:
        for part in token.children or ():
            if part.type == "image":
                _embed(folder, part)
    reader.add_render_rule("table_open", lambda self, *_: f"{_OPEN}<table>\n")
    reader.add_render_rule("table_close", lambda self, *_: "</table></div>\n")
    body = reader.renderer.render(tokens, reader.options, {})
    return html.render_text(_find_title(tokens), markupsafe.Markup(body))


def _embed(folder: pathlib.Path, image: Token) -> None:
    """Put the content of a figure in the place of its path; one that is gone leaves its name."""
    path = folder / str(image.attrs["src"])
    image.attrs["src"] = html.write_data_uri(path.read_bytes()) if path.is_file() else "data:,"


def _find_title(tokens: list[Token]) -> str:
    """Return the text of the first heading."""
    headings = (tokens[n + 1] for n, token in enumerate(tokens) if token.type == "heading_open")
    return next((heading.content for heading in headings), "Report")
