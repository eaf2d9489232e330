"""One command draws the figures of the docs from their records, and changes nothing else."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def command():
    path = ROOT / "experiments" / "figures.py"
    spec = importlib.util.spec_from_file_location("redraw_figures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["default_run", "evidence/covipal", "evidence/lens", "evidence/choose_layer"]
)
def test_records_are_enough(command, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)  # where pictures of the benchmark are drawn
    source, folder = ROOT / "docs" / name, tmp_path / Path(name).name
    shutil.copytree(source, folder)
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    for path in (folder / "figures").iterdir():
        path.write_bytes(b"")
    assert command.main([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert sorted(path.name for path in (folder / "figures").iterdir()) == figures
    for path in (folder / "figures").iterdir():
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert (folder / "report.md").read_text() == (source / "report.md").read_text()


def test_every_folder_of_figures_has_a_record(command):
    folders = {path.parent for path in (ROOT / "docs").rglob("figures")}
    for folder in folders - {ROOT / "docs" / "evidence" / "cells"}:  # `experiments/coordinates.py`
        found = [pattern for pattern in command._KINDS if any(folder.glob(pattern))]
        assert found, f"{folder}: nothing to draw its figures from"
    for folder in (ROOT / "docs" / "default_run", ROOT / "docs" / "methods_run"):
        assert {"drawn.jsonl", "comparison.json"} < {path.name for path in folder.iterdir()}
