"""The page of the walk on a fresh machine says what its record holds."""

import json
import resource
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "walk.md").read_text()
RECORD = json.loads((ROOT / "benchmarks" / "results" / "walk.json").read_text())


def test_every_step_has_the_numbers_of_the_record():
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    shown = [(row[1].strip("`"), *row[2:4], row[4].strip(" |")) for row in rows if len(row) == 5]
    steps = [
        (
            step["command"].removesuffix(" (again)"),
            *(str(step[key]) for key in ("seconds", "processor_seconds", "peak_mb")),
        )
        for step in RECORD["steps"]
    ]
    assert shown[1:] == steps  # behind the head


def test_the_page_names_commit_device_and_sizes():
    assert RECORD["commit"] in PAGE
    assert "two CPU cores" in PAGE
    assert f"environment {RECORD['environment_mb']}" in PAGE
    for name in ("jaxlib", "scipy", "tensorstore"):
        assert f"{name} {RECORD['packages_mb'][name]}" in PAGE


def test_steps_are_started_as_the_page_writes_them(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import walk

    assert [step["command"] for step in RECORD["steps"]] == list(walk._STEPS)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "a.whl").write_bytes(b"1" * 2_000_000)
    words = [walk.list_words(step, "python3.12", tmp_path) for step in walk._STEPS]
    assert words[0][:4] == ["python3.12", "-m", "pip", "wheel"]
    assert words[1] == ["python3.12", "-m", "venv", "env"]
    assert words[2] == ["env/bin/pip", "install", "dist/a.whl"]
    assert words[4] == words[5] == ["env/bin/ivc-jax", "run"]
    assert words[7][-1] == f"file://{tmp_path}/runs/default/report.html"
    assert walk.count_megabytes(tmp_path) == 2


def test_a_step_that_fails_is_named_with_what_it_said(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import walk

    with pytest.raises(SystemExit, match="ls nowhere failed"):
        walk.measure("ls nowhere", "python3", tmp_path, {"PATH": "/usr/bin:/bin"})
    with pytest.raises(SystemExit, match=r"(?s)no-such-program failed.*FileNotFoundError"):
        walk.measure("no-such-program", "python3", tmp_path, {"PATH": "/usr/bin:/bin"})


def test_a_step_is_measured_by_itself(tmp_path, monkeypatch, capsys):
    """Its peak is not that of the process that asks, which has imported JAX."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import walk

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 100 * 1024
    row = walk.measure("true", "python3", tmp_path, {"PATH": "/usr/bin:/bin"})
    assert list(row) == ["command", "seconds", "processor_seconds", "peak_mb"]
    assert row["command"] == "true"
    assert 1 <= row["peak_mb"] < 50
    assert json.loads(capsys.readouterr().out) == row
    (tmp_path / "large.py").write_text("import time; text = b'1' * 90_000_000; time.sleep(1)")
    row = walk.measure("python3 large.py", sys.executable, tmp_path, {"PATH": "/usr/bin:/bin"})
    assert row["peak_mb"] >= 90
    assert row["seconds"] >= 1
