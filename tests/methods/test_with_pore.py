"""PoRe against worked numbers and the released tables; the host chooses, by the corrected score."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import draw_attention
from helpers.models import model_config

from ivc_jax.ivc import rank_in_segment
from ivc_jax.methods import FastV, Random, WithIVC
from ivc_jax.methods.base import Method, MethodError
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.pyramiddrop import PyramidDrop
from ivc_jax.methods.testing import listed, run_stage
from ivc_jax.methods.with_pore import (
    WithPoRe,
    debias,
    fit_trend,
    weigh_cubic,
    weigh_exponential,
)

PAIR = (3, (4, 5), 4, (3, 7), 5)
OTHER = (2, (6, 6), 6)
VIDEO = (1, (3, 2, 4), 2, (1, 1), 4)
SAMPLES = (PAIR, OTHER, VIDEO, (5,))
SIGMA = 1.2
SCORES = np.array([0.060, 0.050, 0.090, 0.070, 0.080, 0.110, 0.120, 0.130])
TREND = [0.05000, 0.05809, 0.06749, 0.07842, 0.09111, 0.10585, 0.12298, 0.14288]
CORRECTED = [1.20000, 0.86071, 1.33347, 0.89268, 0.87810, 1.03921, 0.97577, 0.90984]
HOST = FastV(keep_ratio=0.5, rounding="floor")
MEANS = [0.052, 0.056, 0.069, 0.077, 0.093, 0.104, 0.125, 0.139]


def kept(method, layout, attention=None, number=0) -> list[list[int]]:
    (request,) = method.requests(method.stages[number])
    rows = draw_attention(layout) if attention is None else jnp.asarray(attention, jnp.float32)
    return listed(run_stage(method, layout, {request: rows}, number))


def places(count, endpoint=False) -> np.ndarray:
    return np.arange(count) / max(count - endpoint, 1)


def row(values) -> jnp.ndarray:
    return jnp.asarray(values, jnp.float32)[None]


def top(scores, count) -> list[int]:
    rank = rank_in_segment(scores, jnp.zeros(scores.shape, int), jnp.isfinite(scores))
    return np.flatnonzero(rank[0] < count).tolist()


def test_worked_example():
    weights = weigh_exponential(row(places(8)), SIGMA)
    np.testing.assert_allclose(0.05 / weights[0], TREND, atol=5.1e-6)
    corrected = debias(row(SCORES), weights)
    np.testing.assert_allclose(corrected[0] / 0.05, CORRECTED, atol=5.1e-6)
    assert top(row(SCORES), 4) == [2, 5, 6, 7]
    assert top(corrected, 4) == [0, 2, 5, 6]


def test_half_precision_scores_are_corrected_in_float32():
    corrected = debias(row(SCORES).astype(jnp.bfloat16), weigh_exponential(row(places(8)), SIGMA))
    assert corrected.dtype == jnp.float32
    exact = np.asarray(row(SCORES).astype(jnp.bfloat16), np.float64) * np.exp(-SIGMA * places(8))
    np.testing.assert_allclose(corrected[0], exact[0], rtol=1e-6)


def test_fit_of_the_worked_example():
    np.testing.assert_allclose(fit_trend(MEANS, places(8), steps=0), [1.17305, 0.05058], atol=6e-6)
    np.testing.assert_allclose(fit_trend(MEANS, places(8)), [1.16797, 0.05074], atol=6e-6)


def test_fit_recovers_a_trend_and_skips_empty_places():
    x = places(256)
    means = 3e-4 * np.exp(-0.7 * x)
    np.testing.assert_allclose(fit_trend(means, x), [-0.7, 3e-4], rtol=1e-9)
    means[::3] = np.nan
    np.testing.assert_allclose(fit_trend(means, x), [-0.7, 3e-4], rtol=1e-9)
    # Zeros have no logarithm but pull the fit; the result is a minimum all the same.
    means = np.where(np.isnan(means), 0.0, means) + 1e-5 * np.sin(40 * x)
    sigma, mu = fit_trend(means, x)

    def error(sigma, mu):
        return np.square(means - mu * np.exp(sigma * x)).sum()

    for change in (1e-3, -1e-3):
        assert error(sigma, mu) < error(sigma + change, mu)
        assert error(sigma, mu) < error(sigma, mu * (1 + change))


@pytest.mark.parametrize("means", [[0.1, 0.0, 0.0], [np.nan, 0.2, -0.1], []])
def test_fit_needs_two_places(means):
    with pytest.raises(ValueError, match="two places or more"):
        fit_trend(means, places(len(means)))


def test_cubic():
    weights = weigh_cubic(row(places(8, endpoint=True)))
    expected = [1.0, 0.85954, 0.82286, 0.80580, 0.75412, 0.64273, 0.49607, 0.35824]
    np.testing.assert_allclose(weights[0], expected, atol=5.1e-6)


def test_the_exponential_that_ends_as_the_cubic():
    end = weigh_exponential(row([1.0]), 1.0266)
    np.testing.assert_allclose(end, weigh_cubic(row([1.0])), atol=2e-5)


def reference(sample, scores, method) -> list[int]:
    """Correct the scores of a sample token by token in float64; half of them stay."""
    image = lay_out(sample)["image"]
    corrected = []
    for v, score in enumerate(scores):
        count, index = len(image), v
        if method.per_image_trend:
            count, index = image.count(image[v]), v - image.index(image[v])
        x = index / max(count - method.endpoint, 1)
        trend = np.exp(method.sigma * x)
        if method.trend == "cubic":
            trend = 1 + 1.73374 * x - 4.82643 * x**2 + 4.88413 * x**3
        corrected.append(score / trend)
    order = sorted(range(len(image)), key=lambda v: (-corrected[v], v))
    return sorted(order[: len(image) // 2])


@pytest.mark.parametrize(
    "fields",
    [
        {"sigma": 1.9},
        {"sigma": -0.8, "endpoint": True},
        {"sigma": 1.9, "per_image_trend": True},
        {"sigma": 3, "per_image_trend": True, "endpoint": True},
        {"trend": "cubic", "endpoint": True},
    ],
    ids=str,
)
def test_equals_the_slow_reference(fields):
    method, layout = WithPoRe(HOST, **fields), make_layout(SAMPLES)
    scores = np.asarray(draw_attention(layout), np.float64).mean(axis=(1, 2))
    expected = [
        reference(s, scores[b, : len(lay_out(s)["image"])], method) for b, s in enumerate(SAMPLES)
    ]
    assert kept(method, layout) == expected
    assert kept(HOST, layout) != expected


def test_without_a_trend_nothing_changes():
    layout = make_layout(SAMPLES)
    assert kept(WithPoRe(HOST), layout) == kept(HOST, layout)
    assert WithPoRe(HOST).sigma == 0.0


def test_later_cuts_rank_by_the_raw_score():
    host, layout = PyramidDrop().resolve(model_config(32)), make_layout(SAMPLES)
    method = WithPoRe(PyramidDrop(), sigma=9.0).resolve(model_config(32))
    assert method.stages == host.stages
    assert kept(method, layout, number=0) != kept(host, layout, number=0)
    for number in (1, 2):
        assert kept(method, layout, number=number) == kept(host, layout, number=number)


def test_hosts_on_the_worked_example():
    layout = make_layout([(1, (2, 4), 2)])
    rows = SCORES[None, None, None]
    method = WithPoRe(PyramidDrop(), sigma=SIGMA).resolve(model_config(32))
    assert kept(method, layout, rows) == [[0, 2, 5, 6]]
    assert kept(method.host, layout, rows) == [[2, 5, 6, 7]]
    wide = make_layout([(1, (2, 4), 2)], visual_slots=11)
    assert kept(WithPoRe(HOST, sigma=SIGMA), wide, np.pad(rows, [(0, 0)] * 3 + [(0, 3)])) == [
        [0, 2, 5, 6]
    ]


def test_the_host_decides_the_rest():
    host = PyramidDrop(budget=0.3, per_image=True)
    method = WithPoRe(host, sigma=1.0).resolve(model_config(32))
    assert method.name == "pyramiddrop+pore"
    assert method.host == host.resolve(model_config(32))
    for stage in method.stages:
        assert method.requests(stage) == method.host.requests(stage)
        assert method.capacity(stage, 41, 2) == method.host.capacity(stage, 41, 2)


@pytest.mark.parametrize(
    ("host", "fields", "message"),
    [
        (Method(), {}, "pore corrects an attention score; dense has none"),
        (Random(layer=2), {}, "random has none"),
        (WithIVC(HOST), {}, r"fastv\+ivc has none"),
        (HOST, {"trend": "linear"}, r"trend must be one of \('exponential', 'cubic'\)"),
        (HOST, {"trend": "cubic", "sigma": 1.0}, "with trend=exponential only"),
        (HOST, {"sigma": float("nan")}, "sigma must be a finite number, got nan"),
    ],
)
def test_bad_fields(host, fields, message):
    with pytest.raises(MethodError, match=message):
        WithPoRe(host, **fields)


def test_equal_fields_are_equal_methods():
    assert WithPoRe(HOST, sigma=1) == WithPoRe(HOST, sigma=1.0)
    assert type(WithPoRe(HOST, sigma=1).sigma) is float
    assert hash(WithPoRe(HOST)) == hash(WithPoRe(HOST))
