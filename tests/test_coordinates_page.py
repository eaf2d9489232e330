"""The page about models of cells: verdicts follow from records."""

import pytest
from helpers.studies import write_models

from digit_scenes.study.claims import Difference
from experiments import coordinates


def _lose(key: str) -> float:
    """What a condition costs grounding in the made-up models."""
    if key.startswith("hide"):
        return 0.3 if " first " in key or (" ivc " in key and "shifted" not in key) else 0.05
    if key.startswith("axis"):
        return 0.05 if "stopped" in key else 0.3
    return 0.2 if key.startswith("keep") else 0.0


@pytest.fixture
def folder(tmp_path):
    write_models(tmp_path, _lose)
    return tmp_path


def test_verdicts_follow_from_the_records(folder, tmp_path):
    page = tmp_path / "page.md"
    assert coordinates.main([str(folder), str(page)]) == 0
    text = page.read_text()
    for name in ("hide", "keep"):
        assert f"](evidence/cells/figures/{name}.png)" in text
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
    rows = {line[2:5]: line for line in text.splitlines() if line.startswith("| (")}
    verdicts = {letter: row.split("|")[3:5] for letter, row in rows.items()}
    assert "**holds**: 2 above, 0 below, 0 neither" in verdicts["(g)"][0]
    assert "**holds**: 2 above" in verdicts["(g)"][1]
    assert "**not decided**" in verdicts["(j)"][0]  # as good as random ones
    assert "**holds**: 2 above, 0 below, 2 neither" in verdicts["(m)"][0]
    assert [verdicts[letter][1].strip() for letter in ("(l)", "(m)")] == ["no axes"] * 2
    # first cells cost as much as IVC ones, all others less
    assert "**holds in part**" in verdicts["(i)"][0]
    assert "| 0 | first - IVC | grounding |" in text
    assert "| sections-1 | sections 6 / 9 / 9, theta 10 | 4 | 12 x 12 |" in text


def test_a_rule_is_reported_where_it_was_not_chosen(tmp_path):
    """Farthest points are worth most to every model here."""
    write_models(tmp_path, lambda key: 0.1 if key.startswith("keep farthest") else 0.2)
    models = coordinates.Models(tmp_path)
    assert [(t.chosen_on, t.reported_on, t.rule) for t in models.trials] == [
        (("sections-0",), ("sections-1",), "farthest"),
        (("line-0", "line-1"), ("sections-0", "sections-1"), "farthest"),
        (("line-0",), ("line-1",), "farthest"),
        (("sections-0", "sections-1"), ("line-0", "line-1"), "farthest"),
    ]
    for trial in models.trials:
        assert set(trial.scores) >= {"ivc", "random", "lattice", "farthest"}
        # one line has neither phase nor planes of an axis, so that nothing else can tell of these
        assert ("phase" in trial.scores) == (trial.reported_on == ("sections-1",))
        assert list(trial.differences) == ["ivc", "lattice", "random"]
        assert [each.sure for each in trial.differences.values()] == [1, 1, 1]
        gains = [each.value for each in trial.differences.values()]
        assert gains == pytest.approx([0.1] * 3, abs=0.05)


def test_where_no_rule_is_better_the_released_one_stays(tmp_path):
    write_models(tmp_path, lambda key: 0.3 * key.startswith("keep") * ("keep ivc" not in key))
    for trial in coordinates.Models(tmp_path).trials:
        assert trial.rule in ("ivc", "section-true")
        assert trial.differences["lattice"].sure == trial.differences["random"].sure == 1


def test_folders_without_records_are_named(tmp_path, capsys):
    assert coordinates.main([str(tmp_path), str(tmp_path / "page.md")]) == 2
    assert "has no */answers.json" in capsys.readouterr().err


def test_a_model_of_no_known_kind_is_named(folder, tmp_path, capsys):
    for path in folder.glob("*/answers.json"):
        path.write_text(path.read_text().replace('"model": "', '"model": "my-'))
    assert coordinates.main([str(folder), str(tmp_path / "page.md")]) == 2
    assert "models must be named KIND-SEED, of sections, interleaved" in capsys.readouterr().err


def test_controls_that_cost_as_much_are_named():
    def make(label, block, value):
        low, high = value - 0.01, value + 0.01
        return Difference("i", f"{label} - IVC", "grounding", block, value, 0.0,
                          low, high, 0.01, (value,))  # fmt: skip

    last = [make("last", 0, 0.3), make("last", 1, 0.3)]
    assert coordinates.list_rivals(last) == "none"
    first = [make("first", 0, 0.3), make("first", 1, -0.3)]
    nearest = [make("nearest", 0, 0.001), make("nearest", 1, -0.2)]
    assert coordinates.list_rivals(last + first + nearest) == "first (1); nearest (0, 1)"
    assert coordinates.list_rivals(nearest) == "all of them, everywhere"
