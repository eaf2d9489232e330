"""What the commands share: how options are described, and how a command ends."""

import functools
import inspect
import shlex
import sys
import textwrap
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

from ivc_jax.commands import interrupt
from ivc_jax.commands.settings import write_config

SCRIPT = "run.py"  # in experiments/, for a checkout
_FAILURE = 2  # exit code of a wrong argument, as argparse has it
_WIDTH = 100  # of what help says above the options
_Arguments = TypeVar("_Arguments")


def option(metavar: str, default: str = "") -> Any:
    """Describe an option by a word for its value.

    Args:
        default: what help says of a default of None; "" leaves that to the option's own text.
    """

    def hint(shown: str) -> str:
        named = default if shown == "None" else shown
        return f"(default: {named})" if named else ""

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


def run_command(
    kind: type[_Arguments],
    action: Callable[[_Arguments, str, Console], None],
    arguments: list[str] | None,
    program: str,
    config: str = "",
    width: int = 120,
    resumes: bool = False,
) -> int:
    """Read options, run a command and return the exit code.

    Args:
        kind: dataclass of the options, with a field `traceback`.
        action: (options, the command as given, where to print).
        arguments: of the command line; None takes those of the process.
        program: what the command is called by, such as "ivc-jax paper".
        config: configuration whose settings are the defaults; help says what they are.
        width: of what is printed into files: they would wrap tables at 80 columns.
        resumes: see `run_action`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    about = inspect.cleandoc(kind.__doc__.partition("Attributes:")[0])
    if config and {"-h", "--help"} & {*given}:
        settings = f"The config {config}: {write_config(config)}."
        about += "\n\n" + textwrap.fill(settings, _WIDTH, break_on_hyphens=False)
    chosen = tyro.cli(
        Annotated[kind, tyro.conf.FlagCreatePairsOff], args=given, prog=program, description=about
    )
    # Into a file rich wraps at 80 columns, and draws bars where notebooks force colours.
    shown = sys.stdout.isatty()
    console = Console() if shown else Console(width=width, force_terminal=False)
    command = " ".join([program, shlex.join(given)]).strip()
    run = functools.partial(action, chosen, command, console)
    return run_action(run, traceback=chosen.traceback, resumes=resumes)


def complain(error: Exception | str) -> int:
    """Print one line that says what is wrong; return the exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return _FAILURE


def run_action(action: Callable[[], None], *, traceback: bool, resumes: bool = False) -> int:
    """Run a command; return 0, or print one line that says what is wrong and return its code.

    Args:
        traceback: raise instead of printing.
        resumes: the same command goes on where an interrupted one stopped.
    """
    words = f"interrupted{'; give the same command again to go on' if resumes else ''}"
    interrupt.say_on_interrupt(words)
    try:
        action()
    except KeyboardInterrupt:  # in a process that did not begin with `main.start`
        print(words, file=sys.stderr)
        return interrupt.CODE
    # What the packages raise for bad input are ValueErrors; a full disk is an OSError, an optional
    # dependency that is not installed an ImportError.
    except (ValueError, OSError, ImportError) as error:
        if traceback:
            raise
        hint = "; finished records are kept, give the same command again to go on"
        return complain(f"{error}{hint if resumes and isinstance(error, OSError) else ''}")
    return 0
