"""How long `import ivc_jax` takes, and until its calls are there, at two commits in turns.

    python benchmarks/import_time.py --before fea3d3c

Writes benchmarks/results/import_time.json. Starting Python and importing JAX alone are measured
beside the two: nothing of this package can be faster than that. Only ratios of one run count.
Expected: a ratio to the earlier commit of at most 1.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from record import ROOT, write_report

_JAX = "import jax"
_PACKAGE = "import ivc_jax"
_CALLS = "import ivc_jax; ivc_jax.load, ivc_jax.generate"  # names are imported when asked for
_LIBRARIES = ("matplotlib", "jinja2", "tyro", "orbax", "grain", "optax", "tokenizers", "rapidfuzz")
_LOADED = f"import sys; {_CALLS}; print(*(name for name in {_LIBRARIES} if name in sys.modules))"


def unpack(commit: str, folder: Path) -> Path:
    """Write the files of a commit into a folder of their own."""
    target = folder / commit
    with tempfile.TemporaryFile() as archive:
        subprocess.run(["git", "-C", ROOT, "archive", commit], stdout=archive, check=True)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(target, filter="data")
    return target


def run(statement: str, checkout: Path) -> str:
    """Run a statement in a Python of its own, with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", statement]
    return subprocess.run(
        command, cwd=checkout, env=environment, check=True, capture_output=True, text=True
    ).stdout


def measure(statement: str, checkout: Path) -> float:
    """Return the seconds of a statement, starting Python included."""
    start = time.perf_counter()
    run(statement, checkout)
    return time.perf_counter() - start


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True, help="earlier commit to compare with")
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = unpack(arguments.before, Path(folder))
        after = unpack("HEAD", Path(folder))
        cases = {
            "jax": (_JAX, after),
            "before": (_PACKAGE, before),
            "after": (_PACKAGE, after),
            "calls before": (_CALLS, before),
            "calls after": (_CALLS, after),
        }
        for case in cases.values():
            measure(*case)  # writes the compiled modules
        seconds = {name: [] for name in cases}
        for _ in range(arguments.runs):
            for name, case in cases.items():
                seconds[name].append(measure(*case))
        loaded = {
            name: run(_LOADED, checkout).split()
            for name, checkout in (("before", before), ("after", after))
        }
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    write_report(
        ROOT / "benchmarks" / "results" / "import_time.json",
        "import_time",
        before_commit=arguments.before,
        seconds={name: [round(value, 3) for value in values] for name, values in seconds.items()},
        median={name: round(value, 3) for name, value in median.items()},
        ratio=round(median["after"] / median["before"], 3),
        ratio_of_calls=round(median["calls after"] / median["calls before"], 3),
        loaded=loaded,
    )


if __name__ == "__main__":
    main()
