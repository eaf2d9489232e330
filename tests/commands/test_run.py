"""The experiments entry point, end to end on a tiny random model, and its errors."""

import csv
import json
import pathlib
import subprocess
import sys

import pytest
from helpers.tsv import HEADER, IMAGE, write_tsv

import ivc_jax
from ivc_jax.commands import report, run, session, settings
from ivc_jax.reports import labels

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROW_KEYS = [
    "task", "method", "keep_ratio", "n", "score", "metrics", "retention", "visual_tokens",
    "kept_tokens", "kv_bytes", "prefill_ms", "decode_ms_per_token",
]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tiny_hf, tmp_path_factory):
    """A small run that shares one folder within this module."""
    out = tmp_path_factory.mktemp("run") / "out"
    options = ["--model", tiny_hf(), "--methods", "dense", "ivc", "--tasks", "grounding", "colour"]
    options += ["--limit", "3", "--batch-size", "2", "--no-compile-cache", "--out", out]
    return [str(option) for option in options]


def out_of(arguments) -> pathlib.Path:
    return pathlib.Path(arguments[-1])


@pytest.fixture(scope="module")
def finished(arguments):
    """The folder of that run."""
    assert run.main(arguments) == 0
    return out_of(arguments)


def test_results_hold_the_agreed_keys(finished):
    results = json.loads((finished / "results.json").read_text())
    assert all(list(row) == ROW_KEYS for row in results["rows"])
    names = [(row["task"], row["method"]) for row in results["rows"]]
    tasks = ("DigitScenes_grounding", "DigitScenes_colour", "average")
    assert names == [(task, m) for task in tasks for m in ("dense", "ivc:keep_ratio=0.5")]
    meta = results["meta"]
    assert meta["failed_rows"] == 0
    assert meta["seed"] == 0
    assert meta["dtype"] == "float32"
    assert "--limit 3" in meta["command"]


def test_what_is_drawn_has_the_seed_of_the_run():
    drawn = ("random", "random+ivc:coordinates=random", "ivc:coordinates=random,random_seed=5")
    chosen = settings.RunConfig((*drawn, "ivc"), ("grounding",), seed=3)
    assert [ivc_jax.methods.describe(method) for method in session.parse_methods(chosen)] == [
        "random:keep_ratio=0.5,seed=3",
        "random+ivc:keep_ratio=0.5,seed=3,coordinates=random,random_seed=3",
        "ivc:keep_ratio=0.5,coordinates=random,random_seed=5",
        "ivc:keep_ratio=0.5",
    ]


def test_costs_are_measured_on_compacted_caches(finished):
    results = json.loads((finished / "results.json").read_text())
    dense, pruned = results["rows"][:2]
    assert (dense["n"], dense["visual_tokens"], dense["kept_tokens"]) == (3, 64, 64)
    assert (pruned["visual_tokens"], pruned["kept_tokens"]) == (64, 32)
    # 3 layers, keys and values, 2 heads of 16, 4 bytes: 768 bytes a token, 32 tokens gone
    assert dense["kv_bytes"] - pruned["kv_bytes"] == 32 * 768
    assert dense["prefill_ms"] > 0
    assert dense["decode_ms_per_token"] > 0


def test_records_reports_and_figures_are_written(finished):
    lines = (finished / "records" / "DigitScenes_colour.jsonl").read_text().splitlines()
    assert len(lines) == 6
    record = json.loads(lines[-1])
    assert len(record["kept"]) == 32
    assert record["grids"] == [[1, 8, 8]]
    report = (finished / "report.md").read_text()
    assert "| ivc | 0.500 |" in report
    for name in ("accuracy", "kept_grounding", "kept_colour", "ivc_map"):
        assert (finished / "figures" / f"{name}.png").stat().st_size > 5000
        assert f"figures/{name}.png" in report
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "figures/" not in page


def test_a_finished_run_is_not_repeated(finished, arguments, capsys):
    before = (finished / "records" / "DigitScenes_colour.jsonl").read_bytes()
    assert run.main(arguments) == 0
    assert (finished / "records" / "DigitScenes_colour.jsonl").read_bytes() == before


def test_tables_are_files_too_where_asked(finished, arguments, capsys):
    assert not (finished / "tables").exists()
    assert run.main([*arguments, "--tables", "csv"]) == 0
    with (finished / "tables" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    results = json.loads((finished / "results.json").read_text())
    score, low = (results["rows"][3]["score"], results["rows"][3]["metrics"]["low"])
    (own,) = [row for row in rows if row["method"] == "ivc"]
    assert (own["colour"], own["colour low"]) == (f"{100 * score:.1f}", f"{100 * low:.0f}")
    assert not list((finished / "tables").glob("*.tex"))
    assert report.main([str(finished), "--tables", "latex"]) == 0
    assert "\\toprule" in (finished / "tables" / "scores.tex").read_text()
    assert "tables: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run.main([*arguments, "--tables", "xlsx"])
    assert "invalid choice 'xlsx'" in " ".join(capsys.readouterr().err.split())


def test_another_model_in_the_same_folder_is_refused_before_it_is_loaded(
    finished, arguments, tiny_hf, capsys, monkeypatch
):
    monkeypatch.setattr(ivc_jax, "load", None, raising=False)
    other, model = str(tiny_hf(num_hidden_layers=2)), arguments[1]
    assert run.main([*arguments, "--model", other]) == 2
    error = capsys.readouterr().err
    assert f"model was {model}, now {other}" in error
    assert error.count("\n") == 1


def test_a_run_without_a_scored_row_reports_why(tiny_hf, tmp_path, capsys):
    header = [*HEADER, "height", "width"]
    rows = [["1", IMAGE, "q", "0 0 3 3", "6", "4"], ["2", IMAGE, "q", "3 3 0 0", "4", "6"]]
    write_tsv(tmp_path / "DigitScenes_grounding.tsv", header, rows)
    options = ["--model", str(tiny_hf()), "--data-dir", str(tmp_path), "--tasks", "grounding"]
    options += ["--methods", "dense", "ivc"]
    assert run.main([*options, "--no-compile-cache", "--out", str(tmp_path / "out")]) == 0
    why = "no row was scored: 2 of 2 rows failed, the first one as DigitScenes_grounding.tsv row 1"
    assert why in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        report = (tmp_path / "out" / name).read_text()
        assert why in report
        assert "row 2 (index 2): the reference box 3 3 0 0 has no area" in report
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"] == []
    assert results["meta"]["failed_rows"] == 2


def test_other_settings_are_refused_in_the_same_folder(finished, arguments, capsys):
    assert run.main([*arguments, "--seed", "1"]) == 2
    error = capsys.readouterr().err
    assert "seed was 0, now 1" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nosuch"], "unknown config 'nosuch'; known: covipal, default"),
        (["roope"], "did you mean 'rope'?"),
        (["--methods", "average"], "unknown method 'average'; known methods: dense"),
        (["--methods", "ivc:keep_ratio=2"], "keep_ratio must be in (0, 1]"),
        (["--tasks", "counting", "colours"], "did you mean 'colour'?"),
        (["--tasks", "sorting"], "unknown task 'sorting'; known: DigitScenes_grounding"),
        (["--tasks", "RefCOCO_val"], "RefCOCO_val needs --data-dir with the file RefCOCO_val.tsv"),
        (["--tasks", "MME", "--data-dir", "tests"], "which tests lacks; it comes from VLMEvalKit"),
        (["--mesh", "data=2;model"], "mesh 'data=2;model' must look like data=4,model=2"),
        (["--mesh", "data=64"], "needs 64 devices; this run has"),
        (["--max-new-tokens", "many"], "max_new_tokens 'many' must be N or TASK=N"),
        (["--max-new-tokens", "MME=3"], "the run has no task MME"),
        (["--weights", "int3"], "int3"),
        (["--coordinator", "localhost:1"], "give all of --coordinator"),
        (["--data-dir", "missing-folder"], "missing-folder is not a folder"),
        (["--limit", "0"], "limit must be at least 1"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, options, message):
    assert run.main([*options, "--no-compile-cache", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_unwritable_folder_is_refused_first(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main(["--no-compile-cache", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_a_missing_column_names_file_and_column(tmp_path, capsys):
    (tmp_path / "DigitScenes_colour.tsv").write_text("index\timage\tquestion\n")
    options = ["--tasks", "colour", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run.main([*options, "--no-compile-cache"]) == 2
    assert "DigitScenes_colour.tsv lacks the column 'answer'" in capsys.readouterr().err


def test_the_script_exits_with_two_and_no_traceback():
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), "--tasks", "sorting"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "unknown task" in finished.stderr


def test_every_config_loads():
    for name in settings.list_configs():
        assert settings.load_config(name).methods[0] == "dense"


def test_labels_drop_what_methods_share():
    specs = ["dense", "ivc:keep_ratio=0.5", "ivc:keep_ratio=0.25", "fastv:layer=3,keep_ratio=0.5"]
    assert list(labels.label_methods(specs).values()) == ["dense", "ivc", "ivc", "fastv"]
    specs += ["fastv:layer=2,keep_ratio=0.5"]
    assert labels.label_methods(specs)[specs[-1]] == "fastv:layer=2"
