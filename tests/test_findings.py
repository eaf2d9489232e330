"""The findings page is what its records say, and the README repeats its verdicts."""

import dataclasses
import json
import math
import pathlib

import pytest

from experiments import findings
from ivc_jax.studies.table import Cell

ROOT = pathlib.Path(__file__).resolve().parents[1]
SURE = Cell(0.6, 0.5, 0.7, -0.2, -0.3, -0.1, p=0.0001, p_holm=0.0004)
OPEN = Cell(0.9, 0.8, 1.0, 0.1, -0.1, 0.3, p=0.1, p_holm=0.2)
GAIN = Cell(0.9, 0.8, 1.0, 0.1, 0.05, 0.2, p=0.01, p_holm=0.04)


def test_the_page_is_what_its_records_say():
    page = findings.render(findings.Evidence(ROOT / "docs" / "evidence"))
    assert page == (ROOT / "docs" / "findings.md").read_text()


def test_the_readme_repeats_the_verdicts():
    page = (ROOT / "docs" / "findings.md").read_text()
    readme = (ROOT / "README.md").read_text()
    shown = readme.split("<!-- claims -->")[1].split("<!-- end of claims -->")[0]
    table = [line for line in page.splitlines() if line.startswith("| (")]
    assert len(table) == 6
    assert [line for line in shown.splitlines() if line.startswith("| (")] == table


def test_differences_are_bold_where_they_stand_after_adjusting():
    assert findings.change(SURE) == "**-20.0** [-30.0, -10.0], p < 0.001"
    assert findings.change(OPEN) == "+10.0 [-10.0, +30.0], p = 0.200"
    assert findings.change(dataclasses.replace(OPEN, p_holm=math.nan)) == "+10.0 [-10.0, +30.0]"
    assert findings.tally([SURE, OPEN, GAIN, GAIN]) == {"worse": 1, "better": 2, "unclear": 1}


def test_retention_turns_the_difference_of_dense_around():
    full = Cell(0.8, 0.7, 0.9, 0.04, -0.02, 0.1, p=0.5)
    kept = findings.retention(dataclasses.replace(full, score=0.76), full)
    assert kept == pytest.approx((95, 87.5, 102.5))


def test_missing_records_are_named(tmp_path, capsys):
    assert findings.main([str(tmp_path), str(tmp_path / "page.md")]) == 2
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study_x.json").write_text(json.dumps({"meta": {}, "rows": []}))
    with pytest.raises(ValueError, match="run/x has no row with"):
        findings.Evidence(tmp_path).row("run", "x", label="y")
