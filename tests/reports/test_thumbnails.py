"""Thumbnails: made once a picture, shared, and left out where the file is gone or another."""

import dataclasses
import io

import pytest
from helpers import browsed
from PIL import Image

from ivc_jax.reports import thumbnails


@pytest.fixture
def run(tmp_path):
    return browsed.write_run(tmp_path / "run")


def collect(run, **changes):
    results = browsed.read_results(run)
    meta = dataclasses.replace(results.meta, **changes)
    return thumbnails.collect(run, meta, results.records)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_a_thumbnail_is_small_and_knows_its_size(mode):
    found = thumbnails.shrink(Image.new("L", (900, 300), 128).convert(mode) if mode != "I;16"
                              else Image.new(mode, (900, 300), 1000))  # fmt: skip
    assert found.size == (900, 300)
    with Image.open(io.BytesIO(found.content)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (224, 75))
    assert len(found.content) < 10_000


def test_a_picture_is_not_changed():
    picture = Image.new("RGB", (900, 300))
    thumbnails.shrink(picture)
    assert picture.size == (900, 300)


def test_examples_of_one_picture_share_its_file(run):
    found = collect(run)
    assert len(found) == browsed.ROWS
    assert len(list((run / thumbnails.FOLDER).glob("*.webp"))) == browsed.ROWS


def test_they_are_made_once_and_outlive_the_benchmark_file(run, monkeypatch):
    found = collect(run)
    for path in run.glob("*.tsv"):
        path.unlink()
    monkeypatch.setattr(thumbnails, "shrink", lambda image: pytest.fail("was made again"))
    assert collect(run) == found


def test_without_the_benchmark_file_there_are_none(run):
    for path in run.glob("*.tsv"):
        path.unlink()
    assert collect(run) == {}
    assert not (run / thumbnails.FOLDER).exists()
    assert collect(run, files={}) == {}


def test_another_picture_in_the_row_is_not_shown(run):
    path = run / f"{browsed.TASKS[0]}.tsv"
    first, *rows = path.read_text().splitlines()
    for file in (path, run / f"{browsed.TASKS[1]}.tsv"):
        file.write_text("\n".join([first, *reversed(rows)]) + "\n")
    assert len(collect(run)) == 1  # the row in the middle stays where it was


def test_a_broken_row_is_left_out(run):
    for task in browsed.TASKS:
        path = run / f"{task}.tsv"
        lines = path.read_text().splitlines()
        lines[3] = "3\tAAAA\tq\ta"
        path.write_text("\n".join(lines) + "\n")
    assert len(collect(run)) == browsed.ROWS - 1


def test_a_damaged_index_or_a_lost_file_makes_them_again(run):
    found = collect(run)
    next((run / thumbnails.FOLDER).glob("*.webp")).unlink()
    assert collect(run) == found
    (run / thumbnails.FOLDER / "index.json").write_text("{")
    assert collect(run) == found


def test_records_of_earlier_versions_have_a_picture_a_row(run):
    results = browsed.read_results(run)
    old = [dataclasses.replace(record, picture="") for record in results.records[:4]]
    found = thumbnails.collect(run, results.meta, old)
    assert len(found) == len({(record.task, record.row) for record in old}) == 2


def test_only_so_many_are_made(run, monkeypatch):
    monkeypatch.setattr(thumbnails, "MOST", 3)
    assert len(collect(run)) == 3
