"""Hooks of the documentation's site: pages from other sources, and links out of `docs`.

    pip install -e ".[docs]" && mkdocs build --strict

A page is README.md, a command's help, the fields of a method, docstrings, or a notebook; none of
them is written twice. What pages link to outside of `docs` (records, tests) goes along as a file,
so that the site needs nothing beside it.
"""

import contextlib
import importlib
import io
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
PAGES["CHANGELOG.md"] = "changelog.md"
# Pages of the reference: what they hold, as path of a module or of a name in one.
REFERENCE = {
    "coordinates": ("ivc_jax.ivc",),
    "methods": ("ivc_jax.methods.spec", "ivc_jax.methods.plugins", "ivc_jax.methods.base",
                "ivc_jax.methods.budget", "ivc_jax.methods.testing"),
    "signals": ("ivc_jax.methods.requests", "ivc_jax.methods.select", "ivc_jax.types"),
    "families": ("ivc_jax.families.base", "ivc_jax.config", "ivc_jax.inputs.footprint",
                 "ivc_jax.inputs.resize"),
    "benchmarks": ("ivc_jax.evals.benchmarks.tasks", "ivc_jax.evals.running.records"),
}  # fmt: skip
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
_WIDTH = "84"  # of help: more would scroll


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file of `docs` is."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    pages = {"commands.md": write_commands(), "fields.md": write_fields(), **write_reference()}
    for target, text in pages.items():
        files.append(File.generated(config, target, content=text))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        for target, content in convert_notebook(notebook):
            files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links out of `docs` to the page that has become of the file, or to a copy of it."""
    homes = {target: source for source, target in PAGES.items()}
    source = homes.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def redirect(found: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        if path in PAGES:
            target = PAGES[path]
        elif path.startswith("docs/"):
            target = path.removeprefix("docs/")
        elif (ROOT / path).is_file():
            # mkdocs takes what ends in .md for a page, and it is too late for one
            target = f"files/{path}.txt" if path.endswith(".md") else f"files/{path}"
            if files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
        else:
            return found[1]  # mkdocs says that it leads nowhere
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(redirect, markdown)


def write_commands() -> str:
    """Write each command's examples and its own help."""
    from ivc_jax.commands.main import COMMANDS, PROGRAM

    parts = ["# Commands\n\nEach command's own help, as `ivc-jax COMMAND --help` prints it."]
    for name, module in COMMANDS.items():
        about = importlib.import_module(f"ivc_jax.commands.{module}").__doc__.strip()
        about = re.sub(r" {5,}(?=--)", " \\\n        ", about)  # lines that the string has joined
        parts += [f"## {PROGRAM} {name}", about, _fence(_print_command(name, "--help"))]
    return "\n\n".join(parts) + "\n"


def write_fields() -> str:
    """Write what `ivc-jax methods NAME` prints of every method and modifier."""
    from ivc_jax.methods import METHODS, MODIFIERS

    parts = ["# Fields of methods\n\nWhat `ivc-jax methods NAME` prints. [The methods](methods.md)"
             " says what they score."]  # fmt: skip
    for name in (*METHODS, *(f"+{name}" for name in MODIFIERS)):
        lines = _print_command("methods", name).rstrip().splitlines()
        # the last line is the place of the file on this machine
        parts += [f"## `{name}`", _fence("\n".join(lines[:-1]))]
    return "\n\n".join(parts) + "\n"


def write_reference() -> dict[str, str]:
    """Write the pages that are filled from docstrings: {page: text}."""
    import ivc_jax

    parts = ["# ivc_jax", *ivc_jax.__doc__.strip().split("\n\n", 1)[:1]]
    for name in sorted(ivc_jax._HOMES, key=str.lower):
        path = f"{ivc_jax._HOMES[name]}.{name}"
        options = f"    options: {{heading: ivc_jax.{name}, toc_label: {name}}}"
        parts.append(f"::: {path}\n{options}")
    pages = {"package": parts}
    for page, modules in REFERENCE.items():
        pages[page] = [f"# {page.capitalize()}", *(f"::: {module}" for module in modules)]
    return {f"reference/{page}.md": "\n\n".join(text) + "\n" for page, text in pages.items()}


def convert_notebook(path: pathlib.Path) -> Iterator[tuple[str, str | bytes]]:
    """Yield the page of a notebook and its figures: (place in the site, content)."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(path))
    text = re.sub(r"(?<=\]\()(\w+)\.ipynb(?=\))", r"\1.md", text)
    for name, content in resources["outputs"].items():
        text = text.replace(f"]({name})", f"]({path.stem}_{name})")
        yield f"notebooks/{path.stem}_{name}", content
    link = f"[{path.name}]({path.name})"
    yield f"notebooks/{path.stem}.md", f"{text}\n\n---\n\nThe notebook itself: {link}.\n"


def _print_command(*arguments: str) -> str:
    """Return what the program prints."""
    from ivc_jax.commands.main import main

    shown = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDTH
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main(list(arguments))
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return shown.getvalue()


def _fence(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"
