"""The comparison at equal budgets, on records whose answers are known."""

import math

import pytest
from helpers.records import make_record

from ivc_jax.reports import figures, kept
from ivc_jax.reports.comparison import compare

SPECS = [
    "dense",
    "ivc:budget=0.5",
    "random:budget=0.5",
    "random:budget=0.5,seed=1",
    "ivc:budget=0.11",
    "fastv:keep_ratio=0.5",
    "fastv+pore:sigma=2.0,budget=0.5",
    "fastv+pore:sigma=3.0,budget=0.11",
]
SCORES = {  # by specification: four answers on grounding, two on colour
    "dense": ([1, 1, 1, 1], [1, 1]),
    "ivc:budget=0.5": ([1, 1, 1, 0], [1, 1]),
    "random:budget=0.5": ([0, 1, 0, 0], [1, 0]),
    "random:budget=0.5,seed=1": ([0, 1, 1, 0], [1, 1]),
    "ivc:budget=0.11": ([0, 0, 0, 0], [1, 0]),
    "fastv:keep_ratio=0.5": ([1, 1, 1, 1], [1, 1]),
    "fastv+pore:sigma=2.0,budget=0.5": ([1, 1, 1, 1], [1, 1]),
    "fastv+pore:sigma=3.0,budget=0.11": ([1, 0, 0, 0], [1, 1]),
}


def record(method, task, number, score, **changes):
    return make_record(
        method=method, task=f"DigitScenes_{task}", example_id=str(number), score=float(score),
        visual_tokens=100, kept_tokens=50, kv_bytes=8.0, flops=2.0, **changes,
    )  # fmt: skip


def records():
    for method, tasks in SCORES.items():
        for task, scores in zip(("grounding", "colour"), tasks, strict=True):
            for number, score in enumerate(scores):
                yield record(method, task, number, score)
    yield record("ivc:budget=0.5", "colour", 9, 0, failed=True)


@pytest.fixture(scope="module")
def cells():
    return {(c.group, c.budget, c.label): c for c in compare(list(records()), SPECS)}


def test_groups_weigh_tasks_alike_and_seeds_are_pooled(cells):
    one = cells["grounding", 0.5, "random"]
    assert one.runs == 2
    assert one.score == pytest.approx(3 / 8)
    assert cells["semantic", 0.5, "random"].score == pytest.approx(3 / 4)
    assert cells["average", 0.5, "random"].score == pytest.approx((3 / 8 + 3 / 4) / 2)
    assert cells["average", 0.5, "ivc"].score == pytest.approx((3 / 4 + 1) / 2)
    assert cells["grounding", 1.0, "dense"].score == 1.0


def test_draws_of_reference_tokens_are_pooled_too():
    drawn = [f"ivc:budget=0.5,coordinates=random{seed}" for seed in ("", ",random_seed=1")]
    specs = ["dense", "ivc:budget=0.5", *drawn]
    found = compare([record(spec, "grounding", 0, n % 2) for n, spec in enumerate(specs)], specs)
    runs = {cell.label: cell.runs for cell in found if cell.group == "grounding"}
    assert runs == {"dense": 1, "ivc": 1, "ivc:coordinates=random": 2}


def test_methods_without_a_budget_stay_out(cells):
    assert {label for _, _, label in cells} == {"dense", "ivc", "random", "fastv+pore"}
    assert compare(list(records()), ["dense", "fastv:keep_ratio=0.5"]) == []


def test_differences_are_paired_and_to_the_same_budget(cells):
    one = cells["grounding", 0.5, "random"]
    # by example: 0 - 1, 1 - 1, 0.5 - 1, 0 - 0
    assert one.difference == pytest.approx(-1.5 / 4)
    assert -1 <= one.difference_low < one.difference < one.difference_high <= 0
    assert math.isnan(cells["grounding", 0.5, "ivc"].difference)
    assert math.isnan(cells["grounding", 1.0, "dense"].difference)


def test_intervals_hold_the_score_and_vanish_without_spread(cells):
    one = cells["grounding", 0.5, "ivc"]
    assert 0 <= one.low < one.score < one.high <= 1
    same = cells["semantic", 0.5, "ivc"]
    assert (same.low, same.score, same.high) == (1.0, 1.0, 1.0)


def test_costs_are_means_of_the_records(cells):
    one = cells["average", 0.5, "random"]
    costs = one.cached_share, one.kept_share, one.kv_bytes, one.flops
    assert costs == (0.5, 0.5, 8.0, 2.0)


def test_panels_have_a_line_a_budget():
    sizes = {f"{name}:budget={b}": ("budget", b) for name in ("ivc", "fastv") for b in (0.5, 0.2)}
    places, labels = kept.arrange_panels(sizes)
    assert list(places.values()) == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert labels["fastv:budget=0.2"] == "fastv"


def test_many_methods_show_one_budget_and_one_seed():
    names = [f"random:seed={seed}" for seed in range(3)] + [f"fastv:layer={n}" for n in range(9)]
    sizes = {f"{name},budget={b}": ("budget", b) for b in (0.5, 0.2, 0.1) for name in names}
    places, labels = kept.arrange_panels(sizes)
    assert {size for method in places for size in [sizes[method]]} == {("budget", 0.2)}
    assert list(places.values()) == [divmod(n, 7) for n in range(1, 11)]
    assert labels["random:seed=0,budget=0.2"] == "random"


def test_curves_have_a_panel_a_group(cells):
    figure = figures.draw_budgets(list(cells.values()))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["grounding", "semantic", "average"]
    assert figures.draw_budgets([]) is None
