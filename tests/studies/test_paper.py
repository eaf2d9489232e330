"""The paper's tables: which rows, columns and numbers, their marks, and a run from end to end."""

import dataclasses
import io
import json

import PIL.Image
import pytest
from helpers.records import make_meta, make_row
from helpers.tsv import encode, write_tsv
from rich.console import Console

from ivc_jax import methods
from ivc_jax.commands import main, settings, terminal
from ivc_jax.commands import paper as command
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.reports.results import Results
from ivc_jax.studies.paper import report, tables
from ivc_jax.studies.paper.published import PUBLISHED, ROWS, TABLES, Number, find

LARGE, SMALL, OLD = (
    parse_config(list_sizes()[name]) for name in ("qwen2.5-vl-7b", "qwen2.5-vl-3b", "qwen2-vl-7b")
)
IVC = "ivc:keep_ratio=0.5"
FASTV = "fastv:keep_ratio=0.5"


def row(task, method, score, dense, n, cached=0.5):
    metrics = {"cached_share": cached}
    return make_row(task, method, score, n=n, metrics=metrics, retention=score / dense)


def results(limit=None, model="Qwen2.5-VL-7B"):
    rows = [
        row("RefCOCO_testA", "dense", 0.9, 0.9, 5657, 1.0),
        row("RefCOCO_testA", IVC, 0.72, 0.9, 5657),
        row("RefCOCOg_val_for_qwen25vl", "dense", 0.8, 0.8, 100, 1.0),
        row("RefCOCOg_val_for_qwen25vl", IVC, 0.8, 0.8, 100),
        row("MME", "dense", 0.75, 0.75, 2374, 1.0),
        row("MME", IVC, 0.5, 0.75, 2374),
        row("MMBench_DEV_EN_V11", "dense", 0.8, 0.8, 900, 1.0),
        row("average", "dense", 0.8, 0.8, 900, 1.0),
    ]
    shown = {"model": model, "tables": ["grounding", "vqa"], "rows": {IVC: "IVC-Prune"}}
    shown["rows"]["dense"] = "vanilla"
    shown["resolved"] = {"dense": "dense", IVC: "ivc:layer=16,keep_ratio=0.5"}
    meta = make_meta(
        paper=shown, methods=["dense", IVC], limit=limit, command="run.py paper",
        device="1 x cpu", dtype="float32",
    )  # fmt: skip
    return Results(meta, rows)


def lines_of(table):
    """The cells of each line by heading."""
    names = report.list_headings(table)
    return {
        label: dict(zip(names, cells, strict=True)) for label, cells in report.write_lines(table)
    }


def test_published_numbers_are_for_one_model():
    assert find(PUBLISHED, LARGE).model == "Qwen2.5-VL-7B"
    assert find(PUBLISHED, SMALL) is None
    assert find(PUBLISHED, OLD) is None  # equal sizes, another family
    sets = {set_ for columns in TABLES.values() for set_ in columns}
    for published in PUBLISHED:
        assert set(published.numbers) <= set(ROWS)
        for numbers in published.numbers.values():
            assert set(numbers) <= sets | {"kept", "grounding", "general VQA"}


def test_rows_of_the_paper_are_known_by_what_they_do():
    specs = ["dense", "ivc:layer=16", "ivc:layer=17", "ivc:keep_ratio=0.25", FASTV]
    entries = {spec: methods.parse(spec) for spec in specs}
    entries["ivc:coordinates=lattice"] = methods.parse("ivc:coordinates=lattice")
    entries["ivc_removal:seed=3"] = methods.parse("ivc_removal:seed=3")  # it draws no lots
    shown = command.describe(LARGE, entries, ["vqa"])
    assert shown["model"] == "Qwen2.5-VL-7B"
    assert shown["tables"] == ["vqa"]
    assert shown["rows"] == {
        **{"dense": "vanilla", "ivc_removal:seed=3": "vanilla without IVC"},
        **{FASTV: "FastV", "ivc:layer=16": "IVC-Prune"},
    }
    assert shown["resolved"]["ivc:keep_ratio=0.25"] == "ivc:layer=16,keep_ratio=0.25"
    lattice = "ivc:layer=16,keep_ratio=0.5,coordinates=lattice"
    assert shown["resolved"]["ivc:coordinates=lattice"] == lattice
    # the 3B model has another layer, and no published numbers
    shown = command.describe(SMALL, {"ivc:layer=22": methods.parse("ivc:layer=22")}, ["vqa"])
    assert (shown["model"], shown["rows"]) == (None, {"ivc:layer=22": "IVC-Prune"})


@pytest.mark.parametrize("model", [LARGE, SMALL, OLD])
def test_every_row_runs_on_the_real_models(model):
    entries = {spec: methods.parse(spec) for spec in settings.load_config("paper").methods}
    assert list(command.describe(model, entries, [])["rows"].values()) == list(ROWS)


def test_cells_hold_ours_and_the_published_number():
    grounding, vqa = tables.build(results())
    shown = lines_of(grounding)
    assert shown["vanilla"]["RefCOCO testA"] == "90.0 (92.2)"
    assert shown["IVC-Prune"]["RefCOCO testA"] == "72.0 (92.0)"
    assert shown["IVC-Prune"]["tokens kept, %"] == "50.0 (50)"
    assert shown["vanilla"]["RefCOCO+ testA"] == "- (88.0)"
    assert shown["vanilla"]["RefCOCO val"] == "-"
    # MME in its own points; a set that a method has no rows of leaves it without an average
    shown = lines_of(vqa)
    assert (shown["vanilla"]["MME"], shown["IVC-Prune"]["MME"]) == ("2100", "1400")
    assert shown["IVC-Prune"]["MMB"] == "-"
    assert shown["IVC-Prune"]["Avg. %"] == "- (100.6)"
    assert shown["vanilla"]["Avg. %"] == "100.0*"


def test_average_is_over_the_sets_that_ran():
    (grounding, _) = tables.build(results())
    (line,) = [line for line in grounding.lines if line.method == IVC]
    assert line.average.ours == pytest.approx(100 * (0.72 / 0.9 + 1) / 2)
    assert line.average.partial
    assert line.average.paper.value == 99.6
    assert report.write_title(grounding) == "grounding: 2 of 8 sets"


def test_numbers_on_part_of_a_set_are_marked():
    grounding, vqa = tables.build(results())
    assert grounding.partial == {"RefCOCOg_val": (100, 4896)}  # from a file in the resized frame
    assert lines_of(grounding)["vanilla"]["RefCOCOg val"] == "80.0*"
    assert vqa.partial == {}  # a set without a usual number of rows is taken for complete
    _, limited = tables.build(results(limit=900))
    assert limited.partial == {"MMBench_DEV_EN_V11": (900, None)}
    (note,) = [note for note in report.write_notes(limited, results(limit=900).meta) if "*" in note]
    assert "--limit 900" in note
    assert "MMB 900 rows; did not run: SEED" in note


def test_no_numbers_without_the_model():
    for table in tables.build(results(model=None)):
        assert all("(" not in cell for _, cells in report.write_lines(table) for cell in cells)
        assert "not for this checkpoint" in report.write_notes(table, results(model=None).meta)[0]


def test_second_hand_numbers_are_marked():
    cell = tables.Cell(91.84, partial=True, paper=Number(74.6, "ablations", second_hand=True))
    assert report.write_cell(cell) == "91.8* (74.6†)"
    assert report.write_cell(dataclasses.replace(cell, partial=False), digits=0) == "92 (75†)"


def test_files_and_terminal_agree():
    (section,) = report.make_sections(results())
    content = json.loads(section.files["paper.json"])
    cell = content["tables"][0]["lines"][1]["cells"][1]
    assert cell["ours"] == pytest.approx(72)
    assert cell["paper"] == {"value": 92.0, "source": "efficiency", "second_hand": False}
    text = section.files["paper.md"]
    stream = io.StringIO()
    terminal.print_results(Console(file=stream, width=200), None, [section])
    for shown in (text, stream.getvalue()):
        assert "72.0 (92.0)" in shown
        assert "Qwen2.5-VL-7B" in shown
    assert "- IVC-Prune: `ivc:layer=16,keep_ratio=0.5`\n" in text
    assert "## grounding: 2 of 8 sets\n" in text


def test_other_runs_have_no_section():
    assert report.make_sections(Results(make_meta(), [])) == []


def write_set(folder, name, header, rows):
    image = encode(PIL.Image.new("RGB", (32, 32), (200, 30, 30)))
    lines = [[str(number), image, *cells] for number, cells in enumerate(rows)]
    write_tsv(folder / f"{name}.tsv", ["index", "image", *header], lines)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tsvs")
    boxes = ["question", "height", "width", "answer"]
    write_set(folder, "RefCOCO_testA_for_qwen25vl", boxes, [["cat", "32", "32", "1 2 9 9"]] * 3)
    asked = ["question", "answer", "category", "image_path"]
    pairs = [["Red?", "Yes", "color", "a.png"], ["Blue?", "No", "color", "a.png"]]
    write_set(folder, "MME", asked, pairs)
    return folder


def test_a_run_writes_the_tables_and_the_report(tiny_hf, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ivc_jax.reports.figures.draw", lambda results: [])
    options = "--methods dense --limit 2 --batch-size 2 --max-new-tokens 1 --buckets 1"
    places = ["--model", str(tiny_hf(family="qwen2_5_vl")), "--data-dir", str(data)]
    places += ["--out", str(tmp_path), "--no-compile-cache"]
    assert main.main(["paper", *options.split(), *places]) == 0
    content = json.loads((tmp_path / "paper.json").read_text())
    assert content["meta"]["paper"]["rows"] == {"dense": "vanilla"}
    ran = [table["tasks"] for table in content["tables"]]
    assert ran == [{"RefCOCO_testA": "RefCOCO_testA_for_qwen25vl"}, {"MME": "MME"}]
    assert content["tables"][0]["partial"] == {"RefCOCO_testA": [2, 5657]}
    assert content["meta"]["protocol"] == "released"
    assert content["meta"]["pixel_bounds"]["MME"] == [4 * 28 * 28, 16384 * 28 * 28]
    assert "grounding: 1 of 8 sets" in capsys.readouterr().out
    page = (tmp_path / "report.md").read_text()
    assert "MME (of 2800)" in page
    assert "### MME: points by category" in page
    assert "## The paper's tables\n\n### grounding: 1 of 8 sets" in page
    before = (tmp_path / "paper.md").read_text()
    assert "treated as in the released evaluation" in before
    assert "A resized picture has 3,136 to 12,845,056 pixels." in before
    assert "grounding: 1 of 8 sets" in before
    # once more, from the records
    (tmp_path / "paper.md").unlink()
    assert main.main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "paper.md").read_text() == before


def test_only_qwen2_5_takes_files_in_its_frame(data, tiny_hf):
    chosen = dataclasses.replace(settings.load_config("paper"), data_dir=str(data))
    newer = dataclasses.replace(chosen, model=str(tiny_hf(family="qwen2_5_vl")))
    older = dataclasses.replace(chosen, model=str(tiny_hf()))
    both = ("grounding", "vqa")
    assert command.find_sets(newer, both) == ("RefCOCO_testA_for_qwen25vl", "MME")
    assert command.find_sets(older, both) == ("MME",)
    with pytest.raises(settings.SettingsError, match=r"holds none of RefCOCO_val\.tsv"):
        command.find_sets(older, ["grounding"])


def test_folders_come_before_the_model(data, tmp_path, monkeypatch):
    """Only a file in the resized frame, where it stands alone, asks what the model is."""
    monkeypatch.setattr("ivc_jax.model.find_folder", lambda path: pytest.fail("asked for a model"))
    chosen = dataclasses.replace(settings.load_config("paper"), data_dir=str(data))
    assert command.find_sets(chosen, ["vqa"]) == ("MME",)
    with pytest.raises(settings.SettingsError, match="holds none of"):
        command.find_sets(dataclasses.replace(chosen, data_dir=str(tmp_path)), ["grounding"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{model}"], "need --data-dir with any of RefCOCO_val.tsv"),
        (["--model", "{model}", "--data-dir", "{data}", "--tables"], "tables is empty"),
        (["--model", "{data}", "--data-dir", "{data}"], "config.json"),
        (["--methods", "prune", "--model", "{model}", "--data-dir", "{data}"], "unknown method"),
    ],
)
def test_errors_are_one_line(tiny_hf, data, tmp_path, capsys, options, message):
    places = {"model": tiny_hf(family="qwen2_5_vl"), "data": data}
    given = [option.format(**places) for option in options]
    assert command.main([*given, "--no-compile-cache", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
