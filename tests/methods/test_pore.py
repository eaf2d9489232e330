"""PoRe against worked numbers and the released tables; the host chooses, by the corrected score."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import draw_attention, lay_out, listed, make_layout, run_stage

from ivc_jax.config import DecoderConfig, ModelConfig, RopeConfig, VisionConfig
from ivc_jax.methods import FastV, Random, WithIVC, scoring
from ivc_jax.methods.base import AttentionRows, Method, MethodError
from ivc_jax.methods.pore import (
    RELEASED_SIGMAS,
    WithPoRe,
    cubic_weights,
    debias,
    fit_trend,
    letterbox_padding,
    trend_weights,
)
from ivc_jax.methods.pyramiddrop import PyramidDrop

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
# The released tables (LLaVA-1.5-7B), one number a benchmark.
TABLES = {
    "pyramiddrop": "1.8777 2.2938 2.3291 1.8094 2.1597 1.4484 1.5516 1.5248 1.4931 2.3768",
    "sparsevlm": "2.1866 1.3232 2.6663 1.8099 2.3696 1.5767 1.7206 1.8375 1.4944 2.4293",
    "himap": "1.1738 1.2490 1.2955 0.8504 1.2732 1.1334 0.9816 0.9254 0.8510 0.9791",
    "tokencarve": "0.8450 0.9593 0.9860 0.6787 0.9755 0.8227 0.6783 0.7447 0.6397 0.9755",
}


def model_config() -> ModelConfig:
    decoder = DecoderConfig(32, 8, 8, 1, 1, 9, RopeConfig(128, 1e6, (16, 24, 24)))
    return ModelConfig("qwen2_vl", VisionConfig(1, 8, 1, 8, 8), decoder, 1, 2, 3, 4)


def kept(method, layout, attention=None, number=0) -> list[list[int]]:
    (request,) = method.requests(method.stages[number])
    rows = draw_attention(layout) if attention is None else jnp.asarray(attention, jnp.float32)
    return listed(run_stage(method, layout, {request: rows}, number))


def places(count, endpoint=False) -> np.ndarray:
    return np.arange(count) / max(count - endpoint, 1)


def row(values) -> jnp.ndarray:
    return jnp.asarray(values, jnp.float32)[None]


def top(scores, count) -> list[int]:
    rank = scoring.rank_in_segment(scores, jnp.zeros(scores.shape, int), jnp.isfinite(scores))
    return np.flatnonzero(rank[0] < count).tolist()


def test_worked_example():
    weights = trend_weights(row(places(8)), SIGMA)
    np.testing.assert_allclose(0.05 / weights[0], TREND, atol=5.1e-6)
    corrected = debias(row(SCORES), weights)
    np.testing.assert_allclose(corrected[0] / 0.05, CORRECTED, atol=5.1e-6)
    assert top(row(SCORES), 4) == [2, 5, 6, 7]
    assert top(corrected, 4) == [0, 2, 5, 6]
    pad = jnp.arange(8)[None] >= 6
    padded = debias(row(SCORES), weights, pad)
    assert top(padded, 4) == [0, 2, 3, 5]
    assert padded[0, 6:].tolist() == [-np.inf] * 2
    # A token without attention is still better than padding.
    nothing = debias(jnp.zeros((1, 8)), weights, ~pad)
    assert top(nothing, 1) == [6]


def test_half_precision_scores_are_corrected_in_float32():
    corrected = debias(row(SCORES).astype(jnp.bfloat16), trend_weights(row(places(8)), SIGMA))
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
    weights = cubic_weights(row(places(8, endpoint=True)))
    expected = [1.0, 0.85954, 0.82286, 0.80580, 0.75412, 0.64273, 0.49607, 0.35824]
    np.testing.assert_allclose(weights[0], expected, atol=5.1e-6)


def test_released_numbers():
    for host, table in TABLES.items():
        mean = np.mean([float(number) for number in table.split()])
        np.testing.assert_allclose(RELEASED_SIGMAS[host], mean, atol=5.1e-4)
    end = trend_weights(row([1.0]), RELEASED_SIGMAS["fastv"])
    np.testing.assert_allclose(end, cubic_weights(row([1.0])), atol=2e-5)


@pytest.mark.parametrize(
    ("width", "height", "threshold", "first", "rows"),
    [
        (640, 480, 0.5, 3, 18),
        (640, 480, 0.01, 3, 18),
        (800, 500, 0.5, 4, 16),
        (800, 500, 0.01, 5, 14),
        (336, 336, 0.01, 0, 24),
    ],
)
def test_letterbox_padding(width, height, threshold, first, rows):
    content = np.zeros((24, 24), bool)
    content[first : first + rows] = True
    pad = letterbox_padding(width, height, 24, threshold)
    assert pad.dtype == bool
    assert pad.tolist() == (~content).ravel().tolist()
    upright = letterbox_padding(height, width, 24, threshold)
    assert upright.tolist() == (~content.T).ravel().tolist()


def test_letterbox_of_a_sliver():
    # Two patches of the middle line are a quarter full each.
    assert letterbox_padding(8, 1, 4).all()
    assert letterbox_padding(8, 1, 4, 0.74).sum() == 16
    assert letterbox_padding(8, 1, 4, 0.75).sum() == 8


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
    host, layout = PyramidDrop().resolve(model_config()), make_layout(SAMPLES)
    method = WithPoRe(PyramidDrop(), sigma=9.0).resolve(model_config())
    assert method.stages == host.stages
    assert kept(method, layout, number=0) != kept(host, layout, number=0)
    for number in (1, 2):
        assert kept(method, layout, number=number) == kept(host, layout, number=number)


def test_hosts_on_the_worked_example():
    layout = make_layout([(1, (2, 4), 2)])
    rows = SCORES[None, None, None]
    method = WithPoRe(PyramidDrop(), sigma=SIGMA).resolve(model_config())
    assert kept(method, layout, rows) == [[0, 2, 5, 6]]
    assert kept(method.host, layout, rows) == [[2, 5, 6, 7]]
    wide = make_layout([(1, (2, 4), 2)], visual_slots=11)
    assert kept(WithPoRe(HOST, sigma=SIGMA), wide, np.pad(rows, [(0, 0)] * 3 + [(0, 3)])) == [
        [0, 2, 5, 6]
    ]


def test_the_host_decides_the_rest():
    host = PyramidDrop(budget=0.3, per_image=True)
    method = WithPoRe(host, sigma=1.0).resolve(model_config())
    assert method.name == "pyramiddrop+pore"
    assert method.host == host.resolve(model_config())
    for stage in method.stages:
        assert method.requests(stage) == method.host.requests(stage)
        assert method.capacity(stage, 41, 2) == method.host.capacity(stage, 41, 2)


@pytest.mark.parametrize("fields", [{}, {"per_image_trend": True, "endpoint": True}], ids=str)
def test_padding_and_batch_mates_change_nothing(fields):
    method = WithPoRe(HOST, sigma=1.5, **fields)
    alone = [kept(method, make_layout([sample]))[0] for sample in (PAIR, OTHER)]
    bucket = {"text_slots": 31, "visual_slots": 100, "num_images": 4, "num_positions": 99}
    for order in ([0, 1, 3], [3, 1, 0]):
        layout = make_layout([SAMPLES[i] for i in order], **bucket)
        rows = jnp.where(layout.visual_valid[:, None, None], draw_attention(layout), jnp.nan)
        assert kept(method, layout, rows) == [[*alone, None, []][i] for i in order]


def test_a_bucket_without_images_is_empty():
    for per_image in (False, True):
        method = WithPoRe(HOST, sigma=1.0, per_image_trend=per_image)
        signals = {AttentionRows(1): jnp.zeros((1, 3, 1, 0))}
        assert listed(method.select(signals, make_layout([(5,)]), method.stages[0], 0)) == [[]]


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
