"""What the report shows of literal rows: own points, categories, where the time went."""

import dataclasses

import pytest
from helpers.records import make_meta, make_row
from rich.console import Console

from ivc_jax.commands import terminal
from ivc_jax.evals.schema import Statistics
from ivc_jax.reports import comparison, figures, labels, report, tables
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Cell, Figure, Section, Table

STATISTICS = Statistics(buckets=3, device=7.0, total=8.0, wait=2.25, batches=1)
PARTS = [f"part{number}" for number in range(9)]


def row(task, method, score, **metrics):
    return make_row(task, method, score, metrics=metrics)


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
    usual = {"tasks": ["MME", "MMStar"], "methods": ["dense", ivc], "statistics": STATISTICS}
    usual |= {"mesh": {"data": 4, "model": 2}, "processes": 2}
    return Results(make_meta(**usual | changes), rows)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Give a function that writes both reports without figures and returns them."""
    monkeypatch.setattr(figures, "draw", lambda results: [])

    def write(**changes):
        report.write(tmp_path, results(**changes))
        return [(tmp_path / f"report.{ending}").read_text() for ending in ("md", "html")]

    return write


def test_scores_are_in_the_points_of_the_benchmark(written):
    text, page = written()
    assert "| MME (of 2800) | MMStar | average |" in text
    assert "| dense | 1.000 | 1.000 | 2100 [1400, 2800] | 62.5 | 68.8 |" in text
    assert "| ivc | 0.500 | 0.500 | 1400 [700, 2100] | 50.0 | 50.0 |" in text
    assert "<th>MME (of 2800)</th>" in page
    assert '2100</span><br><span class="low">1400 to 2800</span>' in page
    assert (labels.write_heading("MMStar"), labels.write_points("average", 0.5)) == (
        "MMStar",
        "50.0",
    )


def test_categories_have_a_table_a_measure(written):
    text, page = written()
    assert "### MME: points by category\n\n| method | OCR | color |" in text
    assert "| dense | - | 150 |\n| ivc, 0.5 | 60 | 90 |" in text
    assert "### MMStar: accuracy by l2-category\n\n| method | coarse\\|fine |" in text
    assert "| ivc, 0.5 | 37.5 |" in text
    assert "### MMStar: accuracy by category" in text
    # nine columns are folded, few are not
    assert page.count('<details class="card" open>\n<summary><b>MME: points by category</b>') == 1
    assert page.count('<details class="card">\n<summary><b>MMStar: accuracy by category</b>') == 1


def test_no_heading_without_categories(written, monkeypatch):
    monkeypatch.setattr(tables.summary, "collect_categories", lambda rows: [])
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
    text, _ = written(statistics=dataclasses.replace(STATISTICS, batches=0))
    assert "| padded shapes | 3 |" in text
    assert "busy" not in text


def test_sets_that_are_no_mean_of_rows_are_named():
    names = ["MME", "MMStar", "POPE", "MMBench_DEV_EN_V11", "HallusionBench", "RefCOCO_val"]
    assert labels.list_scored_by_unit(names) == [
        n for n in names if n not in ("MMStar", "RefCOCO_val")
    ]


def test_tables_that_average_rows_say_so(written, monkeypatch):
    monkeypatch.setattr(comparison, "compare", lambda records, specs: [])
    assert all("scores of rows" not in text for text in written())
    shares = {"cached_share": 0.5, "kept_share": 0.5, "kv_bytes": 1.0, "flops": 1.0}
    values = dict.fromkeys(("score", "low", "high"), 0.5)
    values |= dict.fromkeys(("difference", "difference_low", "difference_high"), float("nan"))
    found = comparison.Cell("ivc", 0.5, "average", 1, **values, **shares)
    monkeypatch.setattr(comparison, "compare", lambda records, specs: [found])
    for text in written():
        assert "Of MME this table averages the scores of rows" in " ".join(text.split())
    assert all("scores of rows" not in text for text in written(tasks=["MMStar"]))


def test_a_section_comes_first_and_replaces_what_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda results: pytest.fail("was drawn"))
    lines = (("a|b", Cell("1.5", ("1", "2"), "best")), ("c", Cell("x`y", mark="wrong", code=True)))
    table = Table(("name", "value"), lines, "Numbers", "Of `this`.", ("95* is not all",), (1,))
    section = Section(
        "Own",
        ("A text of 5 %.",),
        (table,),
        (Figure("own", "Own", "Lines.", b"png"),),
        files={"own.json": "{}"},
        replaces=(report.FIGURES, tables.CATEGORIES),
    )
    report.write(tmp_path, results(), [section])
    text, page = ((tmp_path / f"report.{ending}").read_text() for ending in ("md", "html"))
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Own", "## Scores", "## Costs",
    ]  # fmt: skip
    assert "### Numbers\n\nOf `this`.\n\n| name | value |\n|---|---|\n" in text
    assert "| a\\|b | **1.5** [1, 2] |\n| c | `x'y` |\n\n- 95\\* is not all\n" in text
    assert "![Own](figures/own.png)\n\nLines.\n" in text
    assert '<span class="best">1.5</span><br><span class="low">1 to 2</span>' in page
    assert '<tr class="start"><td>c</td><td class="text"><code class="wrong">x`y</code>' in page
    assert "<p>Of <code>this</code>.</p>" in page
    assert 'src="data:image/png;base64,cG5n"' in page  # "png" in base64
    assert (tmp_path / "figures" / "own.png").read_bytes() == b"png"
    assert (tmp_path / "own.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("ends", "mark"), [((0.01, 0.2), "right"), ((-0.2, -0.01), "wrong"), ((-0.1, 0.1), "")]
)
def test_differences_are_marked_where_the_interval_excludes_zero(ends, mark):
    values = {"score": 0.5, "low": 0.4, "high": 0.6, "difference": sum(ends) / 2}
    cell = comparison.Cell(
        "ivc", 0.5, "all", 1, **values, difference_low=ends[0], difference_high=ends[1],
        cached_share=0.5, kept_share=0.5, kv_bytes=1.0, flops=1.0,
    )  # fmt: skip
    found = tables.write_difference(cell)
    assert (found.mark, found.interval) == (mark, tuple(f"{100 * end:+.1f}" for end in ends))
    assert tables.write_difference(cell, marked=False).mark == ""
    assert tables.write_score(cell) == Cell("50.0", ("40.0", "60.0"))


def test_commands_are_shown_as_they_are_given():
    assert (
        report.write_command(make_meta(command="run.py rope")) == "python experiments/run.py rope"
    )
    assert report.write_command(make_meta(command="ivc-jax run rope")) == "ivc-jax run rope"


def test_the_figure_is_in_points_too():
    panels = figures.draw_scores(results()).axes
    assert panels[0].get_ylabel() == "score (points of 2800)"
    assert panels[0].get_ylim() == pytest.approx((-84, 2884))
    assert panels[0].lines[0].get_ydata() == pytest.approx([1400])
    assert panels[1].get_ylabel() == "score (%)"


def test_the_terminal_has_points_or_what_a_section_prints(capsys):
    terminal.print_results(Console(width=200), results())
    shown = capsys.readouterr().out
    assert "MME (of 2800)" in shown
    assert "2100" in shown
    table = Table(("method", "value"), (("mine", Cell("7.5")),), "Other", notes=("a note",))
    terminal.print_results(Console(width=200), results(), [Section("Own", tables=(table,))])
    assert "7.5" not in capsys.readouterr().out
    section = Section("Own", tables=(table,), printed=True)
    terminal.print_results(Console(width=200), results(), [section])
    shown = capsys.readouterr().out
    assert "7.5" in shown
    assert "a note" in shown
    assert "MME" not in shown
