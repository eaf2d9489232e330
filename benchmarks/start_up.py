"""How long does the default run take to start, cold and warm, and what does an import cost?

    python benchmarks/start_up.py [--repeats 3] [--limit 60]

The default run (bundled model and benchmark) is a process of its own each time: cold with an empty
folder of compiled programs, warm with the folder that a cold run left. Its start is what is neither
evaluation nor the report behind it:

    |import, load, read rows|compile|answer|compile|answer|answer|answer| ... |tables, figures|
     start                   start          start                               report

`of_cold` is the share of the cold start that a warm one takes; expected: at most a quarter. Imports
are statements in processes of their own, the start of Python included.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import ROOT, Row, make_parser, read_options, write_record

_RUN = (sys.executable, str(ROOT / "experiments" / "run.py"))
_STATEMENTS = {
    "import jax": "import jax",
    "import ivc_jax": "import ivc_jax",
    "import, calls included": "import ivc_jax; ivc_jax.load, ivc_jax.generate",
    "ivc-jax --help": "from ivc_jax.commands.main import main; main([])",
    "load the bundled model, import included": "import ivc_jax; ivc_jax.load('bundled')",
}


def run_default(out: Path, cache: Path, limit: int) -> dict[str, float]:
    """Run the default evaluation in a process of its own; return the seconds of its parts."""
    # JAX's own variable would name another folder: empty, it names none.
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": ""}
    command = [*_RUN, "--limit", str(limit), "--out", str(out)]
    begin, first = time.time(), None
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if first is None and any(path.stat().st_size for path in find_records(out)):
                first = time.time()
            time.sleep(0.01)
    end = time.time()
    if process.returncode or first is None:
        raise SystemExit(f"the run ended with code {process.returncode}")
    answered = max(path.stat().st_mtime for path in find_records(out))
    found = json.loads((out / "results.json").read_text())["meta"]["statistics"]
    return {
        "start": answered - begin - found["device"],
        "first record": first - begin,
        "compile": found["compile"],
        "evaluation": found["device"],
        "report": end - answered,
        "whole run": end - begin,
    }


def find_records(out: Path) -> list[Path]:
    """List the files of records of a run."""
    return list((out / "records").glob("*.jsonl"))


def measure_runs(repeats: int, limit: int, scratch: Path) -> dict[str, list[dict[str, float]]]:
    """Run cold and warm in turns; return the parts of each run."""
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    cache, out = scratch / "cache", scratch / "out"
    for repeat in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        for kind, parts in found.items():
            shutil.rmtree(out, ignore_errors=True)
            parts.append(run_default(out, cache, limit))
            shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts[-1].items())
            print(f"{repeat + 1} of {repeats}, {kind}: {shown}", flush=True)
    return found


def measure_statements(repeats: int) -> list[Row]:
    """Time the imports in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in _STATEMENTS}
    for repeat in range(repeats + 1):
        for name, statement in _STATEMENTS.items():
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", statement], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
            if repeat:  # the first run writes compiled modules
                seconds[name].append(time.perf_counter() - begin)
    return [Row(name, "s", values) for name, values in seconds.items()]


def make_rows(runs: dict[str, list[dict[str, float]]]) -> list[Row]:
    """Write the parts of the runs as rows, with the share that a warm one takes."""
    rows = []
    for part in runs["cold"][0]:
        values = {kind: [each[part] for each in parts] for kind, parts in runs.items()}
        share = statistics.median(values["warm"]) / statistics.median(values["cold"])
        rows.append(Row(f"{part}, cold", "s", values["cold"]))
        rows.append(Row(f"{part}, warm", "s", values["warm"], more={"of_cold": share}))
    return rows


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what only this benchmark has."""
    parser.add_argument("--limit", type=int, default=60, help="rows of a task; 60 by default")
    return parser


def main() -> None:
    """Measure and write the record."""
    options = read_options(add_options(make_parser(__doc__)))
    limit = 1 if options.quick else options.limit
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        rows = make_rows(measure_runs(options.repeats, limit, Path(scratch)))
    write_record(options, [*rows, *measure_statements(3 * options.repeats)], limit=limit)


if __name__ == "__main__":
    main()
