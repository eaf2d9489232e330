"""Writing a converted directory: all of it or nothing."""

import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from ivc_jax.model import load_params, read_config
from ivc_jax.parallel.mesh import make_mesh
from ivc_jax.weights import checkpoint
from ivc_jax.weights.placement import abstract_params
from ivc_jax.weights.source import DTYPES, CheckpointError, TensorFiles

# Small files that belong to a model; the weights and their index are what is converted.
_COMPANIONS = ("*.json", "*.jinja", "merges.txt", "tokenizer.model", "LICENSE*", "NOTICE*")
_INDEX = "*.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written: the directory, its dtype, and the bytes of its parameters."""

    folder: Path
    dtype: str
    num_bytes: int


def convert(source: Path, target: Path, dtype: str | None = None) -> Converted:
    """Write a checkpoint's parameters in Orbax's format, with its companion files.

    The directory is made under a temporary name beside `target` and renamed when it is whole.

    Args:
        source: a Hugging Face directory, or a converted one (to change its dtype).
        target: a path where nothing is, or an empty directory.
        dtype: "float32", "bfloat16" or "float16"; by default what the source is stored in.

    Raises:
        CheckpointError: an unusable source, a target that holds something, no room or no right to
            write there.
        ConfigError: an architecture that is not supported.
    """
    check_target(target)
    config = read_config(source)
    if dtype is None and checkpoint.is_converted(source):
        dtype = checkpoint.stored_dtype(source)
    dtype = dtype or TensorFiles(source).main_dtype()
    if dtype not in DTYPES:
        raise CheckpointError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    shapes = jax.tree.leaves(abstract_params(config, DTYPES[dtype]))
    num_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)
    with _make_whole(target) as folder:
        _check_room(folder, num_bytes)
        # On the host, whose memory is larger and where blocks lie apart, as they are written.
        host = make_mesh(devices=jax.local_devices(backend="cpu"))
        params = load_params(source, config, DTYPES[dtype], host)
        for file in _list_companions(source):
            shutil.copyfile(file, folder / file.name)
        checkpoint.save_params(folder, params)
    return Converted(target, dtype, num_bytes)


def check_target(target: Path) -> None:
    """Refuse a target that holds something.

    Raises:
        CheckpointError: it is a file or a directory that is not empty.
    """
    if target.is_dir() and not target.is_symlink():
        if any(target.iterdir()):
            raise CheckpointError(f"{target} is not empty; name a new directory or empty this one")
    elif target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} exists and is no directory; name a new one")


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CheckpointError(
            f"the disk of {folder.parent} has {free / 1e9:.2f} GB free, the checkpoint needs"
            f" {num_bytes / 1e9:.2f} GB"
        )


def _list_companions(source: Path) -> list[Path]:
    files = {file for pattern in _COMPANIONS for file in source.glob(pattern) if file.is_file()}
    return sorted(files - set(source.glob(_INDEX)))


@contextmanager
def _make_whole(target: Path) -> Iterator[Path]:
    """Give a temporary directory that becomes `target` at the end, or vanishes on an error."""
    folder = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield folder
        # mkdtemp closes the directory to everybody else.
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        os.replace(folder, target)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        # TensorStore reports a full disk as a ValueError that quotes the system's words.
        full = isinstance(error, ValueError) and "No space left" in str(error)
        if not full and not isinstance(error, OSError):
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"cannot write {target}: {first_line}") from error
