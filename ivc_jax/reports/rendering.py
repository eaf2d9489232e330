"""Text from templates: strict about names, sparing with blank lines."""

import os
import pathlib

import jinja2


def make_environment(module: str | os.PathLike, escape: bool = False) -> jinja2.Environment:
    """Return the environment of the templates beside a module.

    Args:
        module: its `__file__`; the templates lie in the folder `templates` next to it.
        escape: for HTML.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(module).with_name("templates")),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
