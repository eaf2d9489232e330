"""Ctrl-C: one line and exit code 130, whenever it comes."""

import contextlib
import os
import signal
import sys
import threading

CODE = 130
_words = "interrupted"


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process, from now on, in whatever it is doing.

    A KeyboardInterrupt would come late (a compiler in C++ does not look for it), get lost (in
    callbacks of imports, whose exceptions are printed and dropped) or wait for threads at the end.
    So a thread of its own hears of the signal and ends the process. Records lose at most the line
    being written.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler in Python is what fills the pipe
    signal.set_wakeup_fd(told)
    threading.Thread(target=_wait, args=(heard,), daemon=True).start()


def say_on_interrupt(words: str) -> None:
    """Choose what the line says."""
    global _words
    _words = words


def _wait(heard: int) -> None:
    while os.read(heard, 1)[0] != signal.SIGINT:
        pass
    with contextlib.suppress(Exception):  # a print may be under way
        sys.stdout.flush()
    if sys.stdout.isatty():
        os.write(1, b"\x1b[?25h\n")  # bars hide the cursor
    os.write(2, f"{_words}\n".encode())
    os._exit(CODE)
