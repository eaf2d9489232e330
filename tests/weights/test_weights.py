"""Key table, streamed loading, and the errors of unfitting checkpoints."""

import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.tiny import FILES, tiny_config
from safetensors.numpy import load_file, save_file

from ivc_jax import config as ivc_config
from ivc_jax import families
from ivc_jax import model as ivc_model
from ivc_jax.model import load_params, read_config
from ivc_jax.nn.decoder import init_params
from ivc_jax.weights import keymap
from ivc_jax.weights.placement import abstract_params
from ivc_jax.weights.source import DTYPES, CheckpointError, TensorFiles, copy_aligned

FLOAT32 = DTYPES["float32"]
RULES = families.QWEN2_VL.rules
BOTH = pytest.mark.parametrize("generation", ["old", "new"])


def load(path, dtype=FLOAT32, mesh=None):
    return load_params(path, read_config(path), dtype, mesh)


@pytest.fixture
def copy(tiny_hf, tmp_path):
    """A directory that a test may damage, and its tensors."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_hf(generation="old"), folder)
    return folder, load_file(folder / "model.safetensors")


def resave(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


# Key table


def rules_of(family, generation="new"):
    return families.find_family(tiny_config(generation, family=family)).rules


@pytest.mark.parametrize("family", FILES)
def test_a_table_names_every_parameter_once(family):
    rules = rules_of(family)
    paths = [rule.path for rule in rules]
    assert len(set(paths)) == len(paths)
    alike = [each for each in FILES if rules_of(each) is rules]
    configs = [families.parse_config(tiny_config(family=each)) for each in alike]
    leaves = [keymap.flatten(abstract_params(config, FLOAT32)) for config in configs]
    named = {re.sub(r"/\d+/", "/{layer}/", path) for path in set().union(*leaves)}
    assert set(paths) == named


@BOTH
@pytest.mark.parametrize("family", FILES)
def test_names_go_to_hugging_face_and_back(tiny_hf, generation, family):
    path = tiny_hf(generation=generation, family=family)
    params = load_params(path, read_config(path), FLOAT32)
    ours = dict(keymap.to_hf_names(params, read_config(path), rules_of(family, generation)))
    stored = load_file(path / "model.safetensors")
    rename = FILES[family].new_name if generation == "new" else str
    assert {rename(name) for name in ours} == stored.keys()
    for name, tensor in ours.items():
        assert tensor.flags.c_contiguous
        assert np.array_equal(tensor, stored[rename(name)]), name


def test_a_layer_lands_at_its_index(tiny_hf):
    path = tiny_hf(generation="old")
    stored, params = load_file(path / "model.safetensors"), load(path)
    weight = params["decoder"]["layers"][2]["mlp"]["down_proj"]["weight"]
    assert np.array_equal(weight, stored["model.layers.2.mlp.down_proj.weight"])
    bias = params["vision"]["blocks"][1]["attn"]["qkv"]["bias"]
    assert np.array_equal(bias, stored["visual.blocks.1.attn.qkv.bias"])


def test_patch_embedding_follows_the_order_of_patch_values(tiny_hf):
    path = tiny_hf(generation="old")
    weight = load_file(path / "model.safetensors")["visual.patch_embed.proj.weight"]
    patch = np.random.default_rng(0).standard_normal(weight.shape[1:], np.float32)
    expected = np.einsum("dctij,ctij->d", weight, patch)
    ours = np.asarray(load(path)["vision"]["patch_embed"]["weight"])
    np.testing.assert_allclose(ours @ patch.reshape(-1), expected, atol=1e-4)


def test_two_matches_are_an_error():
    (target,) = keymap.find_targets("model.norm.weight", RULES)
    twice = (*RULES, keymap.Rule("model.norm.weight", "decoder/other/scale"))
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*decoder/norm/scale.*decoder/other"):
        keymap.find_targets("model.norm.weight", twice)
    assert target.rule.path == "decoder/norm/scale"


@pytest.mark.parametrize(
    "name",
    ["model.visual.norm.weight", "model.layers.01.mlp.up_proj.weight", "xmodel.norm.weight"],
)
def test_near_misses_match_nothing(name):
    assert keymap.find_targets(name, RULES) == ()


def test_a_parameter_without_a_row_is_an_error(tiny_hf):
    params = {"decoder": {"bonus": np.zeros(2)}}
    with pytest.raises(ValueError, match="decoder/bonus"):
        list(keymap.to_hf_names(params, read_config(tiny_hf()), RULES))


# Loading


def test_shards_load_like_one_file(tiny_hf):
    one = load(tiny_hf(generation="old"))
    three = load(tiny_hf(generation="old", shards=3))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, three))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_dtypes_are_cast_while_loading(copy, dtype, stored):
    folder, tensors = copy
    resave(folder, {name: tensor.astype(stored) for name, tensor in tensors.items()})
    params = load(folder, DTYPES[dtype])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {DTYPES[dtype]}
    embedding = tensors["model.embed_tokens.weight"].astype(stored).astype(DTYPES[dtype])
    assert np.array_equal(params["decoder"]["embed_tokens"]["embedding"], embedding)


def test_parameters_have_the_tree_of_init(tiny_hf):
    path = tiny_hf(tied=True)
    shapes = jax.eval_shape(lambda: init_params(read_config(path), jax.random.key(0)))
    params = load(path)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert "lm_head" not in params["decoder"]


def test_loaded_parameters_outlive_the_file(copy):
    """No parameter may be a view of the mapped file."""
    folder, tensors = copy
    params = load(folder)
    os.truncate(folder / "model.safetensors", 0)
    embedding = params["decoder"]["embed_tokens"]["embedding"]
    assert np.array_equal(embedding, tensors["model.embed_tokens.weight"])


def test_a_tied_checkpoint_may_hold_the_head_too(tiny_hf, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_hf(tied=True, generation="old"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    tensors["visual.rotary_pos_emb.inv_freq"] = np.ones(4, np.float32)
    resave(folder, tensors)
    assert "lm_head" not in load(folder)["decoder"]


# Errors


def test_one_error_names_everything_that_does_not_fit(copy):
    folder, tensors = copy
    del tensors["lm_head.weight"], tensors["visual.blocks.2.norm1.bias"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(4, np.float32)
    tensors["model.layers.3.input_layernorm.weight"] = np.ones(64, np.float32)
    tensors["model.norm.weight"] = np.ones(65, np.float32)
    kernel = "model.layers.1.mlp.up_proj.weight"
    tensors[kernel] = np.ascontiguousarray(tensors[kernel].T)
    tensors["visual.merger.mlp.0.bias"] = np.ones(128, np.int8)
    tensors["model.language_model.embed_tokens.weight"] = np.ones((272, 64), np.float32)
    resave(folder, tensors)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    for expected in (
        "8 problem(s)",
        "missing: lm_head.weight",
        "missing: visual.blocks.2.norm1.bias",
        "unused: model.layers.0.self_attn.q_norm.weight (4,)",
        "unused: model.layers.3.input_layernorm.weight (64,)",
        "misshaped: model.norm.weight is (65,), the config asks for (64,)",
        f"misshaped: {kernel} is (64, 80), the config asks for (80, 64)",
        "unsupported dtype: visual.merger.mlp.0.bias is I8",
        "given twice: ",
    ):
        assert expected in message


@pytest.mark.parametrize("keep", [0, 5, 400, -3])
def test_truncated_file_is_named(copy, keep):
    folder, _ = copy
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupt"):
        load(folder)


def test_corrupt_header_is_named(copy):
    folder, _ = copy
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[20:60] = b"x" * 40
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load(folder)


def test_missing_shard_is_named(tiny_hf, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_hf(shards=3), folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks shards.*model-00002-of-00003\.safetensors"):
        load(folder)


def test_no_weights_no_config_or_a_broken_one(copy):
    folder, _ = copy
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        ivc_model.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        ivc_model.load(folder)


def test_unknown_architecture_is_named(copy):
    folder, _ = copy
    (folder / "config.json").write_text(json.dumps({"model_type": "foreign"}))
    with pytest.raises(ivc_config.ConfigError, match="unknown architecture model_type='foreign'"):
        ivc_model.load(folder)


def test_the_index_names_a_duplicate(tiny_hf, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_hf(shards=2), folder)
    first, second = (folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    with pytest.raises(CheckpointError, match="is in both"):
        TensorFiles(folder)


def test_copies_are_taken_by_the_device_as_they_are():
    """In memory that XLA would copy once more a model would be there twice."""
    values = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T  # not contiguous
    copy = copy_aligned(values, FLOAT32)
    assert copy.flags.c_contiguous
    assert copy.dtype == np.float32
    assert np.array_equal(copy, values)
    assert jax.device_put(copy).unsafe_buffer_pointer() == copy.ctypes.data
