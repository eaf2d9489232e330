"""The answer browser's data: kept sets as bits, pages, what hostile text becomes."""

import base64
import dataclasses
import functools
import json
import re
import shutil

import numpy as np
import pytest
from helpers import browsed

from ivc_jax.reports import browser, figures, report, thumbnails


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return browsed.write_run(tmp_path_factory.mktemp("browsed") / "run")


@pytest.fixture(scope="module")
def results(run):
    return browsed.read_results(run)


def unpack(text, count):
    if not text:
        return list(range(count))
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), bitorder="little")
    assert not bits[count:].any()
    return np.flatnonzero(bits[:count]).tolist()


def read_data(page):
    (found,) = re.findall(r'<script type="application/json" id="answers-data">(.*?)</script>', page)
    return json.loads(found)


@pytest.mark.parametrize(
    ("kept", "count", "text"),
    [([0, 9], 10, "AQI="), ([], 3, "AA=="), ([0, 1, 2], 3, ""), ([], 0, ""), ([7], 8, "gA==")],
)
def test_a_kept_set_is_one_bit_a_token(kept, count, text):
    assert browser.pack_bits(kept, count) == text
    assert unpack(text, count) == kept


def test_every_example_has_every_method_with_its_kept_set(results):
    (page,) = browser.make_pages(results, {})
    data = json.loads(page.data)
    assert data["tasks"] == ["grounding", "colour"]
    assert [method["spec"] for method in data["methods"]] == browsed.METHODS
    assert [method["name"] for method in data["methods"]] == ["dense", "ivc, 0.5", "fastv, 0.5"]
    assert len(data["examples"]) == 2 * browsed.ROWS
    for number, example in enumerate(data["examples"]):
        task, row = divmod(number, browsed.ROWS)
        assert (example["task"], example["id"]) == (task, f"e{row + 1}")
        if (task, row + 1) == (1, browsed.FAILED):
            assert all(answer["error"] == "row 7: broken" for answer in example["answers"])
            continue
        for place, answer in enumerate(example["answers"]):
            kept = browsed.keep(task, row + 1, place)
            assert unpack(answer["bits"], example["tokens"]) == kept
            assert answer["kept"] == len(kept)
            assert answer["score"] == browsed.score(row + 1, place)


def test_boxes_are_those_of_the_record_where_the_size_is_known(results, run):
    pictures = thumbnails.collect(run, results.meta, results.records)
    (page,) = browser.make_pages(results, pictures)
    first, *_, last = json.loads(page.data)["examples"]
    assert (first["box"], first["size"]) == ([20, 20, 50, 50], [browsed.SIDE] * 2)
    assert first["answers"][1]["box"] == [16, 16, 48, 48]
    assert last["box"] is None
    assert "box" not in last["answers"][1]
    (page,) = browser.make_pages(results, {})
    assert json.loads(page.data)["examples"][0]["box"] is None


def test_a_picture_is_there_once(results, run):
    pictures = thumbnails.collect(run, results.meta, results.records)
    (page,) = browser.make_pages(results, pictures)
    data = json.loads(page.data)
    assert len(data["pictures"]) == browsed.ROWS  # both tasks ask about them
    named = {e["picture"] for e in data["examples"] if e["picture"] is not None}
    assert named == set(data["pictures"])


def test_many_examples_become_pages_of_bounded_size(results):
    pages = browser.make_pages(results, {}, most_examples=20)
    assert [(page.first, page.last) for page in pages] == [(1, 20), (21, 40), (41, 50)]
    assert [page.file for page in pages] == ["report.html", "answers-2.html", "answers-3.html"]
    counts = [len(json.loads(page.data)["examples"]) for page in pages]
    assert counts == [20, 20, 10]
    pages = browser.make_pages(results, {}, most_bytes=5000)
    assert len(pages) > 2
    assert all(len(page.data) < 6000 for page in pages)
    assert pages[-1].last == 50


def test_a_run_of_two_thousand_examples_and_twelve_methods_is_small(results):
    methods = [f"ivc:budget=0.5,layer={layer}" for layer in range(1, 13)]
    one = results.records[1]
    many = [
        dataclasses.replace(one, method=method, row=row, example_id=str(row), task=browsed.TASKS[0],
                            visual_tokens=576, kept=list(range(0, 576, 2)), kept_tokens=288,
                            grids=[[1, 24, 24]])
        for row in range(1, 2001) for method in methods
    ]  # fmt: skip
    meta = dataclasses.replace(results.meta, methods=methods)
    large = dataclasses.replace(results, meta=meta, records=many, failed=[])
    (page,) = browser.make_pages(large, {})
    assert len(page.data) < 6e6


@pytest.fixture
def written(run, tmp_path, monkeypatch):
    """A function that writes the reports of a copy of the run, without figures."""
    monkeypatch.setattr(figures, "draw", lambda results: [])
    make_pages = browser.make_pages

    def write(**limits):
        folder = shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
        if limits:
            limited = functools.partial(make_pages, **limits)
            monkeypatch.setattr(browser, "make_pages", limited)
        report.write(folder, browsed.read_results(folder))
        return folder

    return write


def test_hostile_text_stays_text(written):
    page = (written() / "report.html").read_text()
    assert "<script>document.title" not in page
    data = read_data(page)
    assert data["examples"][1]["question"] == browsed.HOSTILE
    assert data["examples"][1]["answers"][0]["text"] == browsed.HOSTILE
    # the JSON and three scripts, and nothing that ends one early
    assert page.count("<script") == page.count("</script>") == 4
    assert "\u2028" not in page


def test_the_report_needs_no_other_file(written):
    page = (written() / "report.html").read_text()
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "http://" not in page
    assert "https://" not in page
    assert "First answers" not in page
    assert "eval(" not in page
    assert "innerHTML" not in page


def test_every_section_is_reached_from_the_top(written):
    text = (written() / "report.html").read_text()
    (links,) = re.findall(r'<nav class="sections".*?</nav>', text, re.DOTALL)
    names = re.findall(r'href="#([^"]+)">', links)
    assert names[0] == "scores"
    assert names[-1] == "answers"
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(names) <= set(ids)
    assert len(names) == text.count("<h2")


def test_further_pages_lie_beside_the_report(written):
    folder = written(most_examples=20)
    names = sorted(path.name for path in folder.glob("*.html"))
    assert names == ["answers-2.html", "answers-3.html", "report.html"]
    for name in names:
        page = (folder / name).read_text()
        assert '<a href="answers-' in page
        assert "MB)" in page
    assert len(read_data((folder / "answers-3.html").read_text())["examples"]) == 10
    written(most_examples=50)  # fewer pages: the old ones go
    assert [path.name for path in folder.glob("*.html")] == ["report.html"]


def test_shares_are_equal_in_all_tables(results):
    tables = {
        table.columns: table
        for section in report.compose(results).sections
        for table in section.tables
    }
    shares = [
        {str(row[0]): row[table.columns.index("kept")] for row in table.rows}
        for table in tables.values() if "kept" in table.columns
    ]  # fmt: skip
    assert len(shares) >= 3
    for name in ("ivc", "fastv"):
        assert len({found[name] for found in shares if name in found}) == 1
