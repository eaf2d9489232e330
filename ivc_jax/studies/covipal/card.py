"""The card of a trained module: what it is, and what made it."""

import json
import pathlib
from statistics import fmean

from ivc_jax.engine.modules import name_model
from ivc_jax.evals.running.records import write_atomically
from ivc_jax.module_sizes import Sizes
from ivc_jax.studies.covipal.data import Rows
from ivc_jax.studies.covipal.settings import Training

_LAST = 20  # steps whose loss is averaged


def write_card(
    out: pathlib.Path, rows: Rows, sizes: Sizes, training: Training, command: str
) -> None:
    """Write README.md; equal runs write equal cards."""
    files = ", ".join(entry.file.path.name for entry in rows.entries)
    lines = [
        "# A pruning module of CoViPAL",
        "",
        "Scores the visual tokens of one model before its decoder (arXiv 2508.17243, as written in",
        "ivc_jax); `covipal:weights=FILE,keep_ratio=0.25` prunes with it.",
        "",
        f"- model: {name_model(rows.model.config)}",
        f"- data: {len(rows.places)} rows of {files}",
        f"- guide: block {training.choose_guide(rows.model.config.decoder.num_layers)}",
        f"- command: `{command}`",
        *(f"- {line}" for line in _read_losses(out)),
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in (vars(sizes) | vars(training)).items()),
    ]
    write_atomically(out / "README.md", "\n".join(lines) + "\n")


def _read_losses(out: pathlib.Path) -> list[str]:
    log = out / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    found = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        losses = [row["loss"] for row in rows if row["stage"] == stage]
        first, last = (fmean(part) for part in (losses[:_LAST], losses[-_LAST:]))
        found.append(
            f"{stage}: {len(losses)} steps; mean loss of the first {_LAST} {first:.4f}, of the last"
            f" {last:.4f}"
        )
    return found
