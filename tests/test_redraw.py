"""One command draws the figures of the docs from their records, and changes nothing else."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ivc_jax.reports.section import Section

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


def change(name: str, edit: Callable) -> Callable:
    """Return what edits the content of a JSON file of a folder."""

    def write(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))

    return write


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("default_run", lambda f: (f / "comparison.json").unlink(),
         "default_run/comparison.json: No such file or directory"),
        ("default_run", lambda f: (f / "drawn.jsonl").unlink(),
         "default_run/drawn.jsonl: no such file"),
        ("default_run", lambda f: (f / "drawn.jsonl").write_text(""),
         "figures/ivc_map.png does not follow from results.json, comparison.json or drawn.jsonl"),
        ("default_run", lambda f: (f / "results.json").write_text('{"rows": ['),
         "default_run/results.json is no JSON"),
        ("default_run", change("results.json", lambda c: c["meta"].pop("seed")),
         "default_run/results.json: .*missing 1 required .*'seed'"),
        ("default_run", change("results.json", lambda c: c.pop("rows")),
         "default_run/results.json has no 'rows'"),
        ("default_run", change("results.json", lambda c: c["rows"][3]["metrics"].clear()),
         "default_run/results.json has no 'cached_share'"),
        ("default_run", change("comparison.json", lambda c: c[3].pop("score")),
         "default_run/comparison.json: .*missing 1 required .*'score'"),
        ("evidence/covipal", change("study_covipal_10.json", lambda c: c["rows"].clear()),
         "covipal/study_covipal_10.json has no rows"),
        ("evidence/covipal", change("study_covipal_10.json", lambda c: c["rows"][1].pop("cells")),
         "covipal/study_covipal_10.json has no 'cells'"),
        ("evidence/covipal", lambda f: (f / "study_covipal_10.json").rename(f / "study_x.json"),
         r"covipal/study_x.json: experiments/configs/covipal.py has no study 'x'"),
        ("evidence/covipal", lambda f: (f / "report.md").write_text("# A report\n"),
         "covipal/report.md does not show figures/covipal_10.png"),
        ("evidence/sets", change("sets.json", lambda c: c["presets"].update(none={})),
         "sets/sets.json: unknown preset 'none'"),
        ("evidence/lens", change("lens.json", lambda c: c["layers"].pop("norm")),
         "lens/lens.json has no 'norm'"),
        ("evidence/choose_layer", change("choice.json", lambda c: c["rows"][0].pop("cost")),
         "choose_layer/choice.json has no 'cost'"),
        ("evidence/choose_layer", change("choice.json", lambda c: c["choice"].update(spec="x")),
         "choose_layer/choice.json: the choice is 0 of its rows"),
        ("evidence/quota", lambda folder: None, "quota holds no record, which is one of results"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_drawn_is_named(
    command, tmp_path, monkeypatch, name, damage, message
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / Path(name).name
    shutil.copytree(ROOT / "docs" / name, folder)
    damage(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"/{message}"):
        command.main([str(folder)])
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_studies_without_a_configuration_are_named(command, tmp_path):
    shutil.copytree(ROOT / "docs" / "evidence" / "covipal", tmp_path / "unknown")
    with pytest.raises(ValueError, match=r"unknown: .* no configuration .*configs/unknown\.py"):
        command.main([str(tmp_path / "unknown")])


def test_a_report_without_the_section_is_named(command, tmp_path):
    (tmp_path / "report.md").write_text("# A report\n\n## Costs\n\nNone.\n")
    with pytest.raises(ValueError, match=r"report\.md has no section 'Scores'"):
        command._replace_sections(tmp_path / "report.md", [Section("Scores")])
    assert (tmp_path / "report.md").read_text() == "# A report\n\n## Costs\n\nNone.\n"


def test_every_folder_of_figures_has_a_record(command):
    folders = {path.parent for path in (ROOT / "docs").rglob("figures")}
    for folder in folders - {ROOT / "docs" / "evidence" / "cells"}:  # `experiments/coordinates.py`
        found = [pattern for pattern in command._KINDS if any(folder.glob(pattern))]
        assert found, f"{folder}: nothing to draw its figures from"
    for folder in (ROOT / "docs" / "default_run", ROOT / "docs" / "methods_run"):
        assert {"drawn.jsonl", "comparison.json"} < {path.name for path in folder.iterdir()}
