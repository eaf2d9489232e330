"""Where code and weights of a run come from, as its records say it."""

import functools
import pathlib
import subprocess

from ivc_jax.model import BUNDLED, find_bundled
from ivc_jax.version import __version__

# The folder that holds the packages: the repository, or the site-packages of an installation.
_HOME = find_bundled().parents[1]


def find_model(path: str | None) -> str:
    """Return the path of the model that a command is to load: None is the bundled one."""
    return str(find_bundled()) if path in (None, BUNDLED) else path


def name_model(path: str) -> str:
    """Name a model in records: the bundled one alike in a checkout and an installation."""
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return path
    folder = folder.resolve()
    return str(folder.relative_to(_HOME) if folder.is_relative_to(_HOME) else folder)


@functools.cache
def find_commit() -> str:
    """Return the commit of this checkout, marked "-dirty" if files differ from it.

    An installation has none and is named by its version: git would answer for whatever repository
    it lies in.
    """
    if not (_HOME / ".git").exists():
        return f"v{__version__}"
    command = ["git", "-C", str(_HOME), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"  # git is missing, or slow, or refuses
    return result.stdout.strip()
