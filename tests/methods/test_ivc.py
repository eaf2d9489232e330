"""IVC scores and sets against numbers worked out by hand and against the published figure."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.published import D_COS, D_SIN, E_COS, E_SIN

from ivc_jax import ivc
from ivc_jax.config import ConfigError, RopeConfig

# Example A: d = 8, base 10000, positions 5 .. 20, sums over the four planes.
A_V = [3.159983, 3.783688, 3.516271, 2.547976, 1.706392, 1.696185, 2.451917, 3.198948]
A_V += [3.166423, 2.296822, 1.299708, 1.000240, 1.581432, 2.416796, 2.647239, 1.971802]
A_U = [-0.424520, 0.351191, 1.378147, 1.794629, 1.294324, 0.407283, 0.011995, 0.527178]
A_U += [1.526359, 2.129600, 1.812220, 0.886988, 0.216449, 0.419889, 1.304035, 2.040911]

# Example B: d = 8, base 10000, grid 1 x 4 x 4 at position 3, means over planes and axes.
B_V = [
    [0.491222, 0.516366, 0.590813, 0.642789],
    [0.516366, 0.541509, 0.615957, 0.667932],
    [0.590813, 0.615957, 0.690405, 0.742380],
    [0.642789, 0.667932, 0.742380, 0.794356],
]
B_U = [
    [0.117409, 0.051323, 0.042896, 0.107539],
    [0.051323, -0.014763, -0.023190, 0.041453],
    [0.042896, -0.023190, -0.031617, 0.033026],
    [0.107539, 0.041453, 0.033026, 0.097668],
]

# Cells outlined in the published figure as (row, columns); it was drawn from half precision.
FIGURE_COS = {row: range(5) for row in range(5)}
FIGURE_COS |= {0: [*range(6), 8, 9, 10, 16], 1: [*range(6), 9, 10], 2: range(6)}
FIGURE_SIN = {0: [11, 17, 18], 1: [17, 18], 2: [18], 3: [18], 4: [11, 17, 18]}
FIGURE_SIN |= {5: [11, 12, 17, 18, 19], 6: [17, 18], 7: [18], 9: [18], 10: [11, 17, 18]}
FIGURE_SIN |= {11: [5, 10, 11, 12, 17, 18, 19], 12: [11, 17, 18, 19], 13: [18]}


def grid_positions(start: int, rows: int, columns: int) -> np.ndarray:
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([np.full_like(row, start), start + row, start + column])


def component(positions, fraction, which, **settings):
    fractions = {"cos": (fraction, 0.0), "sin": (0.0, fraction)}[which]
    return ivc.select(positions, cos_fraction=fractions[0], sin_fraction=fractions[1], **settings)


def figure_cells(rows) -> set[int]:
    return {row * 23 + column for row, columns in rows.items() for column in columns}


def axis_means(positions, **settings):
    rope = RopeConfig(**settings)
    tables = ivc.make_tables(rope, "all", int(positions.max()) + 1, axes=3)
    ids = jnp.asarray(positions[:, None])
    return [np.asarray(ivc.gather_scores(table, ids))[0] / 3 for table in tables]


def test_scores_are_sums_over_frequencies():
    V, U = ivc.scores(head_dim=8, theta=10000, num_positions=21)
    assert V.dtype == U.dtype == np.float64
    assert V.shape == (21,)
    np.testing.assert_allclose(V[5:], A_V, atol=5e-7)
    np.testing.assert_allclose(U[5:], A_U, atol=5e-7)
    assert V[0] == 4
    assert U[0] == 0


@pytest.mark.parametrize("subset", [[1, 3], [3, 1, 1], [False, True, False, True]])
def test_scores_of_a_frequency_subset(subset):
    V, U = ivc.scores(8, 10000.0, 50, np.array(subset))
    m = np.arange(50)
    np.testing.assert_allclose(V, np.cos(m * 0.1) + np.cos(m * 0.001), atol=1e-12)
    np.testing.assert_allclose(U, np.sin(m * 0.1) + np.sin(m * 0.001), atol=1e-12)


@pytest.mark.parametrize(
    ("fraction", "cos", "sin"),
    [(0.1, [1, 2], [9, 15]), (0.25, [1, 2, 7, 8], [3, 9, 10, 15])],
)
def test_one_dimensional_sets(fraction, cos, sin):
    positions, settings = np.arange(5, 21), {"head_dim": 8, "theta": 10000}
    assert component(positions, fraction, "cos", **settings).tolist() == cos
    assert component(positions, fraction, "sin", **settings).tolist() == sin
    both = ivc.select(positions, **settings, cos_fraction=fraction, sin_fraction=fraction)
    assert both.tolist() == sorted(cos + sin)


@pytest.mark.parametrize(
    ("fraction", "cos", "sin"),
    # Cell 11 beats its transpose 14, and 3 beats 12: exact ties go to the lower index.
    [(0.1, [11, 15], [0, 3]), (0.25, [10, 11, 14, 15], [0, 3, 12, 15])],
)
def test_grid_sets(fraction, cos, sin):
    positions, settings = grid_positions(3, 4, 4), {"head_dim": 8, "theta": 10000}
    assert component(positions, fraction, "cos", **settings).tolist() == cos
    assert component(positions, fraction, "sin", **settings).tolist() == sin


def test_grid_scores_are_means_over_axes_and_tie_when_transposed():
    V, U = axis_means(grid_positions(3, 4, 4), head_dim=8, theta=10000)
    np.testing.assert_allclose(V.reshape(4, 4), B_V, atol=1e-6)
    np.testing.assert_allclose(U.reshape(4, 4), B_U, atol=1e-6)
    assert np.array_equal(V.reshape(4, 4), V.reshape(4, 4).T)
    assert np.array_equal(U.reshape(4, 4), U.reshape(4, 4).T)


def test_qwen_size_sets_and_thresholds():
    positions, settings = grid_positions(15, 15, 23), {"head_dim": 128, "theta": 1e6}
    assert len(D_COS) == len(D_SIN) == round(0.1 * 345) == 34
    assert component(positions, 0.1, "cos", **settings).tolist() == D_COS
    assert component(positions, 0.1, "sin", **settings).tolist() == D_SIN
    assert ivc.select(positions, **settings).tolist() == sorted(D_COS + D_SIN)
    for score, last, following in zip(
        axis_means(positions, **settings), (0.742620, 0.122659), (0.742434, 0.122638), strict=True
    ):
        threshold = np.sort(score)[::-1][33]
        assert threshold == pytest.approx(last, abs=1e-6)
        assert score[score < threshold].max() == pytest.approx(following, abs=1e-6)


def test_qwen_size_sets_agree_with_the_published_figure():
    assert len(figure_cells(FIGURE_COS)) == len(figure_cells(FIGURE_SIN)) == 34
    assert len(figure_cells(FIGURE_COS) & set(D_COS)) == 27
    assert len(figure_cells(FIGURE_SIN) & set(D_SIN)) == 32


@pytest.mark.parametrize(
    ("which", "rows", "threshold", "above", "at_least"),
    [("cos", FIGURE_COS, 0.7421875, 25, 63), ("sin", FIGURE_SIN, 0.12255859375, 30, 40)],
)
def test_half_precision_reproduces_the_published_figure_up_to_ties(
    which, rows, threshold, above, at_least
):
    positions, settings = grid_positions(15, 15, 23), {"head_dim": 128, "theta": 1e6}
    tables = ivc.make_tables(RopeConfig(**settings), "all", 64, axes=3, score_dtype="bfloat16")
    table = tables[["cos", "sin"].index(which)]
    score = np.asarray(ivc.gather_scores(table, jnp.asarray(positions[:, None]), "bfloat16"))[0]
    assert np.sort(score)[::-1][33] == threshold
    sure, possible = (set(np.flatnonzero(mask)) for mask in (score > threshold, score >= threshold))
    assert (len(sure), len(possible)) == (above, at_least)
    assert sure < figure_cells(rows) < possible
    chosen = component(positions, 0.1, which, score_dtype="bfloat16", **settings)
    assert sure < set(chosen.tolist()) < possible
    assert len(chosen) == 34


def test_llava_size_sets():
    settings = {"head_dim": 128, "theta": 1e4}
    positions = np.arange(35, 35 + 576)
    assert component(positions, 0.05, "cos", **settings).tolist() == E_COS
    assert component(positions, 0.05, "sin", **settings).tolist() == E_SIN
    literal = component(np.arange(5, 5 + 576), 0.05, "cos", **settings).tolist()
    assert literal == [*range(28), 32]


@pytest.mark.parametrize(
    ("sections", "axes"),
    [((2, 3, 3), [0, 0, 1, 1, 1, 2, 2, 2]), ((4, 2, 2), [0, 1, 2, 0, 1, 2, 0, 0])],
)
def test_sectioned_scores_follow_the_section_of_each_axis(sections, axes):
    """Side by side, and in turns."""
    positions, interleaved = grid_positions(4, 6, 7), axes[1] == 1
    rope = RopeConfig(16, 1e4, sections)
    turns = positions[axes] * rope.frequencies[:, None]  # [F, n]
    for which, wave in (("cos", np.cos), ("sin", np.sin)):
        expected = np.sort(np.argsort(-wave(turns).sum(axis=0), kind="stable")[:8])
        chosen = component(
            *(positions, 0.2, which),
            **{"head_dim": 16, "theta": 1e4, "frequencies": "section", "sections": sections},
            interleaved=interleaved,
        )
        assert chosen.tolist() == expected.tolist()


def test_plane_subsets_enter_every_axis():
    positions, planes = grid_positions(4, 6, 7), [0, 2]
    V, _ = ivc.scores(16, 1e4, 20, planes)
    expected = np.argsort(-(V[positions[1]] + V[positions[2]]), kind="stable")[:8]
    chosen = component(positions, 0.2, "cos", head_dim=16, theta=1e4, frequencies=planes)
    assert chosen.tolist() == sorted(expected.tolist())
    for same in (np.array(planes), np.isin(np.arange(8), planes)):
        again = component(positions, 0.2, "cos", head_dim=16, theta=1e4, frequencies=same)
        assert again.tolist() == chosen.tolist()


def test_thirds_of_the_planes():
    positions, settings = grid_positions(90, 6, 7), {"head_dim": 16, "theta": 1e4}

    def chosen(frequencies):
        return ivc.select(positions, **settings, frequencies=frequencies).tolist()

    high, middle, low = map(chosen, ("high", "middle", "low"))
    assert high == chosen([0, 1, 2])
    assert middle == chosen([3, 4, 5])
    assert low == chosen([6, 7])
    assert high != middle != low


def test_tables_can_begin_anywhere():
    whole, tail = (
        ivc.make_tables(RopeConfig(16, 1e4), "all", count, first_position=first)
        for count, first in ((40, 0), (15, 25))
    )
    for long, short in zip(whole, tail, strict=True):
        np.testing.assert_array_equal(long[:, 25:], short)


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 34), (0.0, 0), (1.0, 345)])
def test_counts_round_half_to_even(fraction, count):
    chosen = component(np.arange(345), fraction, "cos", head_dim=8, theta=1e4)
    assert len(chosen) == count


def test_no_tokens_give_no_set():
    assert ivc.select(np.zeros((3, 0), int), 8, 1e4).tolist() == []
    assert ivc.select(np.array([7]), 8, 1e4, cos_fraction=1.0).tolist() == [0]


@pytest.mark.parametrize(
    ("positions", "settings", "message"),
    [
        (np.zeros((2, 4), int), {}, "positions must be"),
        (np.zeros(4), {}, "integers"),
        (np.array([-1, 3]), {}, "not negative"),
        (np.arange(4), {"cos_fraction": 1.5}, "cos_fraction"),
        (np.arange(4), {"sin_fraction": float("nan")}, "sin_fraction"),
        (np.arange(4), {"frequencies": "section"}, "sections"),
        (np.arange(4), {"frequencies": "most"}, "'low'.* or planes, got 'most'"),
        (np.arange(4), {"score_dtype": "float16"}, "score_dtype must be one of"),
        (np.arange(4), {"frequencies": [4]}, "between 0 and 3"),
        (np.arange(4), {"frequencies": [True]}, "4 planes"),
        (np.arange(4), {"frequencies": []}, "planes"),
    ],
)
def test_bad_arguments_are_named(positions, settings, message):
    with pytest.raises(ValueError, match=message):
        ivc.select(positions, 8, 1e4, **settings)


def test_a_third_of_too_few_planes_is_refused():
    with pytest.raises(ValueError, match="frequencies='low' holds none of the 2 planes"):
        ivc.select(np.arange(4), 4, 1e4, frequencies="low")


def test_odd_head_dim_is_refused():
    with pytest.raises(ConfigError, match="head_dim"):
        ivc.scores(7, 1e4, 4)


def test_rank_ties_go_to_the_lowest_index_and_nan_comes_last():
    nan = np.nan
    scores = np.array([[0.2, 0.1, 0.2, nan, -0.0, 0.0, np.inf, 9.0]], np.float32)
    segment = np.array([[0, 0, 0, 0, 1, 1, 0, -1]], np.int32)
    valid = segment >= 0
    rank = ivc.rank_in_segment(*map(jnp.asarray, (scores, segment, valid)))
    assert rank.tolist() == [[1, 3, 2, 4, 0, 1, 0, 8]]


def test_rank_does_not_need_contiguous_segments():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 4, (3, 40)).astype(np.float32)
    segment = draw.integers(-1, 3, (3, 40)).astype(np.int32)
    rank = ivc.rank_in_segment(*map(jnp.asarray, (scores, segment, segment >= 0)))
    rank = np.asarray(rank)
    for row in range(3):
        for number in range(3):
            members = np.flatnonzero(segment[row] == number)
            order = members[np.argsort(-scores[row, members], kind="stable")]
            assert rank[row, order].tolist() == list(range(len(members)))
    assert (rank[segment < 0] == 40).all()
