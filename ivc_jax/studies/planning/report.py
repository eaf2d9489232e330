"""Tables of a plan, from its record."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_SHOWN_COLLECTIVES = 6  # largest first; the rest is one line

NOTES = (
    "Bytes, operations and times are those of one device; a GB is 10^9 bytes.",
    "Peak: weights, inputs, results, temporaries and code, at the worse of prefill and decode.",
    "Time: the compiler's estimate of every instruction that it gives one for, as often as the"
    " instruction runs, and attention kernels at the chip's peak rate with whole score matrices."
    " Collectives are not in it. It is an estimate: nothing ran.",
    "Formula: operations of the decoder's blocks against those of the first method.",
)


def show(console: Console, results: Mapping[str, Any]) -> None:
    """Print the tables and what they mean."""
    rows = results["methods"]
    for row in rows:
        if row["problem"]:
            console.print(f"{row['method']}: does not fit: {row['problem']}", markup=False)
    console.print(_tabulate_memory(rows))
    compiled = [row for row in rows if "prefill" in row]
    if compiled:
        console.print(_tabulate_work(compiled))
    for row in compiled:
        for name in ("prefill", "decode"):
            console.print(_tabulate_collectives(row["method"], name, row[name]["collectives"]))
    for note in NOTES:
        console.print(note, markup=False)


def _make_table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        words = column in ("method", "kind", "of")  # numbers are flush right
        table.add_column(column, justify="left" if words else "right")
    return table


def _tabulate_memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _make_table(
        "memory of a device, GB",
        *("method", "fits", "peak", "usable", "weights", "cache", "temporaries, prefill"),
        *("temporaries, decode", "largest batch"),
    )
    for row in rows:
        largest = "" if row["largest_batch"] is None else str(row["largest_batch"])
        sizes = [""] * 6  # of a program that did not compile
        if "prefill" in row:
            temporaries = [row[name]["temporaries"] for name in ("prefill", "decode")]
            names = ("peak_bytes", "device_hbm_bytes", "weights_bytes", "cache_bytes")
            sizes = [_write_gb(size) for size in (*(row[name] for name in names), *temporaries)]
        table.add_row(row["method"], "yes" if row["fits"] else "no", *sizes, largest)
    return table


def _tabulate_work(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _make_table(
        "work of a device",
        *("method", "prefill TFLOP", "HBM GB", "ms", "vs first", "formula"),
        *("decode HBM GB/token", "ms/token", "seconds to compile"),
    )
    first = rows[0]
    for row in rows:
        prefill, decode = row["prefill"], row["decode"]
        time = prefill["estimated_ms"] / first["prefill"]["estimated_ms"]
        formula = row["decoder_formula_flops"] / first["decoder_formula_flops"]
        table.add_row(
            row["method"],
            f"{(prefill['flops'] + prefill['kernel_flops']) / 1e12:.1f}",
            _write_gb(prefill["hbm_bytes"]),
            f"{prefill['estimated_ms']:.1f}",
            f"{time:.3f}",
            f"{formula:.3f}",
            _write_gb(decode["hbm_bytes"]),
            f"{decode['estimated_ms']:.2f}",
            f"{prefill['compile_seconds'] + decode['compile_seconds']:.0f}",
        )
    return table


def _write_gb(count: float) -> str:
    return f"{count / 1e9:.2f}"


def _tabulate_collectives(method: str, name: str, found: Sequence[Mapping[str, Any]]) -> Table:
    round_of = "one token of the decode" if name == "decode" else "the prefill"
    columns = ("kind", "devices", "MB each", "times", "MB", "of")
    table = _make_table(f"{method}: collectives of {round_of}", *columns)
    for each in found[:_SHOWN_COLLECTIVES]:
        size = each["nbytes"] / 1e6  # MB of one, on one device
        devices = "" if each["devices"] is None else str(each["devices"])
        numbers = (f"{size:.3f}", str(each["count"]), f"{size * each['count']:.2f}")
        table.add_row(each["kind"], devices, *numbers, each["source"])
    rest = found[_SHOWN_COLLECTIVES:]
    if rest:
        total = sum(each["nbytes"] * each["count"] for each in rest) / 1e6
        table.add_row(f"{len(rest)} more", "", "", "", f"{total:.2f}", "")
    return table
