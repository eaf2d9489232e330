"""Models, batches and outputs print as one readable line, never as arrays."""

import jax
import numpy as np
import pytest
from helpers.batches import BUCKET, batch_of

import ivc_jax
from ivc_jax.inputs.bucket import collate


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(num_hidden_layers=2), dtype="float32")[0]


def test_each_says_its_sizes_in_a_line(model, tiny_hf):
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params)) / 1e6
    cpu = str(jax.devices()[0])
    assert repr(model) == (
        f"Model(qwen2_vl, {count:.1f} M parameters, 2 blocks of width 64, float32, on 1 x {cpu})"
    )
    batch = batch_of(0, 1, 2, 3)
    lengths = [len(tokens) for tokens in batch.tokens]
    assert repr(batch) == (
        f"Batch(4 samples of {min(lengths)} to {max(lengths)} tokens, 3 images, 1 videos)"
    )
    assert repr(batch.images[0]) == "Visual(1 x 6 x 8 patches)"
    inputs = collate(batch, model.config, BUCKET)
    assert repr(inputs) == "Inputs(tokens [4, 56], visual tokens [4, 32], patches [5, 64, 96])"
    assert repr(jax.tree.map(lambda leaf: "spec", inputs)).startswith("Inputs(tokens [")
    prompt = ivc_jax.prefill(model, inputs, "fastv:layer=1,keep_ratio=0.5")
    assert repr(prompt) == (
        "Prefill(4 samples, vocabulary 272, cache of"
        f" {prompt.kv_bytes / 1e6:.3g} MB float32, blocks x slots: 1 x 56, 1 x 40)"
    )
    assert "no arrays" in repr(jax.tree.map(np.shape, prompt))
    out = ivc_jax.decode(model, prompt, 6)
    counts = [len(kept) for kept in prompt.kept]
    assert repr(out) == (
        f"Output(4 samples, at most 6 tokens each; {min(counts)} to {max(counts)} prompt tokens"
        f" kept, cache of {prompt.kv_bytes / 1e6:.3g} MB)"
    )
    assert repr(ivc_jax.Batch(())) == "Batch(0 samples of 0 to 0 tokens, 0 images, 0 videos)"
