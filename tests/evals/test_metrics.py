"""Metrics and intervals against numbers worked out by hand."""

import numpy as np
import pytest

from ivc_jax.evals.benchmarks import metrics


def test_box_iou_by_hand():
    assert metrics.measure_iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    # overlap 5 x 10, union 10 x 10 + 10 x 10 - 50
    assert metrics.measure_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert metrics.measure_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0  # a shared edge is no overlap
    assert metrics.measure_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert metrics.measure_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0  # no division by zero
    # fractional coordinates, no +1: 0.5 x 1 over 1.5 x 1
    assert metrics.measure_iou((0, 0, 1, 1), (0.5, 0, 1.5, 1)) == pytest.approx(1 / 3)


def test_yes_no_metrics_by_hand():
    targets = ["Yes", "Yes", "Yes", "No", "No"]
    answers = ["Yes", "No", "Unknown", "Yes", "Unknown"]
    values = metrics.measure_yes_no(targets, answers)
    # tp 1, claimed 2, positives 3; the Unknown to a No counts as No in precision, not in accuracy
    assert values["accuracy"] == pytest.approx(1 / 5)
    assert values["precision"] == pytest.approx(1 / 2)
    assert values["recall"] == pytest.approx(1 / 3)
    assert values["f1"] == pytest.approx(0.4)
    assert values["unknown_share"] == pytest.approx(2 / 5)


def test_yes_no_metrics_without_any_yes():
    values = metrics.measure_yes_no(["No"], ["No"])
    assert (values["accuracy"], values["precision"], values["f1"]) == (1, 0, 0)
    assert metrics.measure_yes_no([], [])["accuracy"] == 0


@pytest.mark.parametrize("count", [1, 2, 60, 129, 5001])
def test_bootstrap_draws_one_resample_after_the_other(count):
    """However many are drawn at once: 129 units divide no number of them."""
    values = np.random.default_rng(count).random(count)
    draw = np.random.default_rng(3)
    means = [values[draw.integers(0, count, count)].mean() for _ in range(1000)]
    expected = np.percentile(means, [2.5, 97.5])
    assert metrics.bootstrap(values.tolist(), 1000, seed=3) == tuple(expected)


def test_bootstrap_interval_holds_the_mean():
    low, high = metrics.bootstrap([0.0, 1.0] * 50)
    assert 0.35 < low < 0.5 < high < 0.65
    assert metrics.bootstrap([1.0] * 5) == (1, 1)
    assert metrics.bootstrap([]) == (0, 0)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = [float(n % 7) for n in range(40)]
    low, high = metrics.jackknife(lambda part: sum(part) / len(part), values, range(40))
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(40)
    assert (low, high) == pytest.approx((mean - 2.02 * error, mean + 2.02 * error))


def test_jackknife_keeps_units_whole():
    seen = []
    units = [n // 2 for n in range(200)]
    metrics.jackknife(lambda part: float(seen.append(part) or 0), units, units)
    assert len(seen) == 1 + 40
    for unit in range(100):  # each is whole, and left out once
        assert sorted(part.count(unit) for part in seen) == [0, *[2] * 40]
    assert metrics.jackknife(sum, [3.0, 4.0], ["a", "a"]) == (7, 7)
