"""Compiled programs are kept for later runs: JAX's own cache, in a folder of the user's.

JAX's variables come first: JAX_COMPILATION_CACHE_DIR names another folder, and
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

import logging
import os
import pathlib
import tempfile

import jax

from ivc_jax import cloud

_log = logging.getLogger(__name__)
_ENTRIES = "*-cache"  # as JAX names them
# The default run keeps 2.4 MB. JAX can bound a folder itself, but a run that is killed between an
# entry and its time stamp then stops every later one from writing.
_LARGEST = 2 << 30  # bytes


def use_compile_cache(enabled: bool = True) -> None:
    """Keep compiled programs, small ones too; a folder that cannot be written is a warning."""
    if not enabled or not jax.config.jax_enable_compilation_cache:
        return
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        folder = named or str(cloud.find_home() / "xla")
        if not cloud.is_remote(folder):
            _try(pathlib.Path(folder))
        if not named:  # what others keep in a folder of theirs is not ours to remove
            prune(pathlib.Path(folder), _LARGEST)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        _log.warning("compiled programs are not kept for later runs: %s", error)
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    # by default only what took a second to compile is kept: small models have many small programs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def prune(folder: pathlib.Path, largest: int) -> None:
    """Remove the oldest entries of a cache until the others take at most `largest` bytes."""
    found = []
    for entry in folder.glob(_ENTRIES):
        try:
            status = entry.stat()
        except FileNotFoundError:  # another process removes it
            continue
        found.append((status.st_mtime_ns, status.st_size, entry))
    total = 0
    for _, size, entry in sorted(found, reverse=True):
        total += size
        if total > largest:
            entry.unlink(missing_ok=True)


def _try(folder: pathlib.Path) -> None:
    """Write a file, which only then is known to work: permissions do not tell of full disks."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
