"""InternVL converted, in int8, and over a mesh."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from families.internvl import hf_arrays
from safetensors.numpy import load_file

import ivc_jax
from checkpoints_convert.__main__ import main as convert
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.model import find_family
from ivc_jax.nn.layers import dequantized
from ivc_jax.weights.keymap import to_hf_names


def test_the_layout_of_transformers_is_converted_and_verified(tiny_hf, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = tiny_hf(family="internvl", generation="old")
    assert convert([str(path), str(tmp_path / "target"), "--verify"]) == 0
    assert "verify, image prompt: largest difference" in capsys.readouterr().out


def test_the_layout_of_the_authors_is_converted_and_goes_back(tiny_hf, tmp_path, capsys):
    path = tiny_hf(family="internvl_chat", generation="old")
    assert convert([str(path), str(tmp_path / "target")]) == 0
    first, second = (ivc_jax.load(folder)[0] for folder in (path, tmp_path / "target"))
    assert first.config == second.config
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, second.params))
    published = dict(to_hf_names(second.params, second.config, find_family(path).rules))
    stored = load_file(path / "model.safetensors")  # with the fused wqkv
    assert published.keys() == stored.keys()
    for name, tensor in published.items():
        np.testing.assert_array_equal(tensor, stored[name])
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    assert convert([str(path), str(tmp_path / "again"), "--verify"]) == 1
    assert "transformers, which has no model_type 'internvl_chat'" in capsys.readouterr().err


def test_int8_answers_are_those_of_the_rounded_weights(tiny_hf):
    """Rows of a fused tensor are rounded as rows of their own."""
    pytest.importorskip("qwix")
    path = tiny_hf(family="internvl_chat", generation="old")
    batch = ivc_jax.Batch.from_hf(**hf_arrays([(3, (1,), 5), (11,)]))
    plain, stored = (
        ivc_jax.load(path, dtype="float32", processor=False, weights=weights)[0]
        for weights in (None, "int8")
    )
    rounded = {**stored.params, "decoder": dequantized(stored.params["decoder"], np.float32)}
    again = ivc_jax.Model(stored.config, rounded)
    with jax.default_matmul_precision("highest"):
        exact, found, wanted = (
            np.asarray(ivc_jax.prefill(model, batch).logits) for model in (plain, stored, again)
        )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert 1e-3 < np.abs(exact - found).max() < 0.05 * np.abs(exact).max()


_SHARDED = """
import sys

import jax
import numpy as np
from families.internvl import hf_arrays

import ivc_jax
from ivc_jax.parallel.mesh import make_mesh

arrays = hf_arrays([(3, (3,), 2, (1,), 5), (11,), (4, (1,), 6), (2, (3,), 9)])
batch = ivc_jax.Batch.from_hf(**arrays, images_spatial_crop=[[2, 1], [1, 1], [1, 1], [1, 2]])
jax.config.update("jax_default_matmul_precision", "highest")
models = [
    ivc_jax.load(sys.argv[1], dtype="float32", mesh=mesh, processor=False)[0]
    for mesh in (None, make_mesh(data=2, model=2))
]
outputs = [ivc_jax.prefill(model, batch, "ivc:layer=2") for model in models]
difference = np.abs(np.asarray(outputs[0].logits) - np.asarray(outputs[1].logits)).max()
assert difference < 1e-4, difference
assert all(map(np.array_equal, *[each.kept for each in outputs]))
tokens = [ivc_jax.decode(m, p, 5, ()).tokens for m, p in zip(models, outputs)]
assert np.array_equal(*map(np.asarray, tokens))
print("done")
"""


def test_a_mesh_gives_the_same(tiny_hf):
    """Four CPU devices need a process of their own: the count is fixed when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED, str(tiny_hf(family="internvl_chat", generation="old"))],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([tests, *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("internvl2.5-8b", 8.08e9), ("internvl3-1b", 0.94e9), ("internvl2.5-26b", 25.5e9)],
)
def test_published_sizes_have_as_many_parameters_as_they_are_known_for(name, parameters):
    from ivc_jax.nn.decoder import init_params

    config = parse_config(list_sizes()[name])
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(parameters, rel=0.01)
