"""Tokens that stand in the place of others, and marked tokens that join them, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.methods.placed import place_tokens, unite
from ivc_jax.methods.testing import listed, spread_weights
from ivc_jax.types import Blend

PLACES = [0, 1, 0, 1, 5, 5]


def place(visual_count, dense=False):
    """Six tokens, each half of token 0 and half of token 4."""
    index, share = jnp.tile(jnp.array([0, 4], jnp.int32), (1, 6, 1)), jnp.full((1, 6, 2), 0.5)
    weights = Blend(index, share)
    if dense:
        weights = jnp.zeros((1, 6, 7)).at[..., jnp.array([0, 4])].set(0.5)
    places, valid = jnp.array([PLACES], jnp.int32), jnp.ones((1, 6), bool)
    return place_tokens(places, valid, weights, jnp.array([visual_count], jnp.int32))


def mark(*tokens):
    return jnp.zeros((1, 7), bool).at[0, jnp.array(tokens)].set(True)


def test_a_token_uses_up_the_slot_of_its_place_or_the_next_free_one():
    assert listed(place(7)) == [[0, 1, 2, 3, 5, 6]]
    assert listed(place(6)) == [[0, 1, 2, 3, 4, 5]]  # behind the last there is none


@pytest.mark.parametrize("dense", [False, True])
def test_a_marked_token_comes_back_in_its_stead_once(dense):
    united = unite(place(7, dense), mark(1, 6), 7, jnp.array([7], jnp.int32))
    assert united.place.tolist() == [[*PLACES, 6]]
    mixed = np.zeros(7)
    mixed[[0, 4]] = 0.5
    rows = [mixed, np.eye(7)[1], mixed, mixed, mixed, mixed, np.eye(7)[6]]
    np.testing.assert_array_equal(spread_weights(united, 7)[0], rows)


def test_marked_tokens_stay_and_the_last_of_the_others_go():
    united = unite(place(6), mark(2, 3), 6, jnp.array([6], jnp.int32))
    assert united.place.tolist() == [[0, 1, 0, 1, 2, 3]]
    assert listed(united) == [[0, 1, 2, 3, 4, 5]]
