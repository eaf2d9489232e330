"""One tiny model of four blocks and one collated batch, for tests that ask them many things."""

import pytest
from helpers.batches import BUCKET, batch_of

import ivc_jax
from ivc_jax.inputs.bucket import collate


@pytest.fixture(scope="module")
def loaded(tiny_hf):
    return ivc_jax.load(tiny_hf(num_hidden_layers=4), dtype="float32")


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def inputs(model):
    return collate(batch_of(0, 1, 2, 3), model.config, BUCKET)
