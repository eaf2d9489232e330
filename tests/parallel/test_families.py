"""Families over a mesh of two by two CPU devices: the same tokens kept, the same answers."""

import os
import subprocess
import sys

import pytest

_SHARDED = """
import sys

import jax
import numpy as np
from helpers.batches import show_pictures

import ivc_jax
from ivc_jax.parallel.mesh import make_mesh

jax.config.update("jax_default_matmul_precision", "highest")
outputs, spec = [], "nuwa+ivc"  # merges in the tower, cuts twice
for mesh in (None, make_mesh(data=2, model=2)):
    model, processor = ivc_jax.load(sys.argv[1], dtype="float32", mesh=mesh)
    batch = show_pictures(processor)
    batch = ivc_jax.Batch.join([batch, show_pictures(processor)])
    prompt = ivc_jax.prefill(model, batch, spec)
    outputs.append((prompt, np.asarray(ivc_jax.decode(model, prompt, 5, ()).tokens)))
weight = model.params["vision"]["blocks"][0]["mlp"]["fc1"]["weight"]
assert not weight.sharding.is_fully_replicated
(one, tokens), (four, again) = outputs
assert np.abs(np.asarray(one.logits) - np.asarray(four.logits)).max() < 1e-4
assert all(map(np.array_equal, one.kept, four.kept))
assert np.array_equal(tokens, again)
print("done")
"""


@pytest.mark.parametrize("family", ["llava"])
def test_a_mesh_changes_nothing(tiny_hf, family):
    """Four CPU devices need a process of their own: the count is fixed when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    tests = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([tests, *sys.path])
    folder = tiny_hf(family=family, num_hidden_layers=4)
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED, str(folder)],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout
