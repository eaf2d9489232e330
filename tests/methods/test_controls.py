"""What goes in the place of the IVC tokens: worked examples, and equal counts in every image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import kept_sets
from helpers.reference import SAMPLES

from ivc_jax.methods import IVCRemoval, controls
from ivc_jax.methods.cells import draw_cells
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import RopeSettings
from ivc_jax.methods.select import Segments
from ivc_jax.methods.testing import ROPE

IVC = """
    x x . . .
    . . . x .
    . . . . ."""
DRAWS = [  # of every cell
    *(0.10, 0.90, 0.30, 0.20, 0.80),
    *(0.60, 0.50, 0.40, 0.95, 0.70),
    *(0.15, 0.25, 0.35, 0.45, 0.55),
]
WORKED = {
    "ivc": IVC,
    "random": """
    . x . . x
    . . . x .
    . . . . .""",
    "other": """
    . . . . x
    x . . . x
    . . . . .""",
    # two others of the first row, one of the second, largest draws first
    "rank": """
    . . x . x
    . . . . x
    . . . . .""",
    "first": """
    x x x . .
    . . . . .
    . . . . .""",
    "last": """
    . . . . .
    . . . . .
    . . x x x""",
    "nearest": """
    x x . . .
    x . . . .
    . . . . .""",
    "first_columns": """
    x . . . .
    x . . . .
    x . . . .""",
    "last_columns": """
    . . . . x
    . . . . x
    . . . . x""",
    "mirror_lr": """
    . . . x x
    . x . . .
    . . . . .""",
    "mirror_ud": """
    . . . . .
    . . . x .
    x x . . .""",
    "mirror_both": """
    . . . . .
    . x . . .
    . . . x x""",
    # around the cell of 0.95; of its four neighbours the first two
    "block": """
    . . . x .
    . . x x .
    . . . . .""",
    # frac(row / p + column / p^2) with p = 1.3247: 0, .70 .. are (0,0) 0, (0,4) .28, (2,1) .08
    "lattice": """
    x . . . .
    . . . . x
    . x . . .""",
}
# What may go is a dot; an object, #, stays. `first` and the mirrors of the same IVC tokens:
OBJECTS = """
    . # . . .
    . # . . #
    . . . . ."""
AMONG = {
    "ivc": """
    x . . . .
    . . . x .
    . . . . .""",
    "first": """
    x . x . .
    . . . . .
    . . . . .""",
    # (1, 3) becomes (1, 1), an object: the nearest of the background, (1, 0), (1, 2) or (2, 1)
    "mirror_lr": """
    . . . . x
    x . . . .
    . . . . .""",
    "last_columns": """
    . . . . x
    . . . . .
    . . . . x""",
    "rank": """
    . . . . x
    x . . . .
    . . . . .""",
}


def read(drawn, mark="x") -> np.ndarray:
    return np.array([[cell == mark for cell in line.split()] for line in drawn.strip().split("\n")])


def removed(control, chosen, free, draws=None, monkeypatch=None, shape=None) -> np.ndarray:
    """Remove as many tokens of one image as are chosen."""
    layout = make_layout([(2, shape or chosen.shape, 1)])
    if draws is not None:
        given = jnp.asarray([draws], jnp.float32)
        monkeypatch.setattr(controls, "draw_cells", lambda layout, seed: given)
    chosen, free = (jnp.asarray(each.reshape(1, -1)) for each in (chosen & free, free))
    order = controls.order_tokens(control, layout, chosen, free, 0)
    rank = Segments.by_image(layout).rank(order, among=free, tolerance=0.0)
    return np.asarray(rank < chosen.sum())[0]


@pytest.mark.parametrize("control", controls.CONTROLS)
def test_worked_examples(control, monkeypatch):
    found = removed(control, read(IVC), np.ones((3, 5), bool), DRAWS, monkeypatch)
    np.testing.assert_array_equal(found.reshape(3, 5), read(WORKED[control]))


@pytest.mark.parametrize("control", AMONG)
def test_worked_examples_of_the_background(control, monkeypatch):
    found = removed(control, read(IVC), ~read(OBJECTS, "#"), DRAWS, monkeypatch)
    np.testing.assert_array_equal(found.reshape(3, 5), read(AMONG[control]))


def test_partly_filled_columns_are_filled_from_the_top():
    chosen = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    found = removed("last_columns", chosen, np.ones((3, 4), bool)).reshape(3, 4)
    np.testing.assert_array_equal(found, [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("chosen", "draws", "wanted"),
    [
        # a whole row: all of the next one
        ([[1, 1], [0, 0], [0, 0]], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [[0, 0], [1, 1], [0, 0]]),
        # rows above and below are as near: draws decide between them
        ([[0, 0], [1, 1], [0, 0]], [0.1, 0.7, 0.3, 0.4, 0.5, 0.6], [[0, 1], [0, 0], [0, 1]]),
        ([[0, 1], [0, 1], [0, 0]], [0.1, 0.7, 0.3, 0.4, 0.5, 0.6], [[1, 0], [1, 0], [0, 0]]),
    ],
)
def test_rows_that_run_out_are_helped_by_the_nearest(chosen, draws, wanted, monkeypatch):
    found = removed("rank", np.array(chosen, bool), np.ones((3, 2), bool), draws, monkeypatch)
    np.testing.assert_array_equal(found.reshape(3, 2), wanted)


def test_frames_follow_each_other_in_order_and_are_mirrored_each():
    chosen = np.zeros((2, 2, 3), bool)
    chosen[0, 0, 0] = chosen[0, 1, 0] = chosen[1, 0, 1] = True
    whole = np.ones((2, 2, 3), bool)
    find = lambda control: np.argwhere(  # noqa: E731
        removed(control, chosen, whole, shape=(2, 2, 3)).reshape(2, 2, 3)
    ).tolist()
    assert find("first") == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert find("nearest") == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert find("first_columns") == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert find("mirror_both") == [[0, 0, 2], [0, 1, 2], [1, 1, 1]]
    # each from its own row, which is that of its frame
    assert [cell[:2] for cell in find("rank")] == [[0, 0], [0, 1], [1, 0]]


def test_what_stands_in_is_of_the_same_image():
    """Of two alike: the mirror image of the first token is an object in the first of them."""
    layout = make_layout([(1, (1, 3), 1, (1, 3), 1)])
    chosen, free = (np.zeros((1, 6), bool), np.ones((1, 6), bool))
    chosen[0, 0], free[0, 2] = True, False
    found = controls.order_tokens("mirror_lr", layout, jnp.asarray(chosen), jnp.asarray(free), 0)
    assert np.flatnonzero(found).tolist() == [1]


LAYOUT = make_layout(SAMPLES)
LARGE = {"cos_fraction": 0.2, "sin_fraction": 0.25}
IMAGE = np.asarray(LAYOUT.image_id)
# A third of the tokens hold an object, other ones in every sample.
OBJECT = np.random.default_rng(1).random(IMAGE.shape) < 0.35


NOTHING = np.zeros_like(OBJECT)


def removed_masks(control, objects, layout=LAYOUT, **fields) -> np.ndarray:
    """Mark what goes, [B, V]."""
    fields = {**LARGE, "among": "background", **fields}
    method = IVCRemoval(layer=2, control=control, seed=3, **fields)
    gone = np.array(layout.visual_valid)
    for row, kept in zip(
        gone, kept_sets(method, layout, objects=jnp.asarray(objects)), strict=True
    ):
        row[kept] = False
    return gone


def mark_ivc(layout=LAYOUT) -> np.ndarray:
    return np.array(IVCRemoval(layer=2, **LARGE).coordinates.mark(layout, ROPE))


@pytest.mark.parametrize("control", controls.CONTROLS)
def test_every_image_loses_as_many_tokens_and_no_object(control):
    """Samples are ragged, two have two images, one of them a video."""
    for objects in (OBJECT, NOTHING):
        gone, wanted = removed_masks(control, objects), mark_ivc() & ~objects
        assert not (objects & gone).any()
        if control == "ivc":
            np.testing.assert_array_equal(gone, wanted)
        if control in controls.OUTSIDE:
            assert not (gone & wanted).any()
        for row, image in enumerate(IMAGE):
            for number in range(image.max() + 1):
                here = image == number
                assert gone[row, here].sum() == wanted[row, here].sum() > 0
    assert (OBJECT & mark_ivc()).any()


def test_without_objects_the_background_is_all():
    for control in ("ivc", "mirror_ud"):
        every = removed_masks(control, OBJECT, among="all")
        np.testing.assert_array_equal(every, removed_masks(control, NOTHING))


@pytest.mark.parametrize("control", controls.MIRRORS)
def test_mirrored_twice_is_the_set_itself(control):
    chosen, free = jnp.asarray(mark_ivc()), LAYOUT.visual_valid
    once = controls.order_tokens(control, LAYOUT, chosen, free, 0) > 0
    assert (once != chosen).any()
    assert (once.sum(axis=1) == chosen.sum(axis=1)).all()
    twice = controls.order_tokens(control, LAYOUT, once, free, 0) > 0
    np.testing.assert_array_equal(twice, chosen)


def test_blocks_lie_around_a_drawn_cell_of_every_image():
    gone, draws = (
        removed_masks("block", NOTHING),
        np.array(jax.jit(draw_cells, static_argnums=1)(LAYOUT, 3)),
    )
    for row, sample in enumerate(SAMPLES):
        cells, image = np.array(lay_out(sample)["grid"]), np.array(lay_out(sample)["image"])
        for number in set(image):
            own = np.flatnonzero(image == number)
            centre = own[draws[row, own].argmax()]
            far = ((cells[own] - cells[centre]) ** 2).sum(axis=1)
            wanted = own[np.argsort(far, kind="stable")][: gone[row, own].sum()]
            assert set(np.flatnonzero(gone[row] & (IMAGE[row] == number))) == set(wanted)


def test_matched_rows_hold_as_many_where_none_runs_out():
    layout = make_layout([(2, (12, 16), 3)])
    objects = np.zeros((1, layout.visual_slots), bool)
    fields = {"cos_fraction": 0.1, "sin_fraction": 0.1}
    gone, ivc = (
        removed_masks(control, objects, layout, **fields).reshape(12, 16).sum(axis=1)
        for control in ("rank", "ivc")
    )
    assert ivc.max() <= 8
    np.testing.assert_array_equal(gone, ivc)


def test_an_offset_moves_the_set_as_if_positions_were_moved():
    """A control with the same offset takes as many."""
    moved = LAYOUT.replace(positions=LAYOUT.positions + 40, num_positions=LAYOUT.num_positions + 40)
    shifted = removed_masks("ivc", NOTHING, position_offset=40)
    np.testing.assert_array_equal(shifted, removed_masks("ivc", NOTHING, moved))
    assert (shifted != removed_masks("ivc", NOTHING)).any()
    random = removed_masks("random", NOTHING, position_offset=40)
    np.testing.assert_array_equal(random.sum(axis=1), shifted.sum(axis=1))


def test_objects_are_asked_for_only_where_they_matter():
    for control in controls.CONTROLS:
        every = IVCRemoval(layer=2, control=control)
        assert every.requests(every.stages[0]) == (RopeSettings(),)
