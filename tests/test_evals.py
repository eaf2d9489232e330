"""Parsers and metrics against numbers worked out by hand, the TSV reader, records and resuming."""

import base64
import dataclasses
import io
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import PIL.Image
import pytest

from ivc_jax.evals import metrics, parsers, records, runner, summary, tasks, tsv
from ivc_jax.evals.records import RecordsError, RunFolder


def png(colour=(255, 0, 0), size=(6, 4)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def cell(content: bytes) -> str:
    return base64.b64encode(content).decode()


IMAGE = cell(png())


def write_tsv(path, header, rows):
    lines = ["\t".join(header), *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


# --- parsers ------------------------------------------------------------------------------------


def test_qwen2_box_is_read_in_thousandths():
    assert parsers.qwen2_box("it is (100,200),(300,400).") == (0.1, 0.2, 0.3, 0.4)
    assert parsers.qwen2_box("(1, 2) , (3, 4)") == (0.001, 0.002, 0.003, 0.004)
    assert parsers.qwen2_box("(1,2),(3,4) (9,9),(9,9)") == (0.001, 0.002, 0.003, 0.004)


@pytest.mark.parametrize("text", ["", "no box", "(1,2)", "(1,2),(3)", "[1,2,3,4]", "(a,b),(c,d)"])
def test_text_without_a_qwen2_box_is_no_box(text):
    assert parsers.qwen2_box(text) == parsers.NO_BOX


def test_bracketed_box_is_scaled_by_its_sum():
    assert parsers.bracketed_box("<box>[[100, 200, 300, 400]]</box>") == (0.1, 0.2, 0.3, 0.4)
    assert parsers.bracketed_box("[0.1,0.2,0.3,0.4]") == (0.1, 0.2, 0.3, 0.4)
    assert parsers.bracketed_box("[1, 1, 1, 1]") == (0.001, 0.001, 0.001, 0.001)  # sums to 4
    assert parsers.bracketed_box("[1, 1, 1, 0.5]") == (1.0, 1.0, 1.0, 0.5)
    assert parsers.bracketed_box("[1, 2, 3]") == parsers.NO_BOX


def test_fractions_become_pixels_and_pixels_stay():
    assert parsers.box_in_pixels((0.1, 0.2, 0.5, 1.1), 200, 100) == pytest.approx(
        (20, 20, 100, 110)
    )
    assert parsers.box_in_pixels((0.1, 0.2, 0.5, 1.2), 200, 100) == (0.1, 0.2, 0.5, 1.2)


def test_target_box_takes_four_numbers():
    assert parsers.target_box("1 2.5 3 4 9 9 9 9") == (1, 2.5, 3, 4)
    with pytest.raises(ValueError, match="expected 'x1 y1 x2 y2'"):
        parsers.target_box("1 2 3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "Yes"),
        ("no.", "No"),
        ("Yes, there is.", "Yes"),
        ("There is NO digit", "No"),
        ("yes/no", "Unknown"),
        ("Yes and no", "Unknown"),
        ("nothing", "Unknown"),
        ("yesterday", "Unknown"),
        ("", "Unknown"),
    ],
)
def test_yes_or_no(text, expected):
    assert parsers.yes_or_no(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-b", "a b"),  # touches no blank: becomes one
        ("a -b c-d", "a b cd"),  # touches a blank somewhere: deleted everywhere
        ("1,000-2", "10002"),  # a comma between digits: all marks are deleted
        ("3.5 end.", "3.5 end"),
        ("what?yes", "what yes"),
    ],
)
def test_punctuation_rule(text, expected):
    assert parsers.without_punctuation(text) == expected


def test_plain_answer_ignores_case_blanks_and_one_period():
    assert parsers.plain_answer("  Red. \n") == "red"
    assert parsers.plain_answer("7") == "7"
    assert parsers.plain_answer("red..") == "red."
    assert parsers.plain_answer("red!") != "red"


# --- metrics ------------------------------------------------------------------------------------


def test_box_iou_by_hand():
    assert metrics.box_iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    # overlap 5 x 10, union 10 x 10 + 10 x 10 - 50
    assert metrics.box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert metrics.box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0  # a shared edge is no overlap
    assert metrics.box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert metrics.box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0  # no division by zero
    # fractional coordinates, no +1: 0.5 x 1 over 1.5 x 1
    assert metrics.box_iou((0, 0, 1, 1), (0.5, 0, 1.5, 1)) == pytest.approx(1 / 3)


def test_yes_no_metrics_by_hand():
    targets = ["Yes", "Yes", "Yes", "No", "No"]
    answers = ["Yes", "No", "Unknown", "Yes", "Unknown"]
    values = metrics.yes_no_metrics(targets, answers)
    # tp 1, claimed 2, positives 3; the Unknown to a No counts as No in precision, not in accuracy
    assert values["accuracy"] == pytest.approx(1 / 5)
    assert values["precision"] == pytest.approx(1 / 2)
    assert values["recall"] == pytest.approx(1 / 3)
    assert values["f1"] == pytest.approx(0.4)
    assert values["unknown_share"] == pytest.approx(2 / 5)


def test_yes_no_metrics_without_any_yes():
    values = metrics.yes_no_metrics(["No"], ["No"])
    assert (values["accuracy"], values["precision"], values["f1"]) == (1, 0, 0)
    assert metrics.yes_no_metrics([], [])["accuracy"] == 0


def test_bootstrap_interval_holds_the_mean():
    low, high = metrics.bootstrap_interval([0.0, 1.0] * 50)
    assert 0.35 < low < 0.5 < high < 0.65
    assert metrics.bootstrap_interval([1.0] * 5) == (1, 1)
    assert metrics.bootstrap_interval([]) == (0, 0)


# --- tasks --------------------------------------------------------------------------------------


def test_grounding_scores_at_half_overlap():
    scoring = tasks.TASKS["DigitScenes_grounding"].scoring
    cells = {"answer": "0 0 100 100", "width": "200", "height": "100"}
    # 0.25 x 200 = 50 pixels of 100: exactly half
    half = scoring.parse("(0,0),(250,1000)", cells, "qwen2_vl")
    assert half == [0, 0, 50, 100]
    assert scoring.score(half, cells) == 1
    assert scoring.score(scoring.parse("(0,0),(245,1000)", cells, "qwen2_vl"), cells) == 0
    assert scoring.score(scoring.parse("none", cells, "qwen2_vl"), cells) == 0


def test_refcoco_prompt_follows_the_qwen2_template():
    task = tasks.TASKS["RefCOCO+_testA"]
    cells = {"question": "The Man in red."}
    expected = "\n<|object_ref_start|>Detect the man in red<|object_ref_end|>"
    assert task.prompt(cells, "qwen2_vl") == expected
    assert task.prompt({"question": "the man in red"}, "qwen2_vl") == expected
    with pytest.raises(tasks.TaskError, match="llava"):
        task.prompt(cells, "llava")


def test_find_knows_short_names_and_lists_known_ones():
    assert [task.name for task in tasks.find(["Colour", "refcoco_testa", "colour"])] == [
        "DigitScenes_colour",
        "RefCOCO_testA",
    ]
    with pytest.raises(
        tasks.TaskError, match=r"unknown task 'color'; known: DigitScenes_grounding"
    ):
        tasks.find(["color"])


# --- TSV ----------------------------------------------------------------------------------------

HEADER = ["index", "image", "question", "answer"]


def test_rows_references_and_lists(tmp_path):
    blue = cell(png((0, 0, 255)))
    rows = [
        ["10", IMAGE, "What?", "red"],
        ["11", "10", "Again?", "red"],
        ["12", "13", "Ahead?", "blue"],
        ["13", blue, '"Two\nlines, a ""quote"" and\ta tab?"', "blue"],
        ["14", f"['{IMAGE}', '{blue}']", "Both?", "no"],
    ]
    file = tsv.TsvFile(write_tsv(tmp_path / "a.tsv", HEADER, rows), HEADER[2:])
    assert file.ids(2) == ["10", "11"]
    assert file.read(2).images[0].getpixel((0, 0)) == (0, 0, 255)
    assert file.read(1).images[0].getpixel((0, 0)) == (255, 0, 0)
    assert file.read(3).cells["question"] == 'Two\nlines, a "quote" and\ta tab?'
    assert [image.getpixel((0, 0)) for image in file.read(4).images] == [(255, 0, 0), (0, 0, 255)]
    assert file.ids() == ["10", "11", "12", "13", "14"]
    with pytest.raises(IndexError):
        file.read(5)


def test_image_path_column_windows_lines_and_byte_order_mark(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xef\xbb\xbfindex\timage_path\tquestion\r\n1\ta.png\tWhat?\r\n\r\n")
    file = tsv.TsvFile(path, ["question"])
    assert file.ids() == ["1"]
    row = file.read(0)
    assert row.cells["question"] == "What?"
    assert row.images[0].size == (6, 4)


def test_doubled_and_missing_indices_get_unique_ids(tmp_path):
    rows = [["1", IMAGE, "a", "b"], ["1", IMAGE, "a", "b"], ["", IMAGE, "a", "b"]]
    file = tsv.TsvFile(write_tsv(tmp_path / "a.tsv", HEADER, rows))
    assert file.ids() == ["1", "1#2", "row3"]


def test_missing_column_names_file_and_column(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", HEADER, [])
    with pytest.raises(tsv.TsvError, match=r"a\.tsv lacks the columns 'height', 'width'; it has"):
        tsv.TsvFile(path, ["question", "height", "width"])
    path = write_tsv(tmp_path / "b.tsv", ["index", "question"], [])
    with pytest.raises(tsv.TsvError, match=r"b\.tsv lacks the column 'image'"):
        tsv.TsvFile(path)
    (tmp_path / "c.tsv").write_text("")
    with pytest.raises(tsv.TsvError, match="is empty"):
        tsv.TsvFile(tmp_path / "c.tsv")
    with pytest.raises(tsv.TsvError, match="cannot open"):
        tsv.TsvFile(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["7", "x" * 99, "q", "a"], "base64"),
        (["7", cell(b"no image at all" * 9), "q", "a"], "cannot be read"),
        (["7", cell(png((1, 2, 3), (99, 99))[:90]), "q", "a"], "cannot be read"),
        (["7", "", "q", "a"], "the image cell is empty"),
        (["7", "99", "q", "a"], "names the row '99', which does not exist"),
        (["7", "7", "q", "a"], "references"),
        (["7", f"['{IMAGE}'", "q", "a"], "not a valid list"),
        (["7", IMAGE, " ", "a"], "the question cell is empty"),
        (["7", IMAGE, "q", ""], "the answer cell is empty"),
        (["7", IMAGE, "q"], "3 cells where the header has 4"),
    ],
)
def test_broken_rows_name_their_number(tmp_path, row, message):
    path = write_tsv(tmp_path / "a.tsv", HEADER, [["1", IMAGE, "q", "a"], row])
    file = tsv.TsvFile(path, HEADER[2:])
    file.read(0)
    with pytest.raises(tsv.RowError, match=rf"a\.tsv row 2 \(index 7\): .*{message}"):
        file.read(1)


# --- runner and records -------------------------------------------------------------------------


class FakeAnswerer:
    """Answers "red" under dense and "blue" under anything else; counts its batches."""

    family = "qwen2_vl"

    def __init__(self, batch_size, broken=()):
        self.batch_size, self.broken, self.calls = batch_size, broken, []

    def prepare(self, prompts, images):
        if any(prompt in self.broken for prompt in prompts):
            raise ValueError("the prompt is too long")
        return list(prompts)

    def answer(self, prepared, method, max_new_tokens):
        assert len(prepared) == self.batch_size
        self.calls.append((method, tuple(prepared)))
        text = "Red." if method == "dense" else "blue"
        return [runner.Answer(text, 4, [0, 3], [[1, 2, 2]], 128.0, 2.0, 6.0, 3) for _ in prepared]


def make_plan(folder, count=5, batch_size=2, methods=("dense", "half"), rows=None, **options):
    rows = rows or [[str(n), IMAGE, f"q{n}", "red"] for n in range(count)]
    path = write_tsv(folder / "DigitScenes_colour.tsv", HEADER, rows)
    task = tasks.TASKS["DigitScenes_colour"]
    entry = runner.TaskEntry(task, tsv.TsvFile(path, task.scoring.columns))
    entries = [runner.MethodEntry(name, 1.0 if name == "dense" else 0.5, name) for name in methods]
    values = {"model": "m", "seed": 0, "commit": "c"} | options
    return runner.RunPlan([entry], entries, batch_size, **values)


def run(plan, out, answerer=None):
    answerer = answerer or FakeAnswerer(plan.batch_size)
    folder, seen = RunFolder(out), []
    try:
        runner.run(plan, answerer, folder, lambda *event: seen.append(event))
    finally:
        folder.close()
    return answerer, seen


def keys(out):
    return [(record["example_id"], record["method"]) for record in records.read_all(out)]


COMPLETE = [(str(n), m) for pair in ((0, 1), (2, 3), (4,)) for m in ("dense", "half") for n in pair]


def test_methods_take_turns_on_each_batch(tmp_path):
    answerer, seen = run(make_plan(tmp_path), tmp_path / "out")
    assert keys(tmp_path / "out") == COMPLETE
    assert [method for method, _ in answerer.calls] == ["dense", "half"] * 3
    assert answerer.calls[-1][1] == ("q4", "q4")  # the partial batch repeats its last row
    assert seen[0] == ("DigitScenes_colour", 0, 10)
    assert seen[-1] == ("DigitScenes_colour", 10, 10)


def test_records_hold_the_fixed_keys(tmp_path):
    run(make_plan(tmp_path), tmp_path / "out")
    record = records.read_all(tmp_path / "out")[0]
    fixed = {"task", "split", "example_id", "model", "method", "keep_ratio", "prediction", "score"}
    assert fixed | {"seconds", "commit", "kept_tokens", "parsed"} <= record.keys()
    assert (record["prediction"], record["parsed"], record["score"]) == ("Red.", "red", 1)
    assert (record["kept"], record["kept_tokens"], record["visual_tokens"]) == ([0, 3], 2, 4)
    assert record["seconds"] == pytest.approx(0.008)


@pytest.mark.parametrize("torn", ["", '{"task": "DigitScenes_col', '{"example_id":"2","method":"h'])
@pytest.mark.parametrize(("present", "calls"), [(0, 6), (3, 5), (6, 3), (9, 1), (10, 0)])
def test_resume_neither_repeats_nor_skips(tmp_path, present, calls, torn):
    out = tmp_path / "out"
    run(make_plan(tmp_path), out)
    path = out / "records" / "DigitScenes_colour.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:present]) + torn)
    answerer, seen = run(make_plan(tmp_path), out)
    assert sorted(keys(out)) == sorted(COMPLETE)
    assert path.read_text().splitlines(keepends=True) == whole
    assert seen[0][1] == present
    assert len(answerer.calls) == calls


def test_more_rows_and_methods_extend_a_run(tmp_path):
    out = tmp_path / "out"
    run(make_plan(tmp_path, limit=3, methods=("dense",)), out)
    assert keys(out) == [(str(n), "dense") for n in range(3)]
    answerer, _ = run(make_plan(tmp_path), out)
    assert sorted(keys(out)) == sorted(COMPLETE)
    assert ("dense", ("q0", "q1")) not in answerer.calls


def test_processes_share_the_batches(tmp_path):
    for index in (0, 1):
        plan = make_plan(tmp_path, process_index=index, process_count=2)
        run(plan, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out" / "records").iterdir())
    assert files == ["DigitScenes_colour.0.jsonl", "DigitScenes_colour.1.jsonl"]
    assert sorted(keys(tmp_path / "out")) == sorted(COMPLETE)


def test_broken_rows_are_recorded_and_the_run_goes_on(tmp_path):
    rows = [[str(n), IMAGE, f"q{n}", "red"] for n in range(5)]
    rows[1][1] = "!" * 99
    rows[3][2] = ""
    answerer = FakeAnswerer(2, broken=("q4",))
    run(make_plan(tmp_path, rows=rows), tmp_path / "out", answerer)
    found = records.read_all(tmp_path / "out")
    assert keys(tmp_path / "out") == COMPLETE
    failed = {record["example_id"]: record["error"] for record in found if record["failed"]}
    assert failed.keys() == {"1", "3", "4"}
    assert "DigitScenes_colour.tsv row 2 (index 1): the image cell" in failed["1"]
    assert "row 4 (index 3): the question cell is empty" in failed["3"]
    assert "row 5 (index 4): the prompt is too long" in failed["4"]
    assert answerer.calls == [(m, (q, q)) for q in ("q0", "q2") for m in ("dense", "half")]
    assert summary.count_failed(found) == 3
    # failed rows stay as they are when the run is resumed
    assert run(make_plan(tmp_path, rows=rows), tmp_path / "out")[0].calls == []


def test_a_broken_reference_fails_before_the_model_runs(tmp_path):
    header = [*HEADER, "height", "width"]
    rows = [["1", IMAGE, "q", "1 2 3", "4", "6"], ["2", IMAGE, "q", "0 0 6 4", "high", "6"]]
    path = write_tsv(tmp_path / "a.tsv", header, rows)
    task = tasks.TASKS["DigitScenes_grounding"]
    entry = runner.TaskEntry(task, tsv.TsvFile(path, task.scoring.columns))
    method = runner.MethodEntry("dense", 1.0, "dense")
    answerer = FakeAnswerer(2)
    run(runner.RunPlan([entry], [method], 2, "m", 0, "c"), tmp_path / "out", answerer)
    errors = [record["error"] for record in records.read_all(tmp_path / "out")]
    assert "row 1" in errors[0]
    assert "expected 'x1 y1 x2 y2'" in errors[0]
    assert "'high'" in errors[1]
    assert answerer.calls == []


def test_other_settings_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim({"model": "a", "seed": 0}, {"t": "1"})
    folder.records("t").close()
    folder.claim({"model": "a", "seed": 0}, {"u": "2"})  # another task may join
    with pytest.raises(RecordsError, match=r"seed was 0, now 1\).*--no-resume"):
        folder.claim({"model": "a", "seed": 1}, {})
    with pytest.raises(RecordsError, match="the file of task t has changed"):
        folder.claim({"model": "a", "seed": 0}, {"t": "9", "u": "2"})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RecordsError, match="is damaged"):
        folder.claim({"model": "a", "seed": 0}, {})


def test_set_aside_keeps_the_old_records(tmp_path):
    out = tmp_path / "out"
    run(make_plan(tmp_path), out)
    folder = RunFolder(out)
    folder.claim({"seed": 0}, {})
    moved = folder.set_aside()
    assert len((moved / "DigitScenes_colour.jsonl").read_text().splitlines()) == 10
    assert keys(out) == []
    assert folder.set_aside() is None
    folder.claim({"seed": 1}, {})


def test_unusable_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordsError, match=r"cannot write into .*file.*--out"):
        RunFolder(tmp_path / "file")
    folder = RunFolder(tmp_path / "out")
    with pytest.raises(RecordsError, match="another run is writing"):
        RunFolder(tmp_path / "out")
    folder.close()
    RunFolder(tmp_path / "out").close()


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "out" / "records"
    path.mkdir(parents=True)
    (path / "t.jsonl").write_text('{"example_id": "1", "method": "m"}\n???\n')
    with pytest.raises(RecordsError, match="line 2 is not a record"):
        RunFolder(tmp_path / "out").records("t")


def test_a_full_disk_loses_no_finished_record(tmp_path):
    """Limit the size of files instead of filling a disk: writes fail in the same way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    plan = make_plan(tmp_path, count=6000)
    plan = dataclasses.replace(plan, batch_size=500)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((1 << 20) + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run(plan, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    path = tmp_path / "out" / "records" / "DigitScenes_colour.jsonl"
    before = path.read_bytes()
    assert not before.endswith(b"\n")
    run(plan, tmp_path / "out")
    found = keys(tmp_path / "out")
    assert len(found) == len(set(found)) == 12000
    assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])


def test_a_killed_run_goes_on(tmp_path):
    """Kill a run with SIGKILL in the middle of its records, then finish it."""
    script = textwrap.dedent(
        f"""
        import pathlib, sys, time
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_evals import FakeAnswerer, make_plan, run
        class Slow(FakeAnswerer):
            def answer(self, *arguments):
                time.sleep(0.02)
                return super().answer(*arguments)
        folder = pathlib.Path({str(tmp_path)!r})
        run(make_plan(folder, count=60), folder / "out", Slow(2))
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ))
    path = tmp_path / "out" / "records" / "DigitScenes_colour.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size > 5000):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = path.read_bytes()
    run(make_plan(tmp_path, count=60), tmp_path / "out")
    found = keys(tmp_path / "out")
    assert len(found) == len(set(found)) == 120
    assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])


# --- summary ------------------------------------------------------------------------------------


def record(example, method, score, task="DigitScenes_colour", **values):
    base = {"task": task, "method": method, "example_id": example, "score": score, "failed": False}
    base |= {"keep_ratio": 0.5, "parsed": "", "target": "", "category": "", "visual_tokens": 10}
    base |= {"kept_tokens": 5, "kv_bytes": 64.0, "prefill_ms": 1.0, "decode_ms": 6.0}
    return base | {"decode_steps": 3} | values


def test_rows_by_hand():
    found = [
        record("1", "dense", 1.0, keep_ratio=1.0),
        record("2", "dense", 1.0, keep_ratio=1.0),
        record("1", "half", 1.0, prefill_ms=2.0, decode_ms=9.0),
        record("2", "half", 0.0, prefill_ms=4.0, decode_ms=9.0),
        record("3", "half", None, failed=True),
    ]
    dense, half = summary.rows(found, ["DigitScenes_colour"], ["dense", "half"])
    assert list(half) == [
        "task", "method", "keep_ratio", "n", "score", "metrics", "retention", "visual_tokens",
        "kept_tokens", "kv_bytes", "prefill_ms", "decode_ms_per_token",
    ]  # fmt: skip
    assert (dense["score"], dense["retention"], half["n"]) == (1, 1, 2)
    assert (half["score"], half["retention"], half["prefill_ms"]) == (0.5, 0.5, 3)
    assert half["decode_ms_per_token"] == 3
    assert half["metrics"]["change"] == -0.5
    json.dumps([dense, half])


def test_retention_needs_a_dense_score():
    (row,) = summary.rows([record("1", "half", 1.0)], ["DigitScenes_colour"], ["half"])
    assert row["retention"] is None
    rows = summary.rows(
        [record("1", "dense", 0.0), record("1", "half", 1.0)],
        ["DigitScenes_colour"],
        ["dense", "half"],
    )
    assert rows[1]["retention"] is None


def test_averages_weigh_tasks_alike():
    names = ["DigitScenes_colour", "DigitScenes_counting", "DigitScenes_reading"]
    found = [record(str(n), "dense", 1.0, names[0]) for n in range(3)]
    found += [record("1", "dense", 0.0, name) for name in names[1:]]
    rows = {row["task"]: row for row in summary.rows(found, names, ["dense"])}
    assert rows["average"]["score"] == pytest.approx(1 / 3)
    assert rows["average/semantic"]["score"] == pytest.approx(1 / 2)
    assert rows["average"]["n"] == 5
    assert "average/spatial" not in rows


def test_existence_reports_precision_and_categories():
    name = "DigitScenes_existence"
    found = [
        record("1", "dense", 1.0, name, target="yes", parsed="Yes", category="random"),
        record("2", "dense", 0.0, name, target="no", parsed="Yes", category="random,adversarial"),
    ]
    (row,) = summary.rows(found, [name], ["dense"])
    values = row["metrics"]
    assert (row["score"], values["precision"], values["recall"]) == (0.5, 0.5, 1)
    assert (values["accuracy/random"], values["accuracy/adversarial"]) == (0.5, 0)
