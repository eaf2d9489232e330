"""int8 weights: what is stored, how it loads, what the model does with it."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.prompts import hf_arrays
from helpers.tiny import tiny_config
from safetensors.numpy import load_file

import ivc_jax
from ivc_jax.families import parse_config
from ivc_jax.model import read_config
from ivc_jax.nn import decoder
from ivc_jax.nn.blocks import stack, take_block
from ivc_jax.nn.layers import dequantized
from ivc_jax.weights import checkpoint, keymap
from ivc_jax.weights.placement import abstract_params
from ivc_jax.weights.source import DTYPES

FLOAT32, BFLOAT16 = DTYPES["float32"], DTYPES["bfloat16"]
PROMPTS = [(3, ("image", (1, 8, 8)), 5), (2, ("image", (1, 4, 6)), 4)]


def test_an_unknown_name_lists_the_known(tiny_hf):
    with pytest.raises(ValueError, match="unknown weights 'int4'; known: int8"):
        ivc_jax.load(tiny_hf(), weights="int4")


def test_without_the_library_the_error_names_it(tiny_hf, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ImportError, match="pip install qwix"):
        ivc_jax.load(tiny_hf(), weights="int8")
    assert ivc_jax.load(tiny_hf())[0].weights == "float32"


qwix = pytest.importorskip("qwix")


@pytest.fixture(scope="module")
def models(tiny_hf):
    """The same untied checkpoint as floats and with int8 weights."""
    path = tiny_hf()
    return [ivc_jax.load(path, dtype="float32", weights=weights)[0] for weights in (None, "int8")]


@pytest.fixture(scope="module")
def batch():
    return ivc_jax.Batch.from_hf(**hf_arrays(PROMPTS))


def is_kernel(node):
    return isinstance(node, qwix.QArray)


def kernels(params):
    """Quantised kernels by path, and the other leaves."""
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_kernel)
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): node for p, node in nodes}
    chosen = {path: node for path, node in named.items() if is_kernel(node)}
    return chosen, {path: node for path, node in named.items() if path not in chosen}


def stacked(params):
    """Leaves by path, the decoder's blocks stacked as int8 blocks are."""
    decoder = {**params["decoder"], "layers": stack(params["decoder"]["layers"])}
    return keymap.flatten({**params, "decoder": decoder})


def test_kernels_of_the_decoder_are_int8_and_nothing_else(models):
    plain, quantized = models
    chosen, rest = kernels(quantized.params)
    projections = {f"{name}_proj" for name in "qkvo"} | {
        f"mlp/{name}_proj" for name in ("gate", "up", "down")
    }
    layers = {f"decoder/layers/{name}/weight" for name in projections}
    assert set(chosen) == layers | {"decoder/lm_head/weight"}
    for path, kernel in chosen.items():
        assert kernel.qvalue.dtype == np.int8, path
        assert kernel.scale.dtype == np.float32, path
        assert kernel.scale.shape == (*kernel.shape[:-1], 1), path
    floats = stacked(plain.params)
    assert all(np.array_equal(leaf, floats[path]) for path, leaf in rest.items())
    assert (plain.weights, quantized.weights) == ("float32", "int8")
    assert plain.dtype == quantized.dtype == np.float32


def test_kernels_equal_those_of_the_library(models):
    plain, quantized = models
    floats = stacked(plain.params)
    for path, kernel in kernels(quantized.params)[0].items():
        axes = range(kernel.ndim - 1)
        want = qwix.quantize(floats[path], jnp.int8, channelwise_axes=list(axes))
        np.testing.assert_allclose(kernel.scale, want.scale, rtol=1e-6)
        # a quotient that ends in a half may fall to either side
        distance = np.abs(np.asarray(kernel.qvalue, int) - np.asarray(want.qvalue, int))
        assert distance.max() <= 1
        assert distance.mean() < 1e-3
        # each output channel uses the whole range
        assert (np.abs(np.asarray(kernel.qvalue, int)).max(axis=-1) >= 127).all()


def test_products_stay_within_half_a_step_a_weight(models):
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    plain, quantized = (model.params["decoder"]["layers"] for model in models)
    weight = plain[1]["q_proj"]["weight"]
    stored = take_block(quantized, 1)["q_proj"]["weight"]
    rounded = np.asarray(dequantized(stored, FLOAT32))
    bound = np.abs(x).sum(axis=1, keepdims=True) * np.asarray(stored.scale).T / 2
    error = np.abs(x @ rounded.T - x @ np.asarray(weight).T)
    assert (error <= bound * 1.001 + 1e-6).all()
    assert error.max() > bound.max() / 100  # it is quantised at all


def test_half_precision_rounds_once():
    values = np.array([[127, 1], [-3, 127]], np.int8)
    scale = np.array([[0.1], [1 / 3]], np.float32)
    kernel = qwix.QArray(jnp.asarray(values), jnp.asarray(scale))
    got = dequantized({"weight": kernel, "bias": jnp.ones(2)}, BFLOAT16)
    assert np.array_equal(got["weight"], (values * scale).astype(ml_dtypes.bfloat16))
    assert got["bias"].dtype == np.float32


def test_int8_does_not_depend_on_the_dtype_of_the_rest(tiny_hf, models):
    half, _ = ivc_jax.load(tiny_hf(), dtype="bfloat16", weights="int8")
    ours, floats = kernels(half.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, kernels(models[1].params)[0]))
    assert {leaf.dtype for leaf in floats.values()} == {BFLOAT16}
    hidden = jnp.ones((1, 2, 64), BFLOAT16)
    block = dequantized(take_block(half.params["decoder"]["layers"], 0), BFLOAT16)
    assert {leaf.dtype for leaf in jax.tree.leaves(block)} == {BFLOAT16}
    logits = decoder.logits(half.config.decoder, half.params["decoder"], hidden)
    assert logits.dtype == np.float32


def test_a_tied_head_stays_float(tiny_hf):
    model, _ = ivc_jax.load(tiny_hf(tied=True), dtype="float32", weights="int8")
    embedding = load_file(tiny_hf(tied=True) / "model.safetensors")
    embedding = embedding["model.language_model.embed_tokens.weight"]
    assert np.array_equal(model.params["decoder"]["embed_tokens"]["embedding"], embedding)
    assert all("layers" in path for path in kernels(model.params)[0])


def test_answers_are_those_of_the_rounded_weights(models, batch):
    """The int8 model is the float model whose weights were rounded."""
    plain, quantized = models
    model = ivc_jax.Model(plain.config, dequantized(quantized.params, FLOAT32))
    prompts = [ivc_jax.prefill(each, batch) for each in (quantized, model, plain)]
    got, want, other = (np.asarray(prompt.logits) for prompt in prompts)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert 1e-4 < np.abs(want - other).max() < 0.2 * np.abs(want).max()
    ours, theirs = map(ivc_jax.decode, (quantized, model), prompts[:2], (3, 3))
    assert np.array_equal(ours.tokens, theirs.tokens)


def test_keeping_all_equals_dense_bit_for_bit(models, batch):
    everything = ivc_jax.methods.parse("ivc:layer=1,keep_ratio=1.0")
    dense, kept = (ivc_jax.prefill(models[1], batch, *rest) for rest in ((), (everything,)))
    assert np.array_equal(dense.logits, kept.logits)
    for name in ("keys", "values"):
        ours, theirs = ([getattr(span, name) for span in p.cache] for p in (kept, dense))
        assert np.array_equal(np.concatenate(ours), np.concatenate(theirs))


def test_converted_checkpoints_give_the_same(tiny_hf, models, tmp_path):
    """Kernels are those of the stored floats, whatever the dtype of the rest."""
    path = tiny_hf()
    config = read_config(path)
    checkpoint.save_params(tmp_path, models[0].params)
    restored = checkpoint.restore_params(tmp_path, config, BFLOAT16, weights="int8")
    ours, rest = kernels(restored)
    want, floats = kernels(models[1].params)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, want))
    assert all(np.array_equal(leaf, floats[name].astype(BFLOAT16)) for name, leaf in rest.items())


def test_abstract_trees_are_those_that_load(tiny_hf, models):
    abstract = abstract_params(read_config(tiny_hf()), FLOAT32, weights="int8")
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)
        for tree in (abstract, models[1].params)
    ]
    assert shapes[0] == shapes[1]


def test_blocks_are_never_turned_back_all_at_once():
    """Temporaries of many layers must not hold all of their kernels."""
    sizes = {"num_attention_heads": 8, "intermediate_size": 512, "num_hidden_layers": 32}
    config = parse_config(tiny_config(hidden_size=128, **sizes))
    params = abstract_params(config, FLOAT32, weights="int8")["decoder"]["layers"]
    hidden = jax.ShapeDtypeStruct((1, 8, 128), FLOAT32)
    angles = jax.ShapeDtypeStruct((1, 8, config.decoder.rope.head_dim // 2), FLOAT32)
    run = jax.jit(lambda *a: decoder.run_span(config.decoder, *a, 0, 32))
    memory = run.trace(params, hidden, angles).lower().compile().memory_analysis()
    stored = sum(leaf.qvalue.size for leaf in kernels(params)[0].values())
    assert memory.temp_size_in_bytes < stored


_SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import PartitionSpec as P
import ivc_jax
from ivc_jax.parallel.mesh import make_mesh
from ivc_jax.weights import keymap

ivc_jax.load(sys.argv[1], dtype="float32")
assert not {"qwix", "flax.nnx"} & set(sys.modules), "floats must not load the library"
mesh = make_mesh(data=2, model=2)
split = ivc_jax.load(sys.argv[1], dtype="float32", weights="int8", mesh=mesh)[0]
leaves, alone = keymap.flatten(split.params), np.load(sys.argv[2])
assert set(leaves) == set(alone)
assert all(np.array_equal(leaf, alone[path]) for path, leaf in leaves.items())
layers = split.params["decoder"]["layers"]
columns, rows = layers["q_proj"]["weight"], layers["o_proj"]["weight"]
assert columns.qvalue.sharding.spec == columns.scale.sharding.spec == P(None, "model", None)
assert rows.qvalue.sharding.spec == P(None, None, "model")
assert rows.scale.sharding.is_fully_replicated
head = split.params["decoder"]["lm_head"]["weight"]
assert head.qvalue.sharding.spec == head.scale.sharding.spec == P("model", None)
print("done")
"""


def test_sharded_kernels_equal_those_of_one_device(tiny_hf, models, tmp_path):
    """Four CPU devices need a process of their own; there, nothing has loaded the library yet."""
    np.savez(tmp_path / "alone.npz", **keymap.flatten(models[1].params))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED, str(tiny_hf()), str(tmp_path / "alone.npz")],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout
