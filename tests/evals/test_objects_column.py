"""Benchmarks say where objects are: in a column, or by the box that is asked for."""

import json

import numpy as np
import pytest
from helpers.running import COLOUR, FakeAnswerer, run
from helpers.tsv import HEADER, IMAGE, encode, write_tsv
from PIL import Image

import ivc_jax
from ivc_jax.commands import run as command
from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.benchmarks.cells import CellError, read_objects
from ivc_jax.evals.benchmarks.released import Bounds
from ivc_jax.evals.running import records, runner
from ivc_jax.evals.running.checking import check_file
from ivc_jax.evals.running.recording import MethodEntry, RunIdentity
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.inputs.bucket import Buckets, choose_shape
from ivc_jax.inputs.layout import arrange

GROUNDING = tasks.TASKS["RefCOCO_val"]
SIZE = {"height": "40", "width": "48"}
PICTURE = encode(Image.new("RGB", (48, 40), "blue"))
BACKGROUND = "ivc_removal:layer=0,cos_fraction=0.3,sin_fraction=0.3,among=background"


@pytest.mark.parametrize(
    ("text", "count", "boxes"),
    [
        ("", 2, [[], []]),
        ("1 2 3.5 4", 1, [[(1, 2, 3.5, 4)]]),
        (" 1 2 3 4; 5 6 7 8 ;", 1, [[(1, 2, 3, 4), (5, 6, 7, 8)]]),
        ('["1 2 3 4;5 6 7 8", ""]', 2, [[(1, 2, 3, 4), (5, 6, 7, 8)], []]),
    ],
)
def test_cells_hold_the_boxes_of_each_picture(text, count, boxes):
    assert read_objects(text, count) == boxes


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("1 2 3", 1, "expected 'x1 y1 x2 y2;...', found '1 2 3'"),
        ("1 2 3 4;a b c d", 1, "found 'a b c d'"),
        ("1 2 3 4", 2, "objects has 1 texts for 2 pictures"),
    ],
)
def test_other_cells_are_named(text, count, message):
    with pytest.raises(CellError, match=message):
        read_objects(text, count)


def open_grounding(folder, task=GROUNDING, **cells):
    """Open a file of one row."""
    row = {"index": "0", "image": PICTURE, "question": "q", "answer": "8 8 16 16", **SIZE, **cells}
    path = write_tsv(folder / task.file_name, list(row), [list(row.values())])
    entry = TaskEntry.open(task, path)
    return TaskEntry(entry.task, entry.file, objects=True)


def test_a_reference_box_is_the_object_unless_a_column_says_more(tmp_path):
    entry = open_grounding(tmp_path)
    assert entry.knows_objects
    assert entry.find_objects(entry.read(0)) == [[(8, 8, 16, 16)]]
    entry = open_grounding(tmp_path, objects="0 0 4 4;8 8 16 16")
    assert entry.find_objects(entry.read(0)) == [[(0, 0, 4, 4), (8, 8, 16, 16)]]
    # of a file in a frame of its own, twice as wide as the picture
    resized = tasks.TASKS["RefCOCO_val_for_qwen25vl"]
    entry = open_grounding(tmp_path, resized, frame_width="96", frame_height="40")
    assert entry.find_objects(entry.read(0)) == [[(4, 8, 8, 16)]]
    assert TaskEntry(entry.task, entry.file).find_objects(entry.read(0)) is None


def open_colour(folder, header, *cells):
    path = write_tsv(folder / COLOUR.file_name, [*HEADER, *header],
                     [["0", IMAGE, "q0", "red", *cells]])  # fmt: skip
    return TaskEntry.open(COLOUR, path)


def test_words_as_answers_say_nothing_of_objects(tmp_path):
    assert not open_colour(tmp_path, []).knows_objects
    assert open_colour(tmp_path, ["objects"], "1 1 2 2").knows_objects


def test_methods_that_ask_run_where_objects_are_known(tmp_path):
    """Other methods run everywhere; nothing is counted that cannot run, and a resumed run ends."""
    unknown = open_colour(tmp_path, [])
    broken = tasks.TASKS["DigitScenes_counting"]
    path = write_tsv(tmp_path / broken.file_name, HEADER, [["0", "no picture", "q0", "3"]])
    failing = TaskEntry.open(broken, path)
    methods = [MethodEntry("dense", 1.0, "dense"), MethodEntry("asks", 1.0, "asks", True)]
    entries = [unknown, open_grounding(tmp_path), failing]
    plan = runner.RunPlan(entries, methods, 1, RunIdentity("m", 0, "c"))
    given = []

    class Listening(FakeAnswerer):
        family = "internvl"

        def process(self, messages, bounds, objects):
            given.append(objects)
            return super().process(messages, bounds, objects)

    _, seen = run(plan, tmp_path / "out", Listening(1))
    found = {(record.task, record.method) for record in records.read_all(tmp_path / "out")}
    assert found == {
        ("DigitScenes_colour", "dense"),
        ("DigitScenes_counting", "dense"),
        ("RefCOCO_val", "dense"),
        ("RefCOCO_val", "asks"),
    }
    assert seen[-1][1:] == (4, 4)
    assert sorted(given, key=str) == [None, [[(8, 8, 16, 16)]]]  # threads load them
    again, seen = run(plan, tmp_path / "out", Listening(1))
    assert (again.calls, seen[-1][1:]) == ([], (4, 4))


def options(folder, out, *names):
    return [
        *("--data-dir", str(folder), "--tasks", *names, "--methods", "dense", BACKGROUND),
        *("--batch-size", "2", "--no-compile-cache", "--out", str(out)),
    ]


def test_a_run_keeps_every_object(tiny_hf, tmp_path):
    cells = [["0", "8 8 16 16"], ["1", "0 0 1 1;40 30 48 40"], ["2", ""]]
    rows = [[name, PICTURE, "What colour?", "blue", boxes] for name, boxes in cells]
    write_tsv(tmp_path / COLOUR.file_name, [*HEADER, "objects"], rows)
    arguments = options(tmp_path, tmp_path / "out", "colour")
    assert command.main(["--model", str(tiny_hf()), *arguments]) == 0
    lines = (tmp_path / "out" / "records" / f"{COLOUR.name}.jsonl").read_text().splitlines()
    kept = {(r["example_id"], r["method"]): set(r["kept"]) for r in map(json.loads, lines)}
    # rows of six tokens of 8 x 8 pixels
    for name, objects in (("0", {7}), ("1", {0, 23, 29}), ("2", set())):
        assert objects <= kept[name, BACKGROUND] < kept[name, "dense"] == set(range(30))
    # the same picture: what goes is the IVC set, without its objects
    gone = [set(range(30)) - kept[name, BACKGROUND] for name in "012"]
    assert gone[0] == gone[2] - {7}
    assert gone[1] == gone[2] - {0, 23, 29}


def test_a_task_that_knows_no_objects_is_refused_in_a_line(tiny_hf, tmp_path, capsys):
    write_tsv(tmp_path / COLOUR.file_name, HEADER, [["0", PICTURE, "What colour?", "blue"]])
    arguments = options(tmp_path, tmp_path / "out", "colour")
    assert command.main(["--model", str(tiny_hf()), *arguments]) == 2
    error = capsys.readouterr().err
    assert f"{COLOUR.file_name} has no column 'objects', which {BACKGROUND} needs" in " ".join(
        error.split()
    )


def test_a_study_leaves_such_tasks_out(tiny_hf, tmp_path, capsys):
    """Its other rows are complete, and its tables are written."""
    write_tsv(tmp_path / COLOUR.file_name, HEADER, [["0", PICTURE, "What colour?", "blue"]])
    shown = ["0", PICTURE, "the square", "8 8 16 16", *SIZE.values()]
    name = "DigitScenes_grounding"
    write_tsv(tmp_path / f"{name}.tsv", [*HEADER, *SIZE], [shown])
    config = tmp_path / "study.py"
    config.write_text(
        "from ivc_jax.commands.settings import ablation\n"
        "from ivc_jax.studies.study import Study, Variant\n"
        f"A, B = {BACKGROUND!r}, 'ivc_removal:layer=0,cos_fraction=0.3,sin_fraction=0.3'\n"
        "VARIANTS = (Variant(A, 'background'), Variant(B, 'all'))\n"
        "STUDY = Study('s', 'Removal', 'Which?', 'dense', VARIANTS)\n"
        "CONFIG = ablation('s', (STUDY,), limit=2, num_scenes=1, skip_without_objects=True)\n"
    )
    out = tmp_path / "out"
    arguments = ["--data-dir", str(tmp_path), "--tasks", "grounding", "colour", "--out", str(out)]
    arguments += ["--batch-size", "1", "--no-compile-cache", "--model", str(tiny_hf())]
    assert command.main([str(config), *arguments]) == 0
    assert "left out: DigitScenes_colour.tsv has no column 'objects'" in " ".join(
        capsys.readouterr().out.split()
    )
    rows = json.loads((out / "study_s.json").read_text())["rows"]
    examples = {row["series"]: row["examples"] for row in rows}
    assert examples == {"background": 1, "all": 2}
    background, every = rows
    assert np.isnan(background["cells"]["semantic"]["score"])
    assert every["cells"]["semantic"]["score"] == 0
    assert "| background |" in (out / "report.md").read_text()


def test_answers_of_grounding_are_objects_of_a_model_too(tiny_hf, tmp_path):
    """The marks of the picture are those of the processor as the task bounds it."""
    from ivc_jax.evals.running.answerer import ModelAnswerer

    answerer = ModelAnswerer(*ivc_jax.load(tiny_hf()))
    entry = open_grounding(tmp_path)
    row = entry.read(0)
    messages = entry.write_messages(row, "qwen2_vl")
    sample = answerer.process(messages, None, entry.find_objects(row))
    assert np.flatnonzero(sample.objects[0]).tolist() == [7]
    half = Bounds(min_pixels=24 * 24, max_pixels=24 * 24)  # 2 x 3 tokens of about 17 x 19 pixels
    small = answerer.process(messages, half, entry.find_objects(row))
    assert small.objects[0].tolist() == [True] + 5 * [False]
    plain = answerer.process(messages)
    assert plain.objects == ()
    # beside other tasks, all batches have one form
    config = answerer.model.config
    for asked in (True, False):
        answerer = ModelAnswerer(answerer.model, answerer.processor, with_objects=asked)
        shape = choose_shape(arrange(plain, config), config, Buckets())
        objects = answerer.collate([plain], shape).objects
        assert objects.tolist() == [[False] * shape.visual] if asked else objects is None


def test_a_check_finds_wrong_cells(tmp_path):
    rows = [[str(n), IMAGE, "q", "red", cell] for n, cell in enumerate(("", "1 2 3 4", "1 2 x 4"))]
    path = write_tsv(tmp_path / COLOUR.file_name, [*HEADER, "objects"], rows)
    (fault,) = check_file(COLOUR, path).faults
    assert fault.startswith(f"{path.name} row 3 (index 2): objects: expected 'x1 y1 x2 y2;...'")
