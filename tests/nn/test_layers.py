"""Products with weights that lie as [out, in], for one row, a few, and many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.nn import layers

pytestmark = pytest.mark.usefixtures("highest_precision")


@pytest.mark.parametrize("shape", [(1,), (2, 1), (8, 1), (4, 9), (3, 5, 2)])
def test_few_rows_multiply_as_many_do(shape, monkeypatch):
    monkeypatch.setattr(layers, "_LARGE", 1)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((*shape, 24), np.float32)
    weight = draw.standard_normal((14, 24), np.float32)
    found = jax.jit(layers.multiply)(jnp.asarray(x), jnp.asarray(weight))
    np.testing.assert_allclose(found, x @ weight.T, rtol=0, atol=1e-5)
    odd = jax.jit(layers.multiply)(jnp.asarray(x), jnp.asarray(weight[:13]))
    np.testing.assert_allclose(odd, found[..., :13], rtol=0, atol=1e-5)


def test_a_linear_layer_keeps_the_layout_of_checkpoints():
    layer = layers.Linear(3)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 5)))["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {"weight": (3, 5), "bias": (3,)}
    given = {"weight": jnp.arange(15.0).reshape(3, 5), "bias": jnp.array([1.0, 2.0, 3.0])}
    found = layer.apply({"params": given}, jnp.array([[1.0, 0, 0, 0, 2.0]]))
    assert found.tolist() == [[0 + 8 + 1, 5 + 18 + 2, 10 + 28 + 3]]
