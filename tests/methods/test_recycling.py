"""The parts of SparseVLM on worked numbers: raters, density peaks, gravity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.config import RopeConfig
from ivc_jax.methods.drawn import make_layout
from ivc_jax.methods.recycling import find_peaks, merge
from ivc_jax.methods.requests import AttentionRows, Embeddings, Hidden, TokenVectors
from ivc_jax.methods.sparsevlm import (
    SparseVLM,
    compute_gravity,
    divide_by_gravity,
    find_raters,
    match,
)
from ivc_jax.methods.testing import listed, run_stage

# Example (a): four text tokens behind six visual ones; the raters are the first and the third.
VISUAL = [[1, 0], [0.5, 0.5], [0, 1], [1, 1], [-1, 0], [0, -1]]
TEXT = [[1, 0.2], [0, 0], [0.3, 1], [-0.5, -0.5]]
ROWS = [[0.1, 0.05, 0.2, 0.02, 0.08, 0.03], [9] * 6, [0.04, 0.12, 0.02, 0.16, 0.06, 0.01], [9] * 6]


# These programs run once or twice: compiling them well would cost more than it saves.
quick = {"compiler_options": {"xla_backend_optimization_level": 0}}
jitted_peaks = jax.jit(find_peaks, static_argnums=3, **quick)
jitted_raters = jax.jit(find_raters, **quick)


def example_a():
    embeddings = TokenVectors(jnp.array([VISUAL], jnp.float32), jnp.array([TEXT], jnp.float32))
    rows = jnp.array([[ROWS, ROWS]], jnp.float32)
    hidden = TokenVectors(jnp.array([VISUAL], jnp.float32), None)
    signals = {Embeddings(): embeddings, AttentionRows(0, "text"): rows, Hidden(): hidden}
    return make_layout([((2, 3), 4)]), signals


def test_raters_and_their_scores():
    layout, signals = example_a()
    score, asked = match(signals[Embeddings()], layout)
    assert asked.all()
    np.testing.assert_allclose(score[0], [0.29147, 0.19836, 0.30309, 0.20707], atol=5e-6)
    method = SparseVLM(layers=(1,), ratios=(0.5,), recycle=False)
    found = method.scores(signals, layout, method.stages[0])
    np.testing.assert_allclose(found[0], [0.07, 0.085, 0.11, 0.09, 0.07, 0.02], atol=1e-6)
    chosen = run_stage(method, layout, signals)
    assert listed(chosen) == [[1, 2, 3]]
    assert chosen.carry.tolist() == [[True, False, True, False]]
    assert chosen.weights is None


def test_raters_come_from_the_text_after_the_first_image_or_are_all_of_it():
    layout = make_layout([(2, (1, 2), 1, (1, 2), 2), (3, (2, 2), 1), (4,), (1, (2, 2), 4)])
    visual = jnp.ones((4, 4, 4)).at[3].set(200 * jnp.eye(4)[jnp.array([0, 0, 1, 2])])
    text = jnp.zeros((4, 5, 4)).at[0, 0].set(9.0).at[0, 2].set(1.0).at[3, 1:].set(jnp.eye(4))
    chosen = jitted_raters(TokenVectors(visual, text), layout)
    assert chosen.tolist() == [
        [False, False, True, False, False],  # the text between the images, not that before
        [False, False, False, True, False],  # a single token is never above the mean
        [False] * 5,
        [False, True, False, False, False],  # of 1/2, 1/4, 1/4, 0 around the mean 1/4
    ]
    alike = jitted_raters(TokenVectors(visual, jnp.ones((4, 5, 4))), layout)
    assert alike[0].tolist() == [False, False, True, True, True]


POINTS = [(0, 0), (0.2, 0.1), (0.1, 0.35), (0.5, 0.2), (2, 2), (2.3, 2.15), (1.9, 2.5), (2.2, 1.6)]
POINTS += [(0.1, 2.1), (0, 2.5), (0.4, 2.3), (1.2, 1.1)]


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_density_peaks_worked_example(shift):
    vectors = np.full((2, 14, 2), np.nan, np.float32)
    vectors[0, :12] = np.array(POINTS) + shift
    valid = jnp.arange(14) < jnp.array([12, 0])[:, None]
    peaks = jitted_peaks(jnp.asarray(vectors), valid, jnp.array([3, 0]), 5)
    rho = [0.97004, 0.97979, 0.96641, 0.95401, 0.94925, 0.93629, 0.91355, 0.91813]
    rho += [0.95123, 0.94020, 0.94649, 0.65377]
    near = 1e-5 if shift == 0 else 1e-3  # the points themselves are rounded
    np.testing.assert_allclose(np.exp(peaks.log_density[0, :12]), rho, atol=near)
    prominence = np.exp(peaks.log_prominence[0, jnp.array([1, 4, 8])])
    np.testing.assert_allclose(prominence, [2.18127, 1.27708, 1.17709], atol=near)
    assert peaks.centre[0, :12].tolist() == [1, 1, 1, 1, 4, 4, 4, 4, 8, 8, 8, 4]
    owner = jnp.where(valid[:1], peaks.centre[:1], -1)
    chosen = merge(owner, jnp.zeros((1, 14), bool), 4)
    assert listed(chosen) == [[1, 4, 8]]
    merged = chosen.weights[0, :3, :12] @ (jnp.asarray(POINTS) + shift)
    expected = [[0.2, 0.1625], [1.92, 1.87], [0.16667, 2.3]]
    np.testing.assert_allclose(merged / (1 - 1e-6 / 4) - shift, expected, atol=2 * near)


def test_ties_of_density_go_to_the_lower_slot():
    # Two pairs of mutual nearest neighbours, c = 2: the points of a pair tie in density. With c = 1
    # all points tie, and the cluster is the mean of all, whatever its centre.
    line = np.full((2, 14, 2), 9, np.float32)
    line[:, :4] = [[0, 0], [0, 1], [0, 10], [0, 11.5]]
    valid = jnp.arange(14) < jnp.full((2, 1), 4)
    peaks = jitted_peaks(jnp.asarray(line), valid, jnp.array([2, 1]), 5)
    assert peaks.log_density[0, 0] == peaks.log_density[0, 1] > peaks.log_density[0, 2]
    assert peaks.centre[:, :4].tolist() == [[0, 0, 2, 2], [0, 0, 0, 0]]


def test_given_scores_select_and_the_methods_own_recycle():
    layout, signals = example_a()
    method = SparseVLM(layers=(1,), ratios=(1 / 3,))
    (stage,) = method.stages
    given = jnp.array([[9.0, 0, 0, 0, 0, 8]])
    choose = jax.jit(lambda given: method.choose(given, signals, layout, stage, 3), **quick)
    chosen = choose(given)
    # Tokens 1 to 4 are dropped, two of them recycled: own scores .085 .11 .09 .07.
    assert listed(chosen) == [[0, 2, 5]]
    np.testing.assert_allclose(chosen.weights[0, 1], [0, 0, 0.5, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(chosen.weights[0, 0], np.eye(6)[0])


def test_gravity_of_llama_and_its_bound():
    llama = RopeConfig(128, 1e4)
    pull = compute_gravity(np.array([0, 1, 10, 100, 600]), llama)
    np.testing.assert_allclose(pull, [11.31371, 10.97672, 7.56958, 5.39937, 2.34931], atol=5e-6)
    tail = compute_gravity(np.arange(1800), llama)
    assert np.flatnonzero(tail <= 0)[0] == 1707
    layout = make_layout([((1, 2), 1)], num_positions=1800)
    layout = layout.replace(positions=jnp.broadcast_to(jnp.array([0, 1705, 1707]), (3, 1, 3)))
    found = divide_by_gravity(jnp.ones((1, 1, 1, 2)), layout, llama)
    np.testing.assert_allclose(
        found[0, 0, 0], [2.0, 1 / compute_gravity(np.array(2), llama)], rtol=1e-6
    )
