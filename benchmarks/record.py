"""What every benchmark shares: its options, and the record that it writes.

A record is one JSON file a benchmark, device and commit:

    {"benchmark", "commit", "command", "date", "device", "cpu_count", "versions", "quick",
     "dtype", "size", "machine", "rows": [{"case", "unit", "ours", "torch", "ratio", ...}]}

`ratio` is torch / ours: above 1 this package is faster, or needs less memory.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import re
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import torch_side

from ivc_jax.commands.origin import find_commit

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_LIBRARIES = ("jax", "jaxlib", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison of a record.

    Attributes:
        case: what was measured, in words.
        unit: of the two numbers; less is better, unless it is a rate ("samples/s").
        ours: all measurements of this package.
        torch: those of torch, in turns with ours; none without torch.
        limit: what bounds it: "matrix products" or "bandwidth".
        of_limit: the share of that limit that this package reaches, by the median.
        more: whatever else belongs to the row.
    """

    case: str
    unit: str
    ours: list[float]
    torch: list[float] = dataclasses.field(default_factory=list)
    limit: str | None = None
    of_limit: float | None = None
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as the record holds it: medians, their ratio, and every sample."""
        ours = statistics.median(self.ours)
        torch = statistics.median(self.torch) if self.torch else None
        better = ours / torch if torch and self.unit.endswith("/s") else torch and torch / ours
        return {
            "case": self.case,
            "unit": self.unit,
            "ours": _round(ours),
            "torch": _round(torch),
            "ratio": _round(better),
            "limit": self.limit,
            "of_limit": _round(self.of_limit),
            **{name: _round(value) for name, value in self.more.items()},
            "samples": {"ours": _round(self.ours), "torch": _round(self.torch)},
        }


def make_parser(doc: str, repeats: int = 3) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have.

    Args:
        doc: docstring of the script.
        repeats: measurements of each side.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, seconds in all")
    parser.add_argument("--out", type=Path, help="folder of the record")
    parser.add_argument("--size", choices=("tiny", "2b", "7b"), help="width of the model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="by default the device's")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--alone", action="store_true", help="do not measure torch beside it")
    parser.add_argument("--scratch", type=Path, help="folder that keeps the random checkpoints")
    parser.add_argument("--append", action="store_true", help="keep other rows of this record")
    return parser


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and fill in what depends on the device."""
    # JAX would take most of a GPU's memory at once, and nothing would be left for torch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    chosen = parser.parse_args()
    chosen.alone = chosen.alone or not torch_side.is_comparable()
    chosen.size = chosen.size or ("tiny" if chosen.quick else "2b")
    chosen.repeats = 1 if chosen.quick else chosen.repeats
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    chosen.dtype = chosen.dtype or default
    # What only shows that a script runs does not lie among the results.
    chosen.out = chosen.out or (ROOT / "runs" / "benchmarks" if chosen.quick else RESULTS)
    return chosen


def write_record(options: argparse.Namespace, rows: list[Row], **found: Any) -> Path:
    """Write the record of a benchmark that compares; return its path.

    Args:
        options: from `read_options`.
        rows: the comparisons.
        found: what else there is, such as `machine`.
    """
    name = Path(sys.argv[0]).stem
    commit = find_commit()
    path = options.out / f"{name}-{_name_device()}-{commit}.json"
    listed = [row.to_dict() for row in rows]
    if options.append and path.exists():
        before, cases = json.loads(path.read_text()), {row["case"] for row in listed}
        listed = [row for row in before["rows"] if row["case"] not in cases] + listed
        found["command"] = f"{before['command']} && {_name_command(name)}"
    settings = {name: getattr(options, name) for name in ("quick", "dtype", "size")}
    write_report(path, name, **settings, **_round(found), rows=listed)
    print(f"wrote {path}", flush=True)
    return path


def write_report(path: Path, name: str, **found: Any) -> None:
    """Write a record: what ran, where, at which commit, and what was found."""
    report = {
        "benchmark": name,
        "commit": find_commit(),
        "command": _name_command(name),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "versions": {each: _find_version(each) for each in _LIBRARIES},
        **found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def _name_command(name: str) -> str:
    return shlex.join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])


def _find_version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _name_device() -> str:
    """Name the device for a file: "cpu2" for two cores, "nvidia-h100" and the like."""
    kind = jax.devices()[0].device_kind
    kind = f"{kind}{os.cpu_count()}" if kind == "cpu" else kind
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def _round(value: Any) -> Any:
    """Round to four digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _round(each) for name, each in value.items()}
    return [_round(each) for each in value] if isinstance(value, list) else value
