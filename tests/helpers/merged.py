"""Kept tokens and their weights against those that a reference lists."""

import numpy as np

from ivc_jax.methods.testing import listed
from ivc_jax.types import Selection


def check_merged(chosen: Selection, expected: list[dict[int, dict[int, float]]]) -> None:
    """Compare, by sample: kept token -> token that it came from -> weight."""
    assert listed(chosen) == [sorted(rows) for rows in expected]
    for row, rows in enumerate(expected):
        table = np.zeros(chosen.weights.shape[1:])
        for slot, token in enumerate(sorted(rows)):
            table[slot, list(rows[token])] = list(rows[token].values())
        np.testing.assert_allclose(chosen.weights[row], table, atol=1e-6)
