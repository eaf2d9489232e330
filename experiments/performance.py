"""Fill the tables of docs/performance.md from the records of the benchmarks.

    python experiments/performance.py [--page docs/performance.md] [--device cpu2]

Between `<!-- NAME -->` and `<!-- end of NAME -->` stands what the newest record of that benchmark
on that device says; text around the marks is written by hand.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Column = tuple[str, Callable[[dict[str, Any]], str]]


def number(key: str, digits: int = 3, times: float = 1) -> Callable[[dict[str, Any]], str]:
    """Return how to write a number of a row; "-" where it has none."""

    def write(row: dict[str, Any]) -> str:
        return "-" if row.get(key) is None else f"{times * row[key]:.{digits}g}"

    return write


def ratio(key: str) -> Callable[[dict[str, Any]], str]:
    """Return how to write a ratio with two decimals."""
    return lambda row: "-" if row.get(key) is None else f"{row[key]:.2f}"


def share(key: str, digits: int = 0) -> Callable[[dict[str, Any]], str]:
    """Return how to write a share in percent."""
    return lambda row: "-" if row.get(key) is None else f"{100 * row[key]:.{digits}f} %"


def text(key: str) -> Callable[[dict[str, Any]], str]:
    """Return how to write a word, a case without the question before it."""
    return lambda row: f"`{row[key]}`" if key == "method" else row[key].rpartition(": ")[2]


_SIDES: list[Column] = [
    *(("ours", number("ours")), ("torch", number("torch")), ("torch / ours", ratio("ratio"))),
]
_SPEED_UP: list[Column] = [("speed-up", ratio("speed_up")), ("by FLOPs", ratio("ideal"))]
_GROWTH: list[Column] = [
    ("seconds", number("ours")), ("TFLOP", number("flops", 3, 1e-12)),
    ("of the peak", share("of_limit")), *_SPEED_UP, ("linear cap", ratio("linear_cap")),
    ("cache MB", number("cache_bytes", 3, 1e-6)),
]  # fmt: skip
# Of each mark: the benchmark, the question of its rows if it asks several, and the columns.
TABLES: dict[str, tuple[str, str | None, list[Column]]] = {
    "prefill": ("prefill", None, [
        ("seconds", text("case")), *_SIDES, ("of the peak", share("of_limit")), *_SPEED_UP,
        ("of the ideal", share("of_ideal")),
    ]),
    "decode": ("decode", None, [
        ("ms a token", text("case")), *_SIDES, ("GB/s", number("read_rate", 3, 1e-9)),
        ("of the bandwidth", share("of_limit")), ("cache MB", number("cache_bytes", 3, 1e-6)),
    ]),
    "tower": ("tower", None, [
        ("seconds", text("case")), *_SIDES, ("of the peak", share("of_limit")),
    ]),
    "throughput": ("throughput", None, [
        ("samples/s", text("case")), ("ours", number("ours")), ("torch", number("torch")),
        ("ours / torch", ratio("ratio")), ("torch's batch", number("torch_batch")),
        ("of the peak", share("of_limit")), ("same answers", share("same_answers")),
    ]),
    "memory": ("memory", None, [
        ("GB beside weights and libraries", text("case")), *_SIDES,
        ("ours beside weights alone", number("beside_weights")),
    ]),
    "loading": ("loading", None, [
        ("seconds", text("case")), *_SIDES, ("over reading", ratio("over_reading")),
        ("within the bound", lambda row: "yes" if row["within_bound"] else "no"),
    ]),
    "selection_cost": ("selection_cost", None, [
        ("method", text("method")), ("its own seconds", number("ours", 2)),
        ("seconds saved", number("saved_seconds")), ("of the dense", share("share_of_dense", 2)),
        ("by FLOPs", ratio("ideal_speed_up")), ("of the ideal", share("of_ideal", 1)),
    ]),
    "tokens": ("scaling", "tokens", [("prefill", text("case")), *_GROWTH]),
    "batch": ("scaling", "batch", [("prefill", text("case")), *_GROWTH]),
    "keep_ratio": ("scaling", "keep ratio", [("prefill", text("case")), *_GROWTH]),
    "layer": ("scaling", "layer of the cut", [("prefill", text("case")), *_GROWTH]),
    "generated": ("scaling", "decode", [
        ("decode", text("case")), ("ms a token", number("ours")),
        ("of the bandwidth", share("of_limit")), ("cache MB", number("cache_bytes", 3, 1e-6)),
        ("weights MB", number("weight_bytes", 3, 1e-6)),
    ]),
}  # fmt: skip


def find_record(name: str, device: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest record of a benchmark on a device, None if there is none."""
    found = [
        (path, json.loads(path.read_text())) for path in RESULTS.glob(f"{name}-{device}-*.json")
    ]
    return max(found, key=lambda pair: pair[1]["date"], default=None)


def write_table(columns: list[Column], rows: list[dict[str, Any]]) -> Iterable[str]:
    """Write a Markdown table, without columns that no row fills."""
    cells = [[write(row) for _, write in columns] for row in rows]
    used = [place for place in range(len(columns)) if {row[place] for row in cells} != {"-"}]
    lines = [[name for name, _ in columns], ["---"] * len(columns), *cells]
    return [f"| {' | '.join(line[place] for place in used)} |" for line in lines]


def write_section(mark: str, device: str) -> str:
    """Write what stands between the marks of a table, and where it comes from."""
    name, question, columns = TABLES[mark]
    found = find_record(name, device)
    if found is None:
        return "Not measured on this device yet."
    path, record = found
    rows = [row for row in record["rows"] if question in (None, row.get("question"))]
    source = f"`{record['command']}` at commit {record['commit']}, {record['dtype']}"
    link = f"[record](../benchmarks/results/{path.name})"
    return "\n".join([*write_table(columns, rows), "", f"{source}, {link}."])


def fill(page: str, device: str) -> str:
    """Fill every table of a page."""
    for mark in TABLES:
        pattern = re.compile(f"(<!-- {mark} -->).*?(<!-- end of {mark} -->)", re.DOTALL)
        section = write_section(mark, device)
        page = pattern.sub(lambda marks, text=section: f"{marks[1]}\n\n{text}\n\n{marks[2]}", page)
    return page


def main() -> None:
    """Fill the page in place."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--device", default="cpu2", help="as in the names of the records")
    chosen = parser.parse_args()
    chosen.page.write_text(fill(chosen.page.read_text(), chosen.device))


if __name__ == "__main__":
    main()
