"""What the commands share: how options are described, and how a command ends."""

import functools
import shlex
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

_FAILURE = 2
_INTERRUPTED = 130
_Arguments = TypeVar("_Arguments")


def option(metavar: str) -> Any:
    """Describe an option by a word for its value, without tyro's remark on the default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def run_command(
    kind: type[_Arguments],
    action: Callable[[_Arguments, str, Console], None],
    arguments: list[str] | None,
    name: str = "",
    width: int = 120,
    resumes: bool = False,
) -> int:
    """Read options, run a command and return the exit code.

    Args:
        kind: dataclass of the options, with a field `traceback`.
        action: (options, the command as given, where to print).
        arguments: of the command line; None takes those of the process.
        name: of the command below `run.py`, "" for that itself.
        width: of what is printed into files: they would wrap tables at 80 columns.
        resumes: see `exit_code`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    words = ["run.py", name] if name else ["run.py"]
    chosen = tyro.cli(
        Annotated[kind, tyro.conf.FlagCreatePairsOff], args=given, prog=" ".join(words)
    )
    console = Console() if sys.stdout.isatty() else Console(width=width)
    run = functools.partial(action, chosen, shlex.join([*words, *given]), console)
    return exit_code(run, traceback=chosen.traceback, resumes=resumes)


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
