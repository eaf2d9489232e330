"""Files in buckets (gs://, s3://, ...) by way of local copies.

Benchmarks and checkpoints are copied once and then read like any other file; result folders are
worked on locally, since objects in a bucket cannot be appended to, and copied back now and then.
"""

import fnmatch
import hashlib
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator

from etils import epath

_log = logging.getLogger(__name__)
_CHUNK = 1 << 24  # bytes copied at a time


class RemoteError(ValueError):
    """A bucket that cannot be read or written; the message names the path and the remedy."""


def is_remote(path: str | os.PathLike | None) -> bool:
    """Tell whether a path lies in a bucket."""
    return path is not None and "://" in os.fspath(path)


def find_home() -> pathlib.Path:
    """Return the folder of this package in the user's cache directory.

    Raises:
        RuntimeError: the user has no home.
    """
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "ivc_jax"


def find_cache(path: str, kind: str) -> pathlib.Path:
    """Return the local folder that stands for a remote one."""
    # buckets may hold folders of one name
    digest = hashlib.sha256(path.rstrip("/").encode()).hexdigest()[:16]
    return find_home() / kind / digest


def pull_file(path: str, target: pathlib.Path) -> bool:
    """Copy one remote file unless a copy of its size is there; False if there is none.

    Raises:
        RemoteError: the bucket cannot be read.
    """
    try:
        source = epath.Path(path)
        if not source.exists():
            return False
        # the size is all that every kind of bucket tells without reading
        if target.exists() and target.stat().st_size == source.stat().length:
            return True
        _log.info("copying %s to %s", path, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
        with source.open("rb") as remote, draft.open("wb") as local:
            shutil.copyfileobj(remote, local, _CHUNK)
        # renamed when complete: an interrupted copy must not pass for the file
        draft.replace(target)
        return True
    except Exception as error:  # file systems raise what they like
        raise _explain(path, error) from error


def pull_folder(path: str, target: pathlib.Path, pattern: str = "*") -> pathlib.Path:
    """Copy the files of a remote folder and of the folders in it; return the local folder.

    Raises:
        RemoteError: the bucket cannot be read, or there is no such folder.
    """
    try:
        root = epath.Path(path)
        if not root.is_dir():
            raise RemoteError(f"{path} is no folder; correct the path")
        found = [file for file in _walk(root) if fnmatch.fnmatch(file.name, pattern)]
    except RemoteError:
        raise
    except Exception as error:
        raise _explain(path, error) from error
    for file in found:
        pull_file(os.fspath(file), target / os.fspath(file.relative_to(root)))
    return target


def push_file(source: pathlib.Path, path: str) -> None:
    """Copy a local file into a bucket, over what is there.

    Raises:
        RemoteError: the bucket cannot be written.
    """
    try:
        target = epath.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as local, target.open("wb") as remote:
            shutil.copyfileobj(local, remote, _CHUNK)
    except Exception as error:
        raise _explain(path, error) from error


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    """Walk through a folder; patterns with two stars are refused on buckets."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry)
        else:
            yield entry


def _explain(path: str, error: Exception) -> RemoteError:
    reason = " ".join(str(error).split()) or type(error).__name__
    scheme = path.partition("://")[0]
    package = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}.get(scheme)
    remedy = f"; pip install {package}" if package and isinstance(error, ImportError) else ""
    return RemoteError(f"cannot use {path}: {reason}{remedy}")
