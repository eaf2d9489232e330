"""TSV files with videos: paths, files in cells, references, broken ones; and a run over them."""

import base64
import json

import numpy as np
import pytest
from helpers.tsv import IMAGE, write_tsv
from helpers.videos import decode, draw_frames, write_video

import ivc_jax
from ivc_jax.commands import run
from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running import tsv, video_cells
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.evals.running.checking import check_file
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.inputs.layout import arrange

pytest.importorskip("av")
TASK = TASKS["DigitVideos_when"]
HEADER = ["index", "video", "question", "answer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "clips").mkdir()
    write_video(folder / "clips" / "a.mp4", draw_frames(20, 32, 40))
    write_video(folder / "clips" / "b.mp4", draw_frames(12, 24, 24, seed=1), rate=5)
    (folder / "clips" / "broken.mp4").write_bytes(b"no video")
    return folder


def write_rows(folder, rows, header=HEADER):
    return write_tsv(folder / TASK.file_name, header, rows)


def test_cells_are_paths_files_references_and_lists(folder):
    inline = base64.b64encode((folder / "clips" / "b.mp4").read_bytes()).decode()
    rows = [
        ["10", "clips/a.mp4", "When?", "1"],
        ["11", "10", "When?", "1"],
        ["12", inline, "When?", "1"],
        ["13", "['clips/a.mp4', 'clips/b.mp4']", "When?", "1"],
    ]
    file = tsv.TsvFile(write_rows(folder, rows))
    first, second, third, fourth = (file.read(position) for position in range(4))
    assert [video.total for video in first.videos] == [20]
    assert second.videos == first.videos
    assert (second.holder, second.picture, second.images) == (0, first.picture, ())
    np.testing.assert_array_equal(
        third.videos[0].read((3,)).frames, decode(folder / "clips" / "b.mp4")[3:4]
    )
    assert [video.total for video in fourth.videos] == [20, 12]
    assert len({first.picture, third.picture, fourth.picture}) == 3


def test_paths_have_a_column_of_their_own_and_images_may_stand_beside(folder):
    header = ["index", "image", "video_path", "question", "answer"]
    rows = [
        ["0", IMAGE, "clips/b.mp4", "Same?", "1"],
        ["1", "", "clips/b.mp4", "When?", "1"],
        ["2", IMAGE, "", "What?", "1"],
        ["3", "", "", "What?", "1"],
    ]
    file = tsv.TsvFile(write_rows(folder, rows, header))
    counts = [(len(row.images), len(row.videos)) for row in map(file.read, range(3))]
    assert counts == [(1, 1), (0, 1), (1, 0)]
    entry = TaskEntry(TASK, file)
    (message,) = entry.write_messages(file.read(0), "qwen2_vl")
    assert [part["type"] for part in message["content"]] == ["image", "video", "text"]
    with pytest.raises(tsv.RowError, match=r"row 4 \(index 3\): the image cell is empty"):
        file.read(3)


def test_broken_cells_are_one_line(folder):
    rows = [
        ["0", "", "When?", "1"],
        ["1", "clips/broken.mp4", "When?", "1"],
        ["2", "clips/missing.mp4", "When?", "1"],
        ["3", "7", "When?", "1"],
        ["4", "A" * 70, "When?", "1"],
        ["5", "*" * 70, "When?", "1"],
    ]
    messages = (
        "the video cell is empty",
        r"video 0 \(broken.mp4\) cannot be read as a video",
        r"video 0 \(missing.mp4\): there is no file",
        "the video cell names the row '7', which does not exist",
        "the video cell is not valid base64|cannot be read as a video",
        "the video cell is not valid base64",
    )
    file = tsv.TsvFile(write_rows(folder, rows))
    for position, message in enumerate(messages):
        start = rf"DigitVideos_when.tsv row {position + 1} \(index {position}\): "
        with pytest.raises(tsv.RowError, match=start + f"({message})") as caught:
            file.read(position)
        assert len(str(caught.value).splitlines()) == 1


def test_a_check_decodes_every_film_to_its_end(folder):
    content = (folder / "clips" / "a.mp4").read_bytes()
    start = content.find(b"mdat") + 4
    half = start + (content.find(b"moov") - start) // 2
    (folder / "clips" / "half.mp4").write_bytes(
        content[:half] + b"\xff" * 99 + content[half + 99 :]
    )
    rows = [[str(n), f"clips/{name}.mp4", "When?", "1"] for n, name in enumerate(["a", "half"])]
    checked = check_file(TASK, write_rows(folder, [*rows, ["2", "1", "And then?", "2"]]))
    (fault,) = checked.faults
    assert checked.rows == 3
    assert "row 2 (index 1): video 0 (half.mp4)" in fault
    assert len(fault.splitlines()) == 1


def test_without_the_library_the_file_is_refused(folder, monkeypatch):
    monkeypatch.setattr(tsv, "check_library", lambda: "reading video files needs PyAV")
    with pytest.raises(tsv.TsvError, match="has videos, and reading video files needs PyAV"):
        tsv.TsvFile(write_rows(folder, [["0", "clips/a.mp4", "When?", "1"]]))
    tsv.TsvFile(write_rows(folder, [["0", IMAGE, "What?", "1"]], ["index", "image", *HEADER[2:]]))
    assert video_cells.check_library() is None


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_what_a_row_takes_up_is_known_before_it_is_decoded(tiny_hf, folder, family):
    path = tiny_hf(family=family, generation="old")
    model, processor = ivc_jax.load(path, dtype="float32", video=ivc_jax.VideoOptions(fps=1.5))
    answerer = ModelAnswerer(model, processor)
    header = ["index", "image", "video", "question", "answer"]
    cells = [["0", IMAGE, "['clips/a.mp4', 'clips/b.mp4']", "Which <video>?", "1"]]
    entry = TaskEntry(TASK, tsv.TsvFile(write_rows(folder, cells, header)))
    messages = entry.write_messages(entry.read(0), family)
    size = answerer.measure(messages)
    (sample,) = arrange(answerer.process(messages), model.config)
    footprints = [segment.footprint for segment in sample.segments]
    assert size.visual == sum(each.count for each in footprints)
    assert size.text == len(sample.tokens) - size.visual
    assert size.rows == sum(each.rows for each in footprints)
    assert (size.images, size.positions) == (len(footprints), sample.next_position)


def test_a_run_answers_and_marks_broken_rows(tiny_hf, folder, tmp_path, capsys):
    rows = [
        ["0", "clips/a.mp4", "When?", "1"],
        ["1", "0", "When again?", "2"],
        ["2", "clips/broken.mp4", "When?", "1"],
        ["3", "clips/b.mp4", "Where?", "left"],
    ]
    write_rows(folder, rows)
    options = [
        *("--model", str(tiny_hf(family="qwen2_5_vl", generation="old"))),
        *("--tasks", TASK.name, "--data-dir", str(folder), "--out", str(tmp_path)),
        *("--methods", "dense", "random:layer=1,keep_ratio=0.5", "--batch-size", "2"),
        *("--fps", "1", "--max-frames", "4", "--max-new-tokens", "2", "--no-compile-cache"),
    ]
    assert run.main(options) == 0
    records = [
        json.loads(line)
        for file in sorted((tmp_path / "records").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert len(records) == 8
    failed = [record for record in records if record["failed"]]
    assert {record["example_id"] for record in failed} == {"2"}
    assert all("broken.mp4" in record["error"] for record in failed)
    answered = {(r["example_id"], r["keep_ratio"]): r for r in records if not r["failed"]}
    assert answered["0", 1.0]["grids"] == [[2, 4, 5]]  # four frames, two a slice
    assert answered["0", 1.0]["picture"] == answered["1", 1.0]["picture"]
    assert answered["0", 0.5]["kept_tokens"] == 20


def test_impossible_options_end_a_run(tmp_path, capsys):
    options = ["--tasks", TASK.name, "--out", str(tmp_path), "--fps", "1", "--num-frames", "2"]
    assert run.main(options) != 0
    assert "fps and num_frames exclude each other" in capsys.readouterr().err
