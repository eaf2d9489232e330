"""Thirteen claims: verdicts and the page follow from records, and the README repeats them."""

import dataclasses
import json
import math
import re
import types
from pathlib import Path

import pytest
from helpers.studies import write_models, write_study

from ivc_jax.commands.settings import load_config
from ivc_jax.studies.sets import measures
from ivc_jax.studies.table import Cell

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("removal", "plus_ivc", "layer", "keep", "rope", "fractions", "foreground", "rules")
SURE = Cell(0.6, 0.5, 0.7, -0.2, -0.3, -0.1, p=0.0001, p_holm=0.0004)
OPEN = Cell(0.9, 0.8, 1.0, 0.1, -0.1, 0.3, p=0.1, p_holm=0.2)
GAIN = Cell(0.9, 0.8, 1.0, 0.1, 0.05, 0.2, p=0.01, p_holm=0.04)


@pytest.fixture
def scripts(monkeypatch):
    """The modules `findings`, `claims` and `evidence`, as the command finds them."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import claims
    import evidence
    import findings

    return findings, claims, evidence


def _differ(row, group):
    """The made-up model: IVC tokens are needed for places, and cuts before block 5 cost."""
    if row.series.endswith(": IVC") or row.series == "IVC":
        return -0.2 if group in ("grounding", "spatial", "DigitScenes_grounding") else 0.0
    if row.series == "+ivc":
        return 0.1 if row.label == "fastv" else 0.0
    return -0.1 if row.label.startswith(("cuts", "fastv")) else 0.0


def _lose(key):
    return 0.3 if key.startswith("hide ivc") and "shifted" not in key else 0.05


def _write(folder, lose=_lose):
    for run in RUNS:
        for study in load_config(run).studies:
            write_study(folder / run, study, _differ)
    (folder / "sets").mkdir()
    presets = {"bundled": measures.summarize(measures.PRESETS["bundled"])}
    (folder / "sets" / "sets.json").write_text(json.dumps({"presets": presets}))
    write_models(folder / "cells", lose)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Every record that the page reads."""
    folder = tmp_path_factory.mktemp("evidence")
    _write(folder)
    return folder


@pytest.fixture(scope="module")
def page(records):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        import findings

        target = records / "findings.md"
        assert findings.main([str(records), str(target)]) == 0
    return target.read_text()


def read_table(text):
    """The rows of the table of claims, by letter."""
    return {line[3]: line for line in text.splitlines() if line.startswith("| (")}


def test_verdicts_follow_from_the_records(page):
    table = {letter: row.split(" | ") for letter, row in read_table(page).items()}
    assert [*table] == list("abcdefghijklm")
    verdicts = {letter: cells[2] for letter, cells in table.items()}
    assert verdicts["a"] == "**holds**"
    assert table["a"][3].startswith("15 of 15 settings surely worse than random, 0 surely better")
    assert verdicts["b"] == "**holds**"
    assert verdicts["c"] == "**holds in part**"
    assert table["c"][3].startswith(
        "fastv at 50 %: **+10.0** [+8.0, +12.0], p = 0.001; pyramiddrop"
    )
    assert verdicts["d"] == "**holds**"
    assert table["d"][3].startswith("100.0 % [97.5, 102.5] of the unpruned 80.0 [78.0, 82.0]")
    assert verdicts["e"] == verdicts["f"] == "**holds**"
    assert (
        "of 10 progressive runs at equal cache 10 are surely worse than one cut, layer 5"
        in (table["f"][3])
    )
    assert verdicts["g"] == "**holds**"
    assert table["g"][3].startswith("sections: 2 above, 0 below, 0 neither; line: 2 above")
    assert verdicts["l"] == "**not decided**"  # a line has no axes


def test_what_does_not_replicate_comes_first(page):
    before = page.partition("## The claims")[0]
    failed, _, rest = before.partition("**What replicates in part, or was not decided:**")
    assert "does not replicate" not in failed  # nothing failed: no such heading
    partly, _, whole = rest.partition("**What replicates:**")
    assert [line[:5] for line in partly.splitlines() if line.startswith("- (")] == [
        f"- ({letter})" for letter in "chijklm" if f"- ({letter})" in partly
    ]
    assert "- (c) + IVC lifts FastV and PyramidDrop on grounding: **holds in part**." in partly
    assert "- (a) removing IVC tokens hurts grounding" in whole


def test_a_control_that_costs_as_much_is_said_first(scripts, tmp_path):
    _, claims, _ = scripts
    lose = lambda key: 0.5 if key.startswith("hide first ") else _lose(key)  # noqa: E731
    write_models(tmp_path, lose)
    found = claims.list_study_claims(claims.Models(tmp_path))
    (outdone,) = [claim for claim in found if claim.letter == "i"]
    assert set(outdone.verdicts.values()) == {"does not hold"}
    title, group = next(iter(claims.group_claims(found).items()))
    assert title == "What does not replicate"
    assert outdone in group
    mixed = dataclasses.replace(outdone, verdicts={"sections": "holds", "line": "does not hold"})
    assert mixed.write_verdict() == "sections: **holds**, line: **does not hold**"
    assert claims.group_claims([mixed])[title] == [mixed]


@pytest.mark.parametrize(
    ("good", "bad", "verdict"),
    [(4, 0, "holds"), (1, 2, "holds in part"), (0, 1, "does not hold"), (0, 0, "not decided")],
)
def test_what_is_not_sure_decides_nothing(scripts, good, bad, verdict):
    _, claims, _ = scripts
    assert claims._judge(good, bad, total=4) == verdict


def test_every_section_has_its_numbers(page):
    sections = page.split("\n## ")[1:]
    assert len(sections) == 11
    for section in sections[2:]:
        assert "Source: `docs/evidence/" in section or "keep ratio" in section
        assert count_rows(section) >= 4, section.partition("\n")[0]
    assert not re.search(r"\bNone\b|\bnan\b", page)
    assert "control" in sections[3]
    rows = [line for line in sections[3].splitlines() if line.startswith("| ")]
    # IVC and random at four depths; 14 controls at three; the head
    assert len(rows) == 2 * 4 + 14 * 3 + 1


def count_rows(section):
    """Count rows of tables."""
    return sum(line.startswith("| ") for line in section.splitlines())


def test_the_page_is_what_its_records_say(scripts):
    findings, _, _ = scripts
    page = findings.render(ROOT / "docs" / "evidence")
    assert page == (ROOT / "docs" / "findings.md").read_text()


def test_rules_are_counted_over_all_budgets(scripts):
    """Surely less at a half, surely more at 5 %, open between; the released rule is no rival."""
    findings, _, _ = scripts
    cells = {"rules_50": SURE, "rules_5": GAIN}

    class Records:
        def rows(self, run, name):
            assert run == "rules"
            cell = {"grounding": cells.get(name, OPEN)}
            return [
                types.SimpleNamespace(label="ivc", series=series, cells=cell)
                for series in ("released", "lattice")
            ]

    assert findings.count_rules(Records()) == {
        ("ivc", "lattice"): {"worse": 1, "better": 1, "unclear": 3}
    }


def test_the_readme_repeats_the_verdicts():
    table = read_table((ROOT / "docs" / "findings.md").read_text())
    readme = (ROOT / "README.md").read_text()
    shown = readme.split("<!-- claims -->")[1].split("<!-- end of claims -->")[0]
    assert [*table] == list("abcdefghijklm")
    assert read_table(shown) == table


def test_differences_are_bold_where_they_stand_after_adjusting(scripts):
    *_, evidence = scripts
    assert evidence.change(SURE) == "**-20.0** [-30.0, -10.0], p < 0.001"
    assert evidence.change(OPEN) == "+10.0 [-10.0, +30.0], p = 0.200"
    unadjusted = dataclasses.replace(OPEN, p_holm=math.nan)
    assert evidence.change(unadjusted) == "+10.0 [-10.0, +30.0]"
    counts = {"worse": 1, "better": 2, "unclear": 1}
    assert evidence.tally([SURE, OPEN, GAIN, GAIN]) == counts


def test_retention_turns_the_difference_of_dense_around(scripts):
    *_, evidence = scripts
    full = Cell(0.8, 0.7, 0.9, 0.04, -0.02, 0.1, p=0.5)
    kept = evidence.retention(dataclasses.replace(full, score=0.76), full)
    assert kept == pytest.approx((95, 87.5, 102.5))


def test_missing_records_are_named(scripts, tmp_path, capsys):
    findings, _, evidence = scripts
    assert findings.main([str(tmp_path), str(tmp_path / "page.md")]) == 2
    assert "has no */answers.json" in capsys.readouterr().err
    write_models(tmp_path / "cells", _lose)
    assert findings.main([str(tmp_path), str(tmp_path / "page.md")]) == 2
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study_x.json").write_text(json.dumps({"meta": {}, "rows": []}))
    with pytest.raises(ValueError, match="run/x has no row with"):
        evidence.Evidence(tmp_path).row("run", "x", label="y")
