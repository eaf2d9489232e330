"""What a visual takes up: drawn examples, and one truth for all who ask."""

import dataclasses

import numpy as np
import pytest
from helpers.tiny import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from ivc_jax.families import parse_config
from ivc_jax.inputs.footprint import find_footprint

PLAIN = parse_config(tiny_config())
WINDOWED = parse_config(tiny_config(family="qwen2_5_vl"))  # 2 x 2 cells, 4 ids a second


def test_an_image_as_drawn():
    taken = find_footprint((1, 4, 4), PLAIN)
    assert (taken.rows, taken.patches, taken.count, taken.span) == (1, 16, 4, 2)
    assert taken.slots == slice(16)  # they stay in order
    assert taken.source.tolist() == [0, 1, 2, 3]
    assert taken.grid.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert taken.positions.tolist() == taken.grid.tolist()
    assert taken.patch_positions[0, :8].tolist() == [
        *([0, 0], [0, 1], [1, 0], [1, 1]),
        *([0, 2], [0, 3], [1, 2], [1, 3]),
    ]


def test_windows_as_drawn():
    taken = find_footprint((1, 6, 6), WINDOWED)
    assert (taken.rows, taken.patches, taken.count, taken.span) == (1, 64, 9, 3)
    assert taken.source.tolist() == [0, 1, 4, 2, 3, 5, 8, 9, 12]
    assert taken.slots.reshape(9, 4)[:, 0].tolist() == [4 * cell for cell in taken.source]
    first = taken.patch_positions[0, ::4] // 2  # of each cell of the row
    found = [-1 if row < 0 else 3 * row + column for row, column in first.tolist()]
    assert found == [0, 1, 3, 4, 2, 5, -1, -1, 6, 7, -1, -1, 8, -1, -1, -1]


def test_slices_are_rows_of_their_own():
    taken = find_footprint((3, 2, 4), PLAIN, seconds=0.7)
    assert (taken.rows, taken.patches, taken.count, taken.span) == (3, 8, 6, 2)
    assert taken.source.tolist() == list(range(6))
    assert taken.grid[:, 0].tolist() == taken.positions[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert (taken.patch_positions == taken.patch_positions[0]).all()


@pytest.mark.parametrize(
    ("seconds", "ids"),
    # 4 ids a second; images count frames whatever the model says of time
    [(None, [0, 1, 2]), (0.7, [0, 2, 5]), (0.0, [0, 0, 0]), (1e30, [0, 2**30, 2**30])],
)
def test_time_is_rounded_down(seconds, ids):
    taken = find_footprint((3, 2, 2), WINDOWED, seconds)
    assert taken.positions.tolist() == [[each, 0, 0] for each in ids]
    assert taken.grid[:, 0].tolist() == [0, 1, 2]


def test_on_a_line_tokens_follow_each_other():
    rope = dataclasses.replace(PLAIN.decoder.rope, sections=None)
    decoder = dataclasses.replace(PLAIN.decoder, rope=rope)
    taken = find_footprint((2, 4, 4), dataclasses.replace(PLAIN, decoder=decoder), 1.0)
    assert taken.positions.tolist() == [[slot] * 3 for slot in range(8)]
    assert taken.span == 8
    assert taken.grid[5].tolist() == [1, 0, 1]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_a_token_is_the_cell_of_its_patches(frames, rows, columns, side):
    """Through slots and source alike: windows hide nothing and double nothing."""
    vision = dataclasses.replace(WINDOWED.vision, window_size=side * 8)
    config = dataclasses.replace(WINDOWED, vision=vision)
    taken = find_footprint((frames, 2 * rows, 2 * columns), config, 1.0)
    cells = taken.patch_positions.reshape(-1, 4, 2)[taken.source]  # [v, 4, 2]
    assert (cells // 2 == taken.grid[:, None, 1:]).all()
    assert (cells % 2 == [[0, 0], [0, 1], [1, 0], [1, 1]]).all()
    assert len(set(taken.source.tolist())) == taken.count == frames * rows * columns
    valid = taken.patch_positions[..., 0] >= 0
    assert valid.sum(axis=1).tolist() == [4 * rows * columns] * frames
    assert (
        np.flatnonzero(valid[0]).tolist() == np.sort(np.arange(taken.patches)[taken.slots]).tolist()
    )
    assert taken.patches % vision.row_unit == 0
    # A window is whole in one stretch of slots: its cells lie within `side` of each other.
    for window in taken.patch_positions.reshape(-1, vision.row_unit, 2) // 2:
        real = window[window[:, 0] >= 0]
        assert (np.ptp(real, axis=0) < side).all() if len(real) else True
