"""Append-only records of a run, and the settings they belong to.

One JSON line an example and method. A line is flushed as it is written, so a killed run loses at
most the line being written; opening the file again cuts such a torn line off.
"""

import fcntl
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from ivc_jax.evals.schema import Record, SchemaError, build

MANIFEST = "manifest.json"
RECORDS = "records"
_FORMAT = 4  # raise it when the keys of a record change: old files are then refused
_SYNC_SECONDS = 1.0
_ROOM = 1 << 20  # bytes that must be writable before work starts


class RecordsError(ValueError):
    """A result folder that cannot be used; the message names it and the remedy."""


class RunFolder:
    """A result folder held by one run.

    Args:
        process: number of this process where several share the folder.

    Raises:
        RecordsError: the folder cannot be written, or another process uses it.
    """

    def __init__(self, path: str | os.PathLike, process: int = 0) -> None:
        self.path = pathlib.Path(path)
        try:
            (self.path / RECORDS).mkdir(parents=True, exist_ok=True)
            # one lock a process: several of a run may share the folder
            self._lock = (self.path / f".lock{process}").open("w")
            probe = self.path / f".probe{process}"
            with probe.open("wb") as file:
                file.write(bytes(_ROOM))  # a full disk shows now, and not after hours
                os.fsync(file.fileno())
            probe.unlink()
        except OSError as error:
            raise RecordsError(
                f"cannot write into {self.path}: {error.strerror}; choose another --out"
            ) from None
        try:
            # held until `close`, or until the process dies
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecordsError(
                f"another run is writing into {self.path}; wait for it or choose another --out"
            ) from None

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def set_aside(self) -> pathlib.Path | None:
        """Move records of an earlier run out of the way; return where they went."""
        if not any((self.path / RECORDS).glob("*.jsonl")):
            return None
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        target = self.path / f"{RECORDS}-before-{stamp}-{os.getpid()}"
        (self.path / RECORDS).rename(target)
        if (self.path / MANIFEST).exists():
            (self.path / MANIFEST).rename(target / MANIFEST)
        (self.path / RECORDS).mkdir()
        return target

    def claim(
        self, settings: Mapping[str, Any], task_files: Mapping[str, str], model: str = ""
    ) -> None:
        """Check that earlier records were made with the same settings, then note these.

        Args:
            settings: whatever makes records comparable (model, seed, type, batch size, ...).
            task_files: fingerprint of the file of each task.
            model: what people call the model.

        Raises:
            RecordsError: the folder holds records made with other settings.
        """
        wanted = {"format": _FORMAT, "settings": dict(settings), "tasks": dict(task_files)}
        wanted["model"] = model
        if (found := self._compare(lambda found: compare_manifests(found, wanted))) is not None:
            # tasks of earlier runs in the folder stay known
            wanted["tasks"] = found["tasks"] | wanted["tasks"]
        write_atomically(self.path / MANIFEST, json.dumps(wanted, indent=1) + "\n")

    def refuse_other_model(self, fingerprint: str, model: str) -> None:
        """Compare the model alone with that of earlier records, before it is loaded.

        Raises:
            RecordsError: names both models.
        """
        self._compare(lambda found: _compare_models(found, fingerprint, model))

    def _compare(self, compare: Callable[[dict[str, Any]], list[str]]) -> dict[str, Any] | None:
        """Return the manifest of earlier records if they compare, None if there are none."""
        path = self.path / MANIFEST
        earlier = sorted((self.path / RECORDS).glob("*.jsonl"))
        if not (path.exists() and earlier):
            return None
        try:
            found = json.loads(path.read_text())
            if "model" not in found:  # of an earlier version: its records name the model
                named = (record.model for file in earlier for record in read(file))
                found["model"] = next(named, "")
            changed = compare(found)
        except (ValueError, KeyError, AttributeError):
            raise RecordsError(
                f"{path} is damaged; use --no-resume to set its records aside"
            ) from None
        if changed:
            raise RecordsError(
                f"{self.path} holds records of another run ({'; '.join(changed)}); choose"
                " another --out, or --no-resume to set them aside"
            )
        return found

    def open_records(self, name: str) -> "RecordFile":
        """Open the record file of one task (and process)."""
        return RecordFile(self.path / RECORDS / f"{name}.jsonl")


class RecordFile:
    """One JSON Lines file, open for appending; `done` holds (example_id, method) of its lines."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        _cut_torn_line(path)  # before reading: half a line is no record
        self.done = {(record.example_id, record.method) for record in read(path)}
        self._file: BinaryIO = path.open("ab")
        self._synced = time.monotonic()

    def append(self, record: Record) -> None:
        """Write one line and hand it to the operating system."""
        line = json.dumps(vars(record), ensure_ascii=False, separators=(",", ":"))
        self._file.write(line.encode("utf-8", errors="replace") + b"\n")
        self._file.flush()
        self.done.add((record.example_id, record.method))

    def sync(self) -> None:
        """Wait until the lines are on the disk, unless that was done within the last second.

        What the operating system has, no killed process loses; a computer that stops loses at most
        that second. Waiting behind each batch of one took 7 ms, an eighth of its time.
        """
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Wait until all lines are on the disk, and close the file."""
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def read(path: pathlib.Path) -> Iterator[Record]:
    """Yield the records of one file.

    Raises:
        RecordsError: a line is not a record.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield build(Record, json.loads(line))
            except (ValueError, SchemaError):
                raise RecordsError(
                    f"{path} line {number} is not a record; remove the line, or use --no-resume"
                ) from None


def read_all(folder: str | os.PathLike) -> list[Record]:
    """Read every record of a run, the files in order of name."""
    paths = sorted((pathlib.Path(folder) / RECORDS).glob("*.jsonl"))
    return [record for path in paths for record in read(path)]


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write a file so that readers see the old content or the new one, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)  # within a folder, which makes it one step


def _cut_torn_line(path: pathlib.Path) -> None:
    """Truncate a file after its last newline."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:  # backwards, block by block, to the last newline
            start = max(0, keep - 4096)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)


def _compare_models(found: Mapping[str, Any], fingerprint: str | None, name: str) -> list[str]:
    before = found["settings"].get("model")
    if before == fingerprint:
        return []
    old, new = found.get("model") or before, name or fingerprint
    return [f"model was {old}, now {new}" if old != new else f"the files of model {new} changed"]


def compare_manifests(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say in which settings and task files two manifests differ."""
    old, new = found["settings"], wanted["settings"]
    changed = _compare_models(found, new.get("model"), wanted.get("model", ""))
    changed += [
        f"{key} was {old.get(key)}, now {new.get(key)}"
        for key in sorted((old.keys() | new.keys()) - {"model"})
        if old.get(key) != new.get(key)
    ]
    if found["format"] != wanted["format"]:
        changed.insert(0, f"record format {found['format']}, now {wanted['format']}")
    both = sorted(found["tasks"].keys() & wanted["tasks"].keys())
    return changed + [
        f"the file of task {task} has changed"
        for task in both
        if found["tasks"][task] != wanted["tasks"][task]
    ]
