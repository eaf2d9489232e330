"""Received attention worked off in chunks of queries."""

import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.nn import attention


@pytest.mark.parametrize("receive", ["attention_received", "largest_attention_received"])
def test_chunks_change_nothing(receive, monkeypatch):
    random = np.random.default_rng(0)
    queries, keys = (
        jnp.asarray(random.normal(size=(2, 11, heads, 8)), jnp.float32) for heads in (4, 2)
    )
    weights = jnp.asarray(random.random((2, 11)), jnp.float32)
    given = queries, keys, jnp.arange(11) < jnp.array([[11], [7]]), weights
    whole = getattr(attention, receive)(*given)
    monkeypatch.setattr(attention, "_RECEIVED_BYTES", 4 * 2 * 3 * 11)  # three queries
    np.testing.assert_allclose(getattr(attention, receive)(*given), whole, atol=1e-6)
