"""Ctrl-C: one line and exit code 130, whenever it comes."""

import signal
import subprocess
import sys
import time

import pytest

from ivc_jax.commands.cli import run_action

STARTED = """
import sys
from ivc_jax.commands import main
assert "jax" not in sys.modules
print("started", flush=True)
sys.argv[1:] = {arguments!r}
sys.exit(main.start())
"""
STUCK = """
import time
from ivc_jax.commands.interrupt import end_on_interrupt
end_on_interrupt()
print("started", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("too late")
"""


def interrupt(code, seconds):
    """Return exit code, output and errors of a program that Ctrl-C meets after its start."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize("arguments", [["inspect"], ["run"]])
@pytest.mark.parametrize("seconds", [0.1, 0.6])
def test_while_jax_is_imported(arguments, seconds):
    code, output, errors = interrupt(STARTED.format(arguments=arguments), seconds)
    assert (code, output) == (130, "")
    assert errors.count("\n") == 1
    assert errors.startswith("interrupted")


def test_while_nobody_listens():
    assert interrupt(STUCK, 0.1) == (130, "", "interrupted\n")


def test_within_another_program(capsys):
    def action():
        raise KeyboardInterrupt

    assert run_action(action, traceback=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert run_action(action, traceback=True, resumes=True) == 130
    told = capsys.readouterr().err
    assert told == "interrupted; give the same command again to go on\n"
