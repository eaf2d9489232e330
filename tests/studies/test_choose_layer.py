"""Choosing layer and fractions: the front, the rule, retention, and the command end to end."""

import json
import pathlib
import types

import pytest
from helpers.records import make_record
from rich.console import Console

from ivc_jax.commands import choose_layer as command
from ivc_jax.commands.options import WeightOptions
from ivc_jax.studies.calibration import report
from ivc_jax.studies.calibration.pareto import (
    Calibration,
    CalibrationError,
    Row,
    choose,
    compare_layers,
    find_best_layers,
    find_front,
)

GROUNDING, COLOUR = "DigitScenes_grounding", "DigitScenes_colour"


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(2, 5), (1, 3), (3, 4)], [1, 0]),  # the last costs more than the first and is worth less
        ([(1, 3), (2, 3)], [0]),  # equal worth: the cheaper
        ([(1, 3), (1, 4)], [1]),  # equal cost: the better
        ([(1, 3), (1, 3), (0, 9)], [2]),
        ([(2, 4), (1, 3), (1, 3)], [1, 2, 0]),  # equal points stand together
    ],
)
def test_the_front_holds_what_nothing_beats(points, front):
    assert find_front(points) == front


def row(layer, fraction, retention, cost):
    spec = f"ivc:layer={layer},cos_fraction={fraction}"
    return Row(spec, layer, fraction, 9, {}, retention, retention, -0.1, 0.1, cost, cost, 0.5)


def test_the_choice_retains_most_then_costs_least():
    best, cheap = row(4, 0.1, 0.97, 0.9), row(1, 0.1, 0.95, 0.6)
    assert choose([cheap, best]) is best
    assert choose([cheap, best], tolerance=1.9) is best
    assert choose([cheap, best], tolerance=2.0) is cheap  # two points, whatever 0.97 - 0.95 is
    assert choose([best, cheap], tolerance=50) is cheap


def test_ties_go_to_the_cheaper_the_earlier_the_smaller():
    rows = [row(2, 0.1, 0.9, 0.8), row(3, 0.1, 0.9, 0.7)]
    assert choose(rows) is rows[1]
    rows = [row(3, 0.05, 0.9, 0.7), row(2, 0.15, 0.9, 0.7), row(2, 0.1, 0.9, 0.7)]
    assert choose(rows) is rows[2]


def test_the_second_round_looks_at_the_best_layers():
    rows = [row(1, 0.1, 0.8, 0.6), row(4, 0.1, 0.95, 0.9), row(2, 0.1, 0.9, 0.7)]
    assert find_best_layers(rows, 2) == [4, 2]
    assert find_best_layers([*rows, row(3, 0.1, 0.9, 0.65)], 2) == [4, 3]  # of equals the cheaper
    assert find_best_layers(rows, 5) == [4, 2, 1]


ANSWERS = {  # by method: six answers on grounding, two on colour; operations
    "dense": ([1, 1, 1, 1, 1, 0], [1, 0], 8e9),
    "one": ([0, 0, 0, 0, 0, 0], [0, 0], 4e9),
    "two": ([1, 1, 1, 1, 0, 0], [1, 0], 6e9),
    "three": ([0, 1, 1, 1, 1, 0], [1, 1], 7e9),
    "stranger": ([1, 1, 1, 1, 1, 1], [1, 1], 1e9),
}
SETTINGS = {"one": (1, 0.1), "two": (2, 0.1), "three": (3, 0.1)}


def records(answers=ANSWERS):
    for method, (grounding, colour, flops) in answers.items():
        for task, scores in ((GROUNDING, grounding), (COLOUR, colour)):
            for number, score in enumerate(scores):
                yield make_record(
                    task=task,
                    method=method,
                    example_id=str(number),
                    score=float(score),
                    flops=flops,
                )
        yield make_record(task=COLOUR, method=method, example_id="9", score=None, failed=True)


@pytest.fixture(scope="module")
def calibration():
    return Calibration(records(), SETTINGS, [GROUNDING, COLOUR])


def test_retention_is_a_mean_of_ratios_over_tasks(calibration):
    one, two, three = calibration.rows
    assert calibration.dense.retention == 1.0
    assert one.retention == pytest.approx(0)
    assert two.retention == pytest.approx((4 / 5 + 1) / 2)
    assert three.retention == pytest.approx((4 / 5 + 2) / 2)
    assert two.scores == pytest.approx({GROUNDING: 4 / 6, COLOUR: 1 / 2})
    assert (two.score, two.n, two.layer, two.fraction) == (pytest.approx(7 / 12), 8, 2, 0.1)
    assert (two.gflop, two.cost, two.cached_share) == (6.0, 0.75, 0.5)


def test_intervals_are_paired(calibration):
    two = calibration.rows[1]
    # one lost example of six: never better than dense, and no colour answer differs
    assert two.change_low < two.retention - 1 < two.change_high == 0
    assert calibration.difference("two", "two") == (0, 0, 0)
    difference, low, high = calibration.difference("three", "two")
    assert difference == pytest.approx(0.5)  # the first and fifth cancel; half of 2 - 1 on colour
    assert calibration.difference("two", "three") == pytest.approx((-difference, -high, -low))


def test_what_has_no_retention_is_named():
    failing = ANSWERS | {"dense": ([1, 1, 1, 1, 1, 1], [0, 0], 8e9)}
    with pytest.raises(CalibrationError, match=f"dense scores 0 on {COLOUR}"):
        Calibration(records(failing), SETTINGS, [GROUNDING, COLOUR])
    with pytest.raises(CalibrationError, match=f"no example of {GROUNDING} .* with four"):
        Calibration(records(), {"four": (4, 0.1)}, [GROUNDING])


def test_layers_are_told_apart_by_paired_differences(calibration):
    assert compare_layers(calibration, 0.1, chosen=3) == ([2], True)
    assert compare_layers(calibration, 0.1, chosen=1) == ([], True)
    alike = Calibration(records(), {"two": (2, 0.1), "three": (3, 0.1)}, [GROUNDING])
    assert compare_layers(alike, 0.1, chosen=2) == ([3], False)


def test_the_verdict_says_what_the_examples_can_tell():
    assert "not significant" in report.write_verdict(2, [3], False, 2, 0.1)
    assert "do not tell layer 3 from layers 2, 4" in report.write_verdict(3, [2, 4], True, 4, 0.1)
    assert "from every other layer" in report.write_verdict(3, [], True, 4, 0.1)
    assert "no layer to choose" in report.write_verdict(3, [], False, 1, 0.1)


def test_bounds_on_pictures_reach_the_run():
    bounded = WeightOptions(min_pixels=256, max_pixels=1024)
    settings = command._make_settings(command.Arguments(model=bounded))
    assert (settings.min_pixels, settings.max_pixels) == (256, 1024)


def test_the_first_round_takes_the_fraction_nearest_to_the_usual():
    assert command._choose_probe(command.Arguments()) == 0.1
    few = command.ChoiceOptions(fractions=(0.2, 0.05))
    assert command._choose_probe(command.Arguments(choice=few)) == 0.05


@pytest.mark.parametrize(
    ("fractions", "rounds"),
    [
        (
            (0.05, 0.1, 0.15),
            [{"1/0.1", "2/0.1", "3/0.1", "4/0.1"}, {"2/0.05", "2/0.15", "4/0.05", "4/0.15"}],
        ),
        ((0.1,), [{"1/0.1", "2/0.1", "3/0.1", "4/0.1"}]),
    ],
)
def test_the_second_round_adds_fractions_at_the_best_layers(monkeypatch, fractions, rounds):
    retained, asked = {1: 0.7, 2: 0.9, 3: 0.8, 4: 0.95}, []

    def measure(session, chosen, console):
        asked.append(set(chosen))
        rows = [row(*setting, retained[setting[0]], setting[0]) for setting in chosen.values()]
        return {}, types.SimpleNamespace(rows=rows)

    monkeypatch.setattr(command, "_run_round", measure)
    grid = {f"{layer}/{share}": (layer, share) for layer in retained for share in fractions}
    meta, calibration = command._measure(None, grid, 0.1, Console(quiet=True))
    assert asked[0] == rounds[0]
    assert asked[-1] == set().union(*rounds)
    assert len(asked) == len(rounds)
    assert len(calibration.rows) == len(asked[-1])
    assert meta["second_round"] == ([2, 4] if len(rounds) > 1 else [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "0"], "layers must be in [1, 7] for a model of 8 blocks, got 0"),
        (["--layers", "2", "8"], "layers must be in [1, 7] for a model of 8 blocks, got 8"),
        (["--budget", "0"], "budget must be in (0, 1], got 0"),
        (["--fractions", "0.1", "1.5"], "fractions must be in [0, 0.25], got 1.5"),
        (["--fractions", "0.3"], "cosine and sine take one each, and the budget is 0.5"),
        (["--fractions", "-0.1"], "fractions must be in [0, 0.25], got -0.1"),
        (["--tasks", "sorting"], "unknown task 'sorting'; known: DigitScenes_grounding"),
        (["--tasks", "RefCOCO_testA"], "RefCOCO_testA needs --data-dir"),
        (["--model", "missing-folder"], "tasks: name at least one"),
        (["--model", "missing-folder", "--tasks", "grounding"], "neither a directory nor a hub id"),
        (["--tolerance", "-1"], "tolerance must not be negative"),
        (["--limit", "0"], "limit must be at least 1"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, options, message):
    out = tmp_path / "out"
    assert command.main([*options, "--no-compile-cache", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(out.glob("records/*"))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Four questions to the bundled model: the tiny random ones answer none."""
    out = tmp_path_factory.mktemp("choose") / "out"
    options = ["--limit", "4", "--batch-size", "4", "--layers", "2", "3", "--fractions", "0.1"]
    return [*options, "--no-compile-cache", "--out", str(out)]


@pytest.fixture(scope="module")
def finished(arguments):
    """The folder of that run."""
    assert command.main(arguments) == 0
    return pathlib.Path(arguments[-1])


def test_a_run_chooses_among_what_it_measured(finished):
    result = json.loads((finished / "choice.json").read_text())
    meta, choice, (dense, *rows) = result["meta"], result["choice"], result["rows"]
    assert meta["n"] == {GROUNDING: 4}
    assert (meta["splits"], meta["budget"], meta["layers"]) == (["calibration-0"], 0.5, [2, 3])
    assert "choose-layer --limit 4" in meta["command"]
    assert (dense["layer"], dense["cost"]) == (None, 1.0)
    assert [row["spec"] for row in rows] == ["ivc:layer=2,budget=0.5", "ivc:layer=3,budget=0.5"]
    assert all(row["cached_share"] == pytest.approx(0.5, abs=0.01) for row in rows)
    assert rows[0]["cost"] < rows[1]["cost"] < 1
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["retention"] == max(row["retention"] for row in rows)
    assert chosen["front"]
    assert choice["argument"] == f'--methods "{chosen["spec"]}"'
    report = (finished / "report.md").read_text()
    assert choice["argument"] in report
    assert choice["verdict"] in report
    assert "biased upwards" in report
    assert (finished / "figures" / "pareto.png").stat().st_size > 5000


def test_the_same_command_goes_on_and_adds_nothing(finished, arguments, capsys):
    path = finished / "records" / f"{GROUNDING}.jsonl"
    before = path.read_bytes()
    assert len(before.splitlines()) == 3 * 4
    assert command.main(arguments) == 0
    assert path.read_bytes() == before
    assert json.loads((finished / "choice.json").read_text())["choice"]["argument"] in (
        capsys.readouterr().out
    )
