"""What the commands share: how options are described, and how a command ends."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

_FAILURE = 2
_INTERRUPTED = 130


def option(metavar: str) -> Any:
    """Describe an option by a word for its value, without tyro's remark on the default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def exit_code(action: Callable[[], None], *, traceback: bool, resumes: bool = False) -> int:
    """Run a command; return 0, or print one line that says what is wrong and return its code.

    Args:
        traceback: raise instead of printing.
        resumes: the same command goes on where an interrupted one stopped.
    """
    try:
        action()
    except KeyboardInterrupt:
        if resumes:
            print("interrupted; give the same command again to go on")
        return _INTERRUPTED
    # What the packages raise for bad input are ValueErrors; a full disk is an OSError, an optional
    # dependency that is not installed an ImportError.
    except (ValueError, OSError, ImportError) as error:
        if traceback:
            raise
        hint = "; finished records are kept, give the same command again to go on"
        message = f"{error}{hint if resumes and isinstance(error, OSError) else ''}"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return _FAILURE
    return 0
