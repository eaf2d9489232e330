"""What a run shows while it works: a bar in a terminal, lines in a file."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ivc_jax.evals.benchmarks.tasks import COMPILED, READING
from ivc_jax.reports.labels import shorten_task

QUIET = 30.0  # seconds after which a file gets a line, whatever happens

Update = Callable[[str, int, int], None]


@contextlib.contextmanager
def show_progress(console: Console, quiet: float = QUIET) -> Iterator[Update]:
    """Show how far a run is; yield the callback of `ivc_jax.evals.running.runner.run`.

    The first count of answers also says whether an earlier run left some.

    Args:
        console: a terminal gets a bar, anything else lines.
        quiet: seconds without a line.
    """
    display = _show_bar(console) if console.is_terminal else _write_lines(console, quiet)
    counted = False
    with display as show:

        def update(task: str, done: int, total: int) -> None:
            nonlocal counted
            if not counted and task not in (READING, COMPILED):
                counted = True
                if done and done == total:
                    console.print(
                        f"nothing left to do: all {total} answers were there", highlight=False
                    )
                elif done:
                    console.print(f"resumed: {done} of {total} answers were there", highlight=False)
            show(task, done, total)

        yield update


@contextlib.contextmanager
def _write_lines(console: Console, quiet: float) -> Iterator[Update]:
    """Write a line for each new task and each compiled program, and whenever it was quiet."""
    start = written = time.monotonic()
    line, shown, first = "loading", set(), {}
    ended = threading.Event()

    def write(text: str) -> None:
        nonlocal written
        written = time.monotonic()
        console.print(text, markup=False, highlight=False)

    def update(task: str, done: int, total: int) -> None:
        nonlocal line
        now = time.monotonic()
        if task == COMPILED:
            line = f"compiled {done} of {total}"
        elif task == READING:
            line = f"{READING}: {done} of {total}"
        else:
            line = f"{shorten_task(task)}: {done} of {total} answers"
            seconds, before = first.setdefault(COMPILED, (now, done))
            if done > before:
                line += f", {(done - before) / (now - seconds):.1f}/s"
        if task not in shown or task == COMPILED or done == total:
            shown.add(task)
            write(line)

    def keep_talking() -> None:
        while not ended.wait(min(1.0, quiet)):
            if time.monotonic() - written >= quiet:
                write(f"{line}, {time.monotonic() - start:.0f} s")

    talker = threading.Thread(target=keep_talking, daemon=True)
    talker.start()
    try:
        yield update
    finally:
        ended.set()
        talker.join()


@contextlib.contextmanager
def _show_bar(console: Console) -> Iterator[Update]:
    """Show a bar with rate and time left, from the first update on."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console)
    bar = progress.add_task("", total=None, rate="")
    reading, first = False, []

    def update(task: str, done: int, total: int) -> None:
        nonlocal reading
        progress.start()
        if task == COMPILED:
            progress.update(bar, description=f"compiled {done} of {total}", refresh=True)
            return
        if reading and task != READING:
            # rows read per second say nothing about those to come
            first.clear()
            progress.reset(bar, total=total)
        reading = task == READING
        first.append(done)
        elapsed = progress.tasks[0].elapsed or 0.0
        rate = f"{(done - first[0]) / elapsed:.1f}/s" if elapsed and done > first[0] else ""
        working = done > first[0] or reading
        progress.update(
            bar,
            description=shorten_task(task) if working else "compiling",
            completed=done,
            total=total,
            rate=rate,
        )

    try:
        yield update
    finally:
        progress.stop()
