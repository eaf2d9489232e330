"""Peak memory of a piece of work in a process of its own, on the host or on an accelerator."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ivc_jax.commands.origin import find_model

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# The folder that holds the package: what runs here must run in the other process.
_HOME = Path(find_model(None)).parents[1]


def read_status(field: str) -> int:
    """Return a memory field of this process in bytes (Linux): VmRSS, VmHWM, RssAnon, RssFile."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def measure_peak(work: Callable[[], Any]) -> dict[str, int]:
    """Do some work and return what was resident before and at most, in bytes.

    On a GPU or TPU it is the memory of the device, whose peak counts from the start of the process.
    """
    if jax.default_backend() != "cpu":
        device = jax.local_devices()[0]
        before = device.memory_stats()["bytes_in_use"]
        work()
        return {"before": before, "peak": device.memory_stats()["peak_bytes_in_use"]}
    _CLEAR.write_text("5")  # the kernel's peak starts anew
    before = read_status("VmRSS")
    work()
    return {"before": before, "peak": read_status("VmHWM")}


def measure_libraries(with_torch: bool) -> int:
    """Return what is resident before anything is loaded; on an accelerator that is nothing."""
    jax.block_until_ready(jax.numpy.zeros(1))  # the backend starts
    if with_torch:
        importlib.import_module("transformers.models.qwen2_vl.modeling_qwen2_vl")
    return read_status("VmRSS") if jax.default_backend() == "cpu" else 0


def run_script(*arguments: Any) -> dict[str, Any]:
    """Run a script in a Python of its own; return the JSON object on its last line."""
    return json.loads(run_python(*arguments).splitlines()[-1])


def run_python(*arguments: Any) -> str:
    """Run a Python of its own with these arguments; return what it printed.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote.
    """
    paths = [str(_HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout
