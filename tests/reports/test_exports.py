"""Tables of reports as CSV and LaTeX."""

import csv
import io
import re

import pytest

from ivc_jax.reports import exports
from ivc_jax.reports.section import Cell, Report, Section, Table

SCORES = Table(
    ("method", "MME of 2,000", "note"),
    (
        ("dense", Cell("75.0", ("50.0", "100.0")), "100 %"),
        ("ivc_50 & co", Cell("50.0", ("25.0", "75.0"), "best"), "-"),
        ("fastv", "-", Cell("a_b {c}\nd", code=True)),
    ),
    title="Budget 0.5",
    text="All of it.",
    starts=(1,),
)


def test_csv_has_intervals_in_columns_of_their_own():
    head, *rows = csv.reader(io.StringIO(exports.to_csv(SCORES)))
    assert head == ["method", "MME of 2,000", "MME of 2,000 low", "MME of 2,000 high", "note"]
    assert rows == [
        ["dense", "75.0", "50.0", "100.0", "100 %"],
        ["ivc_50 & co", "50.0", "25.0", "75.0", ""],
        ["fastv", "", "", "", "a_b {c}\nd"],
    ]


def test_latex_escapes_marks_and_rules():
    lines = exports.to_latex(SCORES).splitlines()
    assert lines == [
        "% Budget 0.5",
        "% All of it.",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & MME of 2,000 & note \\",
        r"\midrule",
        r"dense & 75.0 {\scriptsize [50.0, 100.0]} & 100 \% \\",
        r"\midrule",
        r"ivc\_50 \& co & \textbf{50.0} {\scriptsize [25.0, 75.0]} & - \\",
        r"fastv & - & \texttt{a\_b \{c\} d} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize("sign", list("&%$#_{}~^\\<>"))
def test_every_sign_that_latex_reads_is_escaped(sign):
    text = exports.to_latex(Table((f"a{sign}b",), ()))
    head = text.splitlines()[2].removesuffix(r" \\")
    assert head.startswith("a\\")
    assert head.endswith("b")
    # nothing that TeX would act on is left but commands
    assert not re.search(r"(?<!\\)[&%$#_~^]", head)


def test_every_table_is_a_file_of_its_own_name(tmp_path):
    sections = (
        Section("Equal budgets", tables=(SCORES, SCORES)),
        Section("Costs", tables=(Table(("a",), ()),)),
        Section("Empty"),
    )
    report = Report("title", "command", {}, sections)
    paths = exports.write(tmp_path, report, ("csv", "latex"))
    names = ["equal-budgets-budget-0-5", "equal-budgets-budget-0-5-2", "costs"]
    wanted = [f"{name}.{ending}" for name in names for ending in ("csv", "tex")]
    assert [path.name for path in paths] == wanted
    assert all((tmp_path / "tables" / name).exists() for name in wanted)
    assert exports.write(tmp_path / "none", report, ()) == []
    assert not (tmp_path / "none").exists()
