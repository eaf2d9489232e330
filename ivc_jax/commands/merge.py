"""Merge the records of several processes or machines and write one report.

    ivc-jax merge runs/host0 runs/host1 --out runs/all

The folders must belong to one run: equal settings and task files. A record that several of them
hold counts once. Processes that write into one folder need no merging: the first one writes the
report when all have ended.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.report import report_on
from ivc_jax.evals.running import records
from ivc_jax.evals.running.mirror import Mirror
from ivc_jax.evals.running.records import (
    MANIFEST,
    RECORDS,
    RecordsError,
    RunFolder,
    write_atomically,
)
from ivc_jax.evals.schema import Meta, Record

_META = "meta.json"  # results.json before the records of all are there


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Merge the records of several processes or machines and write one report.

    Attributes:
        folders: result folders of one run.
        out: result folder of the whole; its records are written anew.
        traceback: show where an error came from.
    """

    folders: Annotated[tuple[str, ...], tyro.conf.Positional, option("DIR ...")]
    out: Annotated[str, option("DIR")]
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} merge") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program, width=160)


def finish(
    folder: RunFolder, mirror: Mirror, meta: Meta, console: Console, formats: Sequence[str] = ()
) -> None:
    """End a run: wait for the other processes; the first one writes the report of all."""
    # Imported late, as in `run.py`.
    import jax

    from ivc_jax.parallel.processes import wait_for_all

    if jax.process_index() == 0:
        write_atomically(folder.path / _META, json.dumps(meta.to_dict(), indent=1) + "\n")
    wait_for_all("all records are written")
    if jax.process_index():
        return
    mirror.pull_all()  # of a bucket: what the others have pushed
    names = [f"{t}.{n}.jsonl" for t in meta.tasks for n in range(meta.processes)]
    elsewhere = [name for name in names if not (folder.path / RECORDS / name).exists()]
    if meta.processes > 1 and elsewhere:
        console.print(
            f"{folder.path} lacks {', '.join(elsewhere)}: the processes have disks of their own;"
            " collect their result folders and use the command `merge`",
            markup=False,
        )
        return
    report_on(folder.path, meta, console, formats)
    mirror.push_all()


def _run(arguments: Arguments, command: str, console: Console) -> None:
    folders = [pathlib.Path(folder) for folder in arguments.folders]
    # both checked before anything is written
    manifest, meta = _read_manifest(folders), _read_meta(folders)
    merged = _merge(folders)
    out = RunFolder(arguments.out)
    try:
        _write(out.path, merged, manifest)
        report_on(out.path, dataclasses.replace(meta, command=command), console)
    finally:
        out.close()


def _read_manifest(folders: list[pathlib.Path]) -> dict[str, Any]:
    """Return the manifest that all folders share."""
    found: dict[str, Any] = {}
    for folder in folders:
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError):
            raise RecordsError(f"{folder} is no result folder: it has no {MANIFEST}") from None
        if found and records.compare_manifests(found, manifest):
            difference = "; ".join(records.compare_manifests(found, manifest))
            raise RecordsError(f"{folder} belongs to another run than {folders[0]}: {difference}")
        found = found or manifest
    return found


def _read_meta(folders: list[pathlib.Path]) -> Meta:
    for folder in folders:
        if (folder / _META).exists():
            return Meta.from_dict(json.loads((folder / _META).read_text()))
    raise RecordsError(
        f"none of {', '.join(map(str, folders))} holds {_META}: the run has not ended; give its"
        " command again"
    )


def _merge(folders: list[pathlib.Path]) -> dict[str, dict[tuple[int, str, str], Record]]:
    """Collect the records by task, each once; the first folder that holds one wins."""
    merged: dict[str, dict[tuple[int, str, str], Record]] = {}
    for folder in folders:
        for record in records.read_all(folder):
            # one process may have written a row that another wrote before it was killed
            key = (record.row, record.method, record.example_id)
            merged.setdefault(record.task, {}).setdefault(key, record)
    return merged


def _write(out: pathlib.Path, merged: dict[str, dict], manifest: dict[str, Any]) -> None:
    for old in (out / RECORDS).glob("*.jsonl"):  # of an earlier merge
        old.unlink()
    for task, found in merged.items():
        # in order of row, method and id
        lines = [json.dumps(vars(found[key]), ensure_ascii=False) + "\n" for key in sorted(found)]
        write_atomically(out / RECORDS / f"{task}.jsonl", "".join(lines))
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
