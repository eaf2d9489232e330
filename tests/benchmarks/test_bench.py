"""Every benchmark runs on tiny shapes and writes its record; `ivc-jax bench` prints the table."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

from experiments import performance
from ivc_jax.commands import bench
from ivc_jax.commands.main import main

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
HEADER = {"benchmark", "commit", "command", "date", "device", "cpu_count", "versions"}
SETTINGS = {"quick", "dtype", "size", "rows"}
ROW = {"case", "unit", "ours", "torch", "ratio", "limit", "of_limit", "samples"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a function that runs a script with options and returns its record."""

    def run(name, *options):
        script = str(FOLDER / f"{name}.py")
        given = [script, "--quick", "--out", str(tmp_path), "--scratch", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", given)
        runpy.run_path(script, run_name="__main__")
        (path,) = tmp_path.glob(f"{name}-*.json")
        return json.loads(path.read_text())

    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield run
    for name in set(sys.modules) - before:  # modules of that folder are no package's
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


CASES = {  # rows of each, and what stands in them beside the usual
    "prefill": (2, {"flops", "blocks", "visual_tokens"}),
    "decode": (2, {"cache_bytes", "weight_bytes", "read_rate"}),
    "tower": (3, {"flops", "patches", "pictures"}),
    "throughput": (5, {"flops", "questions", "tokens", "same_answers", "torch_batch"}),
    "memory": (1, {"weight_bytes", "resident"}),
    "loading": (2, {"over_reading", "bound_bytes", "within_bound"}),
    "selection_cost": (2, {"share_of_dense", "saved_seconds", "of_ideal"}),
    "scaling": (10, {"method", "cache_bytes"}),
}
COMPARED = ("prefill", "decode", "tower")
OPTIONS = {
    "selection_cost": ("--methods", "ivc", "scope"),
    "throughput": ("--alone",),  # five runs of the bundled model are enough
    # They start processes of their own, and torch in each takes its time.
    "memory": ("--alone",),
    "loading": ("--alone",),
}


@pytest.mark.parametrize("name", CASES)
def test_records(run, name):
    if name in COMPARED:
        pytest.importorskip("transformers")
    record = run(name, *OPTIONS.get(name, ()))
    assert record.keys() >= HEADER | SETTINGS
    assert record["benchmark"] == name
    assert record["command"].startswith(f"python benchmarks/{name}.py --quick")
    assert (record["quick"], record["dtype"]) == (True, "float32")
    count, keys = CASES[name]
    assert len(record["rows"]) == count
    for row in record["rows"]:
        assert row.keys() >= (ROW | keys if row["unit"] != "ms a token" else ROW)
        assert math.isfinite(row["ours"])
        if name in COMPARED:
            assert row["ratio"] == pytest.approx(row["torch"] / row["ours"], rel=2e-3)


def test_the_page_is_what_its_records_say():
    page = (ROOT / "docs" / "performance.md").read_text()
    for mark in performance.TABLES:
        assert f"<!-- {mark} -->" in page
    assert performance.fill(page, "cpu2") == page


def test_flops_of_a_prefill(run):
    record = run("prefill", "--alone")
    dense, pruned = record["rows"]
    assert (dense["torch"], dense["ratio"], dense["samples"]["torch"]) == (None, None, [])
    # 64 text and 64 visual tokens; width 64, 4 heads and 2 key heads of 16, feed-forward 160
    matrices = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 160
    each = {n: 2 * (n * matrices + n * n * 64) for n in (128, 96)}
    assert dense["flops"] == pytest.approx(2 * each[128], rel=1e-3)
    assert pruned["flops"] == pytest.approx(each[128] + each[96], rel=1e-3)
    assert pruned["ideal"] == pytest.approx(dense["flops"] / pruned["flops"], rel=1e-3)


def test_the_command_prints_the_table_and_does_without_torch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "prefill", "--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "torch and transformers are not installed" in shown
    assert "prefill: Is a prefill as fast as torch's" in shown
    (path,) = tmp_path.glob("prefill-*.json")
    for row in json.loads(path.read_text())["rows"]:
        assert f"{row['ours']:.4g} s" in shown
        assert row["torch"] is None


def test_an_unknown_benchmark_is_an_error(tmp_path, capsys):
    assert main(["bench", "prefil", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "unknown benchmark 'prefil'; known: prefill, decode" in error
    assert "did you mean 'prefill'?" in error
