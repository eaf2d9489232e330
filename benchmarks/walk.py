"""From a wheel to an open report on a fresh machine: what does each step take?

    python benchmarks/walk.py [--python python3]

In a temporary folder outside of the checkout, with an empty home folder: the wheel of the last
commit, an environment of its own (packages come from the registry), the default run twice, one
picture, and the report in a browser where Chromium is installed. The record holds seconds by the
clock and of the processor and the peak of memory; docs/walk.md shows them. Expected on two CPU
cores: five minutes.
"""

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ivc_jax.commands.origin import find_commit

ROOT = Path(__file__).parent.parent
_STEPS = (
    "pip wheel --no-deps --wheel-dir dist ./source",
    "python3 -m venv env",
    "env/bin/pip install dist/*.whl",
    "env/bin/ivc-jax --help",
    "env/bin/ivc-jax run",
    "env/bin/ivc-jax run (again)",
    "env/bin/ivc-jax inspect",
    "chromium --headless=new --dump-dom runs/default/report.html",
)
# Starts a step and measures it, by the standard library alone: Linux counts the memory of the
# process that starts a program as the program's own, and this one has imported JAX.
_START = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
with open(sys.argv[1], "a") as log:
    process = subprocess.Popen(sys.argv[2:], stdout=log, stderr=log)
_, status, used = os.wait4(process.pid, 0)  # the step and what it started
row = {
    "seconds": round(time.perf_counter() - begin, 1),
    "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
    "peak_mb": round(used.ru_maxrss / 1024),
}
print(json.dumps(row))
sys.exit(status != 0)
"""
_PACKAGES = ("jaxlib", "scipy", "tensorstore", "numpy", "matplotlib", "jax")


def list_words(step: str, python: str, folder: Path) -> list[str]:
    """Return what is started for a step of the page."""
    command = step.removesuffix(" (again)")
    command = command.replace("python3", python).replace("pip wheel", f"{python} -m pip wheel")
    if command.startswith("chromium"):
        page = f"file://{folder}/runs/default/report.html"
        return [*command.split()[:-1], "--no-sandbox", "--virtual-time-budget=5000", page]
    words = command.split()
    return [found for word in words for found in (glob.glob(word, root_dir=folder) or [word])]


def measure(step: str, python: str, folder: Path, environment: dict[str, str]) -> dict:
    """Run a step; return its command, seconds, seconds of the processor and peak memory."""
    log = folder / "log.txt"
    words = [sys.executable, "-I", "-S", "-c", _START, str(log), *list_words(step, python, folder)]
    with log.open("a") as file:
        started = subprocess.run(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=file
        )
    if started.returncode:
        raise SystemExit(f"{step} failed:\n{log.read_text()[-2000:]}")
    row = {"command": step, **json.loads(started.stdout)}
    print(json.dumps(row), flush=True)
    return row


def count_megabytes(folder: Path) -> int:
    """Add up the files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return round(sum(path.stat().st_size for path in files) / 1e6)


def walk(folder: Path, python: str) -> dict:
    """Take all steps in a folder; return the record."""
    for name in ("source", "home"):
        (folder / name).mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", folder / "source"], input=archive.stdout, check=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment = {**kept, "HOME": str(folder / "home")}
    steps = [s for s in _STEPS if not s.startswith("chromium") or shutil.which("chromium")]
    rows = [measure(step, python, folder, environment) for step in steps]
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    report = folder / "runs" / "default" / "report.html"
    ask = "import platform, jax; print(platform.python_version(), jax.__version__)"
    versions = subprocess.check_output([folder / "env" / "bin" / "python", "-c", ask], text=True)
    return {
        **dict(zip(("python", "jax"), versions.split(), strict=True)),
        "environment_mb": count_megabytes(folder / "env"),
        "wheel_mb": round(next((folder / "dist").glob("*.whl")).stat().st_size / 1e6, 1),
        "packages_mb": {name: count_megabytes(packages / name) for name in _PACKAGES},
        "steps": rows,
        "report": {"bytes": report.stat().st_size},
    }


def main() -> None:
    """Take the walk and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="python3", help="of the machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = walk(Path(folder), options.python)
    record = {
        "question": "from a wheel to an open report on a fresh machine",
        # Where the interpreter lies is the machine's own affair.
        "command": f"python benchmarks/walk.py --python {Path(options.python).name}",
        "commit": find_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{os.cpu_count()} CPU cores",
        **found,
    }
    path = ROOT / "benchmarks" / "results" / "walk.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
