"""Records and resuming: nothing is repeated, skipped or lost."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers.records import make_record
from helpers.running import COLOUR, FakeAnswerer, make_plan, run
from helpers.tsv import HEADER, IMAGE, write_tsv

from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.running import records, runner, summary, tsv
from ivc_jax.evals.running.recording import MethodEntry, RunIdentity
from ivc_jax.evals.running.records import RecordsError, RunFolder
from ivc_jax.evals.running.survey import TaskEntry


def keys(out):
    return [(record.example_id, record.method) for record in records.read_all(out)]


COMPLETE = [(str(n), m) for pair in ((0, 1), (2, 3), (4,)) for m in ("dense", "half") for n in pair]


def test_methods_take_turns_on_each_batch(tmp_path):
    answerer, seen = run(make_plan(tmp_path), tmp_path / "out")
    assert keys(tmp_path / "out") == COMPLETE
    assert [method for method, _ in answerer.calls] == ["dense", "half"] * 3
    assert answerer.calls[-1][1] == ("q4", "q4")  # the partial batch repeats its last row
    assert seen[0] == ("DigitScenes_colour", 0, 10)
    assert seen[-1] == ("DigitScenes_colour", 10, 10)


def test_an_interrupted_run_has_records_of_the_methods_before(tmp_path):
    """Each method is compiled, asked and recorded before the next one is compiled."""

    class Interrupted(FakeAnswerer):
        def warm_up(self, prepared, methods, max_new_tokens, report):
            if "third" in methods:
                raise KeyboardInterrupt
            super().warm_up(prepared, methods, max_new_tokens, report)

    plan = make_plan(tmp_path, methods=("dense", "half", "third"))
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "out", Interrupted(2))
    assert keys(tmp_path / "out") == [("0", "dense"), ("1", "dense"), ("0", "half"), ("1", "half")]


def test_programs_are_counted_while_they_compile(tmp_path):
    answerer, seen = FakeAnswerer(2), []
    answerer.compiles_at_once = 2
    folder = RunFolder(tmp_path / "out")
    plan = make_plan(tmp_path, methods=("dense", "half", "third"))
    runner.run(plan, answerer, folder, lambda *event: seen.append(event))
    folder.close()
    events = [(task == tasks.COMPILED, *counts) for task, *counts in seen if task != tasks.READING]
    # two methods compile at a time; five rows are three batches of one shape
    assert events[:6] == [
        *((False, 0, 15), (True, 1, 3), (True, 2, 3)),
        *((False, 2, 15), (False, 4, 15), (True, 3, 3)),
    ]
    assert sum(compiled for compiled, *_ in events) == 3


def test_records_hold_the_fixed_keys(tmp_path):
    run(make_plan(tmp_path), tmp_path / "out")
    record = records.read_all(tmp_path / "out")[0]
    fixed = {"task", "split", "example_id", "model", "method", "keep_ratio", "prediction", "score"}
    assert fixed | {"seconds", "commit", "kept_tokens", "parsed"} <= set(vars(record))
    assert (record.prediction, record.parsed, record.score) == ("Red.", "red", 1)
    assert (record.kept, record.kept_tokens, record.visual_tokens) == ([0, 3], 2, 4)
    assert record.seconds == pytest.approx(0.008)


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
    """Each loads and records the rows of its shards, and its share of the broken rows."""
    rows = [[str(n), IMAGE, f"q{n}", "red"] for n in range(9)]
    rows[2][2] = rows[3][2] = ""
    for index in (0, 1):
        plan = make_plan(tmp_path, batch_size=4, rows=rows, process_index=index, process_count=2)
        answerer = FakeAnswerer(4, shards=2, local=(index,), owners=(0, 1))
        run(plan, tmp_path / "out", answerer)
        halves = [("q0", "q1"), ("q6", "q7")] if index == 0 else [("q4", "q5"), ("q8", "q8")]
        assert answerer.calls == [(m, half) for half in halves for m in ("dense", "half")]
    files = sorted(path.name for path in (tmp_path / "out" / "records").iterdir())
    assert files == ["DigitScenes_colour.0.jsonl", "DigitScenes_colour.1.jsonl"]
    everything = {(str(n), m) for n in range(9) for m in ("dense", "half")}
    assert len(keys(tmp_path / "out")) == 18
    assert set(keys(tmp_path / "out")) == everything


def test_a_row_of_another_process_makes_this_one_run_along(tmp_path, monkeypatch):
    """Processes run the same programs: one that has all its records still takes part."""
    answerers = []
    for missing in (False, True):
        monkeypatch.setattr(runner, "any_process", lambda mask, m=missing: mask | m)
        answerers.append(run(make_plan(tmp_path), tmp_path / "out")[0])
    assert answerers[1].calls == answerers[0].calls
    assert sorted(keys(tmp_path / "out")) == sorted(COMPLETE)


def test_a_batch_that_does_not_fit_the_shards_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="batch_size 5 must be a multiple of the 2 shards"):
        run(make_plan(tmp_path, batch_size=5), tmp_path / "out", FakeAnswerer(5, shards=2))


def test_bounds_on_answers_by_task(tmp_path):
    assert make_plan(tmp_path).bound_answers(COLOUR) == COLOUR.max_new_tokens
    bounds = {"": 7, "DigitScenes_colour": 5}
    assert make_plan(tmp_path, max_new_tokens=bounds).bound_answers(COLOUR) == 5
    assert make_plan(tmp_path, max_new_tokens={"": 7}).bound_answers(COLOUR) == 7


def test_broken_rows_are_recorded_and_the_run_goes_on(tmp_path):
    rows = [[str(n), IMAGE, f"q{n}", "red"] for n in range(5)]
    rows[1][1] = "!" * 99
    rows[3][2] = ""
    answerer = FakeAnswerer(2, broken=("q4",))
    run(make_plan(tmp_path, rows=rows), tmp_path / "out", answerer)
    found = records.read_all(tmp_path / "out")
    assert sorted(keys(tmp_path / "out")) == sorted(COMPLETE)
    failed = {record.example_id: record.error for record in found if record.failed}
    assert failed.keys() == {"1", "3", "4"}
    assert "DigitScenes_colour.tsv row 2 (index 1): the image cell" in failed["1"]
    assert "row 4 (index 3): the question cell is empty" in failed["3"]
    assert "row 5 (index 4): the prompt is too long" in failed["4"]
    # what loading finds broken leaves its slot empty: batches stay as they are
    batches = (("q0", "q2"), (None, None))
    assert answerer.calls == [(m, pair) for pair in batches for m in ("dense", "half")]
    assert summary.count_failed(found) == 3
    # failed rows stay as they are when the run is resumed
    assert run(make_plan(tmp_path, rows=rows), tmp_path / "out")[0].calls == []


def test_a_broken_reference_fails_before_the_model_runs(tmp_path):
    header = [*HEADER, "height", "width"]
    rows = [["1", IMAGE, "q", "1 2 3", "4", "6"], ["2", IMAGE, "q", "0 0 6 4", "high", "6"]]
    path = write_tsv(tmp_path / "a.tsv", header, rows)
    task = tasks.TASKS["DigitScenes_grounding"]
    entry = TaskEntry(task, tsv.TsvFile(path, task.scoring.columns))
    method = MethodEntry("dense", 1.0, "dense")
    answerer = FakeAnswerer(2)
    plan = runner.RunPlan([entry], [method], 2, RunIdentity("m", 0, "c"))
    run(plan, tmp_path / "out", answerer)
    errors = [record.error for record in records.read_all(tmp_path / "out")]
    assert "row 1" in errors[0]
    assert "expected 'x1 y1 x2 y2'" in errors[0]
    assert "'high'" in errors[1]
    assert answerer.calls == []


def test_other_settings_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim({"model": "a", "seed": 0}, {"t": "1"})
    folder.open_records("t").close()
    folder.claim({"model": "a", "seed": 0}, {"u": "2"})  # another task may join
    with pytest.raises(RecordsError, match=r"seed was 0, now 1\).*--no-resume"):
        folder.claim({"model": "a", "seed": 1}, {})
    with pytest.raises(RecordsError, match="the file of task t has changed"):
        folder.claim({"model": "a", "seed": 0}, {"t": "9", "u": "2"})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RecordsError, match="is damaged"):
        folder.claim({"model": "a", "seed": 0}, {})


def test_records_of_another_model_name_both(tmp_path):
    folder = RunFolder(tmp_path)
    folder.refuse_other_model("a1", "small")
    folder.claim({"model": "a1"}, {}, "small")
    records_of = folder.open_records("t")
    records_of.append(make_record(model="small"))
    records_of.close()
    folder.refuse_other_model("a1", "moved")  # the same files under another name
    for refuse in (
        lambda: folder.refuse_other_model("b2", "large"),
        lambda: folder.claim({"model": "b2"}, {}, "large"),
    ):
        with pytest.raises(RecordsError, match=r"another run \(model was small, now large\)"):
            refuse()
    with pytest.raises(RecordsError, match="the files of model small changed"):
        folder.refuse_other_model("c3", "small")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["model"]  # as earlier versions wrote it
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordsError, match="model was small, now large"):
        folder.refuse_other_model("b2", "large")


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
    (path / "t.jsonl").write_text(json.dumps(vars(make_record())) + "\n???\n")
    with pytest.raises(RecordsError, match="line 2 is not a record"):
        RunFolder(tmp_path / "out").open_records("t")


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
        import pathlib, time
        from helpers.running import FakeAnswerer, make_plan, run
        class Slow(FakeAnswerer):
            def answer(self, *arguments):
                time.sleep(0.02)
                return super().answer(*arguments)
        folder = pathlib.Path({str(tmp_path)!r})
        run(make_plan(folder, count=60), folder / "out", Slow(2))
        """
    )
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", script], env=found)
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
