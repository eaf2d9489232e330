"""What the report shows of literal rows: own points, categories, where the time went."""

import pytest

from ivc_jax.commands import console
from ivc_jax.reports import figures, points, report

STATISTICS = {"buckets": 3, "busy_share": 0.875, "wait": 2.25}
PARTS = [f"part{number}" for number in range(9)]


def row(task, method, score, **metrics):
    costs = {"cached_share": 1.0 if method == "dense" else 0.5, "flops": 1e9}
    values = {"task": task, "method": method, "keep_ratio": costs["cached_share"], "n": 4}
    values |= {"visual_tokens": 8.0, "kept_tokens": 4.0, "kv_bytes": 2048.0, "retention": score}
    values |= {"prefill_ms": 1.0, "decode_ms_per_token": 1.0}
    return values | {"score": score, "metrics": costs | metrics}


def results(**changes):
    ivc = "ivc:keep_ratio=0.5"
    rows = [
        row("MME", "dense", 0.75, low=0.5, high=1.0, **{"points/color": 150.0}),
        row("MME", ivc, 0.5, low=0.25, high=0.75, **{"points/color": 90.0, "points/OCR": 60.0}),
        row("MMStar", "dense", 0.625, **{f"accuracy/{part}": 0.5 for part in PARTS}),
        row("MMStar", ivc, 0.5, **{"accuracy/l2/coarse|fine": 0.375}),
        row("average", "dense", 0.6875),
        row("average", ivc, 0.5),
    ]
    meta = {"model": "DIR", "command": "run.py", "device": "8 x TPU v5e", "dtype": "bfloat16"}
    meta |= {"jax_version": "1", "commits": ["abc"], "date": "today", "seed": 0, "batch_size": 4}
    meta |= {"limit": None, "compiled_programs": 2, "failed_rows": 0, "failures": []}
    meta |= {"tasks": ["MME", "MMStar"], "methods": ["dense", ivc], "shared_tower": False}
    meta |= {"unreachable": {}, "studies": [], "mesh": {"data": 4, "model": 2}, "processes": 2}
    return {"meta": meta | {"statistics": STATISTICS} | changes, "rows": rows}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Give a function that writes both reports without figures and returns them."""
    monkeypatch.setattr(figures, "draw", lambda *arguments: [])

    def write(**changes):
        report.write(tmp_path, results(**changes))
        return [(tmp_path / f"report.{ending}").read_text() for ending in ("md", "html")]

    return write


def test_scores_are_in_the_points_of_the_benchmark(written):
    text, page = written()
    assert "| MME (of 2800) | MMStar | average |" in text
    assert "| dense | 1 | 1.000 | 2100 [1400, 2800] | 62.5 | 68.8 |" in text
    assert "| ivc | 0.5 | 0.500 | 1400 [700, 2100] | 50.0 | 50.0 |" in text
    assert "<th>MME (of 2800)</th>" in page
    assert '2100</span><br><span class="low">1400 to 2800</span>' in page
    assert (points.heading("MMStar"), points.in_points("average", 0.5)) == ("MMStar", "50.0")


def test_categories_have_a_table_a_measure(written):
    text, page = written()
    assert "### MME: points by category\n\n| method | OCR | color |" in text
    assert "| dense | - | 150 |\n| ivc, 0.5 | 60 | 90 |" in text
    assert "### MMStar: accuracy by l2-category\n\n| method | coarse\\|fine |" in text
    assert "| ivc, 0.5 | 37.5 |" in text
    assert "### MMStar: accuracy by category" in text
    # nine columns are folded, few are not
    assert page.count('<details class="card" open>\n<summary><b>MME</b>') == 1
    assert page.count('<details class="card">\n<summary><b>MMStar</b> accuracy by category') == 1


def test_no_heading_without_categories(written, monkeypatch):
    monkeypatch.setattr(report.summary, "categories", lambda rows: [])
    assert all("By category" not in text for text in written())


def test_the_header_says_where_the_time_went(written):
    text, page = written()
    for name, value in [
        ("mesh", "data=4, model=2"),
        ("processes", "2"),
        ("padded shapes", "3"),
        ("devices busy, without compiling", "87.5 %"),
        ("waited for the host", "2.2 s"),
    ]:
        assert f"| {name} | {value} |" in text
        assert f"<span>{name}</span> {value}</div>" in page


def test_results_of_earlier_versions_and_resumed_runs_have_less(written):
    text, _ = written(statistics=None, mesh=None, processes=None)
    assert not any(name in text for name in ("mesh", "processes", "padded", "busy"))
    text, _ = written(statistics=STATISTICS | {"busy_share": None})
    assert "| padded shapes | 3 |" in text
    assert "busy" not in text


def test_sets_that_are_no_mean_of_rows_are_named():
    names = ["MME", "MMStar", "POPE", "MMBench_DEV_EN_V11", "HallusionBench", "RefCOCO_val"]
    assert points.scored_by_unit(names) == [n for n in names if n not in ("MMStar", "RefCOCO_val")]


def test_tables_that_average_rows_say_so(written, monkeypatch):
    found = {"groups": [], "tables": {}, "reference": "ivc"}
    monkeypatch.setattr(report, "_by_budget", lambda _: found)
    assert all("scores of rows" not in text for text in written())
    found["tables"] = {0.5: {}}
    for text in written():
        assert "Of MME this table averages the scores of rows" in " ".join(text.split())
    assert all("scores of rows" not in text for text in written(tasks=["MMStar"]))


def test_the_figure_is_in_points_too():
    panels = figures._accuracy(results()).axes
    assert panels[0].get_ylabel() == "score (points of 2800)"
    assert panels[0].get_ylim() == pytest.approx((-84, 2884))
    assert panels[0].lines[0].get_ydata() == pytest.approx([1400])
    assert panels[1].get_ylabel() == "score (%)"


def test_the_terminal_has_points(capsys):
    console.print_table(console.Console(width=200), results())
    shown = capsys.readouterr().out
    assert "MME (of 2800)" in shown
    assert "2100" in shown
