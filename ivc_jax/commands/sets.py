"""The IVC set on the grids of real models, and how it moves: tables and figures, no model.

    ivc-jax sets
    ivc-jax sets --presets bundled qwen2.5-vl-7b --out runs/two

Writes sets.json, report.md, report.html and figures/*.png. Every number of the report is one of
sets.json.
"""

import dataclasses
import json
import pathlib
import re
import time
from typing import Annotated, Any

from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.reports.rendering import make_environment
from ivc_jax.studies import sets


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Show which cells of an image are IVC tokens, and how they move with prefix, grid and planes.

    Attributes:
        presets: such as qwen2.5-vl-7b; the first one is moved and reshaped.
        out: result folder.
        traceback: show where an error came from.
    """

    presets: Annotated[tuple[str, ...] | None, option("NAME ...", "all")] = None
    out: Annotated[str, option("DIR")] = "runs/sets"
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} sets") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program)


def _run(arguments: Arguments, command: str, _console: Console) -> None:
    """Check, compute, draw and write."""
    # Imported late, so that a wrong option or --help does not wait for JAX.
    from ivc_jax.commands.origin import find_commit
    from ivc_jax.evals.running.records import write_atomically
    from ivc_jax.reports import pages
    from ivc_jax.studies.sets import figures, measures

    start = time.monotonic()
    names = measures.PRESETS if arguments.presets is None else arguments.presets
    presets = measures.find(list(names))
    folder = pathlib.Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    tables = measures.measure(presets)
    figures.draw(folder, presets, tables)
    meta = {
        "command": command,
        "commit": find_commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.monotonic() - start, 1),
    }
    results = {"meta": meta, **tables}
    write_atomically(folder / "sets.json", dumps(results))
    pages.write(folder, render(results))
    print(f"report: {folder / 'report.md'}")


def dumps(results: dict[str, Any]) -> str:
    """Write results as JSON with every list of numbers on one line."""
    text = json.dumps(results, indent=1)
    # innermost lists: no bracket within
    return re.sub(r"\[[-\d.,\s]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def render(results: dict[str, Any]) -> str:
    """Fill the report template with results as they stand in sets.json."""
    templates = make_environment(sets.__file__)
    return templates.get_template("sets.md.jinja").render(**results)
