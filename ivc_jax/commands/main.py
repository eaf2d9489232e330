"""The program `ivc-jax`: its commands, and what its help lists.

`python experiments/run.py` of a checkout is the same, but for what it does without a command: run.
"""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping

# Nothing here imports JAX: whatever takes time must come after `start` has begun.
from ivc_jax.commands.interrupt import end_on_interrupt

PROGRAM = "ivc-jax"
COMMANDS = {  # module of each
    "run": "run",
    "inspect": "inspect",
    "paper": "paper",
    "plan": "plan",
    "merge": "merge",
    "report": "report",
    "check": "check",
    "refcoco": "refcoco",
    "choose-layer": "choose_layer",
    "sets": "sets",
    "lens": "lens",
    "vflowopt-search": "vflowopt_search",
    "methods": "methods",
    "bench": "bench",
    "covipal-train": "covipal_train",
}
_WIDTH = 100


def start(program: str = PROGRAM) -> int:
    """Run as a process of its own, which Ctrl-C ends at any moment with one line."""
    end_on_interrupt()
    return main(program=program)


def main(arguments: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run from the command line; return the exit code.

    Args:
        program: `SCRIPT` runs the evaluation where no command is named.
    """
    from ivc_jax.commands.cli import SCRIPT, complain
    from ivc_jax.commands.settings import list_configs
    from ivc_jax.nearest import suggest

    given = sys.argv[1:] if arguments is None else arguments
    first = given[0] if given else ""
    # `run.py methods` is the configuration of that name, with the name of a method the command.
    named = len(given) > 1 and not given[1].startswith("-")
    if first in COMMANDS and (program != SCRIPT or first != "methods" or named):
        return _find_main(first)(given[1:], f"{program} {first}")
    if first in ("-h", "--help") or (not given and program != SCRIPT):
        print(_list_everything(program))
        if program != SCRIPT:
            return 0
        print("\nOptions without a command, which runs an evaluation:\n")
    elif program != SCRIPT:
        known = ", ".join(COMMANDS)
        return complain(f"unknown command {first!r}; known: {known}{suggest(first, COMMANDS)}")
    elif first and not first.startswith("-") and not first.endswith(".py"):
        configs = list_configs()
        if first not in configs:
            return complain(
                f"unknown config {first!r}; known: {', '.join(configs)}; commands:"
                f" {', '.join(COMMANDS)}{suggest(first, [*COMMANDS, *configs])}"
            )
    return _find_main("run")(given, program)


def _find_main(command: str) -> Callable[[list[str], str], int]:
    # Imported late: no command waits for what another one needs.
    return importlib.import_module(f"ivc_jax.commands.{COMMANDS[command]}").main


def _list_everything(program: str) -> str:
    """Write commands, configurations, methods and tasks, each with what it is."""
    from ivc_jax.commands.cli import SCRIPT
    from ivc_jax.commands.methods import list_methods
    from ivc_jax.commands.settings import list_configs
    from ivc_jax.evals.benchmarks.tasks import BUNDLED, BUNDLED_PREFIX, TASKS

    modules = {  # all of them: help has the first line of each
        name: importlib.import_module(f"ivc_jax.commands.{module}")
        for name, module in COMMANDS.items()
    }
    commands = {name: module.__doc__.partition("\n")[0] for name, module in modules.items()}
    if program == SCRIPT:
        commands["methods NAME"] = commands.pop("methods")
    bundled = ", ".join(name.removeprefix(BUNDLED_PREFIX) for name in BUNDLED)
    others = ", ".join(name for name in TASKS if name not in BUNDLED)
    return "\n".join(
        [
            f"usage: {program} COMMAND ...    ({program} COMMAND --help shows its options)",
            "",
            "Visual-token pruning for vision-language models.",
            *_write_block("commands", commands),
            *_write_block(f"configs: {program} run CONFIG", list_configs()),
            *_write_block(f"methods: --methods SPEC; {program} methods NAME", list_methods()),
            *_write_block("tasks: --tasks NAME", {"bundled": bundled, "with --data-dir": others}),
        ]
    )


def _write_block(title: str, entries: Mapping[str, str]) -> Iterable[str]:
    width = max(map(len, entries)) + 4
    yield from ("", title)
    for name, text in entries.items():
        yield textwrap.fill(
            text,
            _WIDTH,
            initial_indent=f"  {name}".ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
