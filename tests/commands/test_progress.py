"""What a run says while it works, in a file and in a terminal."""

import dataclasses
import io
import time

from rich.console import Console

from ivc_jax.commands.cli import run_command
from ivc_jax.commands.progress import show_progress
from ivc_jax.evals.benchmarks.tasks import COMPILED, READING

TASK = "DigitScenes_colour"


def say(*events, terminal=False, quiet=30.0, wait=0.0):
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=terminal, color_system=None)
    with show_progress(console, quiet) as update:
        for event in events:
            update(*event)
        time.sleep(wait)
    return stream.getvalue()


def test_a_file_gets_lines_while_programs_compile():
    lines = say(
        *((READING, 0, 9), (READING, 9, 9), (TASK, 0, 4), (COMPILED, 1, 2), (TASK, 2, 4)),
        *((COMPILED, 2, 2), (TASK, 3, 4), (TASK, 4, 4)),
    ).splitlines()
    assert lines[:5] == [
        *("reading rows: 0 of 9", "reading rows: 9 of 9", "colour: 0 of 4 answers"),
        *("compiled 1 of 2", "compiled 2 of 2"),
    ]
    (last,) = lines[5:]
    assert last.startswith("colour: 4 of 4 answers, ")


def test_a_file_never_stays_quiet():
    lines = say((TASK, 0, 4), (TASK, 1, 4), quiet=0.02, wait=0.3).splitlines()
    assert lines[0] == "colour: 0 of 4 answers"
    assert len(lines) > 2
    assert all(line.startswith("colour: 1 of 4 answers") for line in lines[1:])
    assert say(quiet=0.02, wait=0.3).startswith("loading, 0 s\n")


def test_a_resumed_run_and_a_finished_one_say_so():
    for terminal in (False, True):
        told = say((READING, 9, 9), (TASK, 120, 360), (TASK, 121, 360), terminal=terminal)
        assert told.count("resumed: 120 of 360 answers were there") == 1
        told = say((TASK, 360, 360), terminal=terminal)
        assert told.count("nothing left to do: all 360 answers were there") == 1
        told = say((TASK, 0, 360), (TASK, 360, 360), terminal=terminal)
        assert "there" not in told


def test_a_terminal_gets_a_bar():
    shown = say((READING, 0, 9), (TASK, 0, 4), (COMPILED, 1, 2), (TASK, 4, 4), terminal=True)
    assert "compiled 1 of 2" in shown
    assert "4/4" in shown
    assert say(terminal=True) == ""  # an error before the first row leaves no bar behind


@dataclasses.dataclass(frozen=True)
class Options:
    """None but the one that all have."""

    traceback: bool = False


def test_a_file_gets_no_colours_where_they_are_forced(monkeypatch, capsys):
    """As in notebooks, where `!ivc-jax run > log` would fill the log with bars."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    seen = []

    def show(chosen, command, console):
        seen.append(console.is_terminal)
        console.print("[bold]done[/bold]")

    assert run_command(Options, show, [], "program") == 0
    assert seen == [False]
    assert capsys.readouterr().out == "done\n"
