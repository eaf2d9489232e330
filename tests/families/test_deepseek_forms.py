"""Every form in which a DeepSeek-VL2 may lie: stacked, in int8, converted, on a mesh."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.mosaics import CASES, to_arrays, write_prompts

import ivc_jax
from checkpoints_convert import __main__ as command
from checkpoints_convert import convert as conversion
from ivc_jax.nn.blocks import Sections, stack, stack_sections
from ivc_jax.nn.layers import dequantized, is_quantized

pytestmark = pytest.mark.usefixtures("highest_precision")

SPEC = "ivc:layer=1,keep_ratio=0.5,combine=fill"


@pytest.fixture(scope="module")
def batch():
    return ivc_jax.Batch.from_hf(**to_arrays(write_prompts(CASES["ragged batch"])))


def assert_alike(models, batch, spec, tolerance=1e-5):
    """Compare prefill, caches, greedy tokens, steps and scores of two forms of one model."""
    ours, theirs = (ivc_jax.prefill(model, batch, spec) for model in models)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=tolerance)
    assert all(map(np.array_equal, ours.kept, theirs.kept))
    assert [span.keys.shape for span in ours.cache] == [span.keys.shape for span in theirs.cache]
    tokens = [
        ivc_jax.decode(m, p, 6, ()).tokens for m, p in zip(models, (ours, theirs), strict=True)
    ]
    assert np.array_equal(*tokens)
    steps = [list(ivc_jax.stream(model, batch, spec, 4, ())) for model in models]
    for one, other, token in zip(*steps, np.asarray(tokens[0]).T, strict=False):
        assert np.array_equal(one.tokens, other.tokens)
        assert np.array_equal(one.tokens, token)
    answers = np.asarray(tokens[0])[:, :3].tolist()
    scores = [ivc_jax.score(model, batch, answers, spec) for model in models]
    np.testing.assert_allclose(*scores, rtol=0, atol=10 * tolerance)


def test_stacks_of_two_kinds_are_the_blocks_apart(tiny_hf, batch):
    apart, _ = ivc_jax.load(tiny_hf(family="deepseek_vl2"), processor=False)
    vision, decoder = apart.params["vision"], apart.params["decoder"]
    layers = stack_sections(decoder["layers"])
    assert isinstance(layers, Sections)
    params = {
        "vision": {**vision, "blocks": stack(vision["blocks"])},
        "decoder": {**decoder, "layers": layers},
    }
    assert_alike((apart, ivc_jax.Model(apart.config, params)), batch, SPEC)


def test_int8_answers_are_those_of_the_rounded_weights(tiny_hf, batch):
    pytest.importorskip("qwix")
    path = tiny_hf(family="deepseek_vl2")
    stored, _ = ivc_jax.load(path, processor=False, weights="int8")
    assert stored.weights == "int8"
    layers = stored.params["decoder"]["layers"]
    assert isinstance(layers, Sections)
    mlp = layers.parts[1]["mlp"]
    assert is_quantized(mlp["experts"]["gate_proj"]["weight"])
    assert mlp["experts"]["gate_proj"]["weight"].scale.shape == (2, 8, 24, 1)
    assert not is_quantized(mlp["gate"]["weight"])
    rounded = {**stored.params, "decoder": dequantized(stored.params["decoder"], np.float32)}
    assert_alike((stored, ivc_jax.Model(stored.config, rounded)), batch, SPEC)
    plain, _ = ivc_jax.load(path, processor=False)
    distance = ivc_jax.prefill(plain, batch).logits - ivc_jax.prefill(stored, batch).logits
    assert 1e-3 < np.abs(distance).max() < 1


def test_it_is_converted_and_back(tiny_hf, tmp_path):
    source = tiny_hf(family="deepseek_vl2_base")
    conversion.convert(source, tmp_path / "converted")
    ours, theirs = (
        ivc_jax.load(path, processor=False)[0] for path in (source, tmp_path / "converted")
    )
    assert ours.config == theirs.config
    assert jax.tree.all(jax.tree.map(np.array_equal, ours.params, theirs.params))


def test_what_transformers_does_not_have_is_not_verified(tiny_hf, tmp_path, capsys):
    pytest.importorskip("transformers")
    source, target = str(tiny_hf(family="deepseek_vl2")), tmp_path / "converted"
    assert command.main([source, str(target), "--verify"]) == 1
    assert "transformers, which has no model_type 'deepseek_vl_v2'" in capsys.readouterr().err
    assert not target.exists()


_SHARDED = """
import sys
from pathlib import Path

import jax
import numpy as np
from helpers.mosaics import CASES, to_arrays, write_prompts
from jax.sharding import PartitionSpec as P

import ivc_jax
from ivc_jax.parallel.mesh import make_mesh

folder, spec, weights = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
prompts = [*CASES["ragged batch"], *CASES["one picture"]]
batch = ivc_jax.Batch.from_hf(**to_arrays(write_prompts(prompts)))
jax.config.update("jax_default_matmul_precision", "highest")
models = [
    ivc_jax.load(folder, processor=False, mesh=mesh, weights=weights)[0]
    for mesh in (None, make_mesh(data=2, model=2))
]
layers = models[1].params["decoder"]["layers"]
expert = layers.parts[1] if weights else layers[1]
expert = expert["mlp"]["experts"]["gate_proj"]["weight"]
axes = ("model", None, None)
assert (expert.qvalue if weights else expert).sharding.spec == P(*(None,) * bool(weights), *axes)
outputs = [ivc_jax.prefill(model, batch, spec) for model in models]
difference = np.abs(np.asarray(outputs[0].logits) - np.asarray(outputs[1].logits)).max()
assert difference < 1e-4, difference
assert all(map(np.array_equal, *[each.kept for each in outputs]))
tokens = [ivc_jax.decode(m, p, 5, ()).tokens for m, p in zip(models, outputs)]
assert np.array_equal(*map(np.asarray, tokens))
print("done")
"""


@pytest.mark.parametrize("weights", ["", "int8"])
def test_experts_and_heads_split_over_a_mesh(tiny_hf, weights):
    """Four CPU devices need a process of their own: the count is fixed when JAX starts."""
    if weights:
        pytest.importorskip("qwix")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    tests = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([tests, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED, str(tiny_hf(family="deepseek_vl2")), SPEC, weights],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout
