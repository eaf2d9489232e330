"""Whose the output head is: the tensors say, not the flag that ties it to the embedding."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from helpers.prompts import CASES, hf_arrays
from safetensors.numpy import load_file, save_file

import ivc_jax
from checkpoints_convert.convert import convert
from ivc_jax.model import read_config
from ivc_jax.weights.source import CheckpointError, TensorFiles

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLAGS = pytest.mark.parametrize(
    ("generation", "place"), [("old", None), ("new", None), ("new", "text_config")]
)


def copy(source, folder, place=None, **tensors):
    """Copy a checkpoint, tie it by a flag in `place`, and replace tensors (None: leave out)."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (config[place] if place else config)["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    stored = load_file(folder / "model.safetensors") | tensors
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(path):
    model, _ = ivc_jax.load(path)
    assert ("lm_head" in model.params["decoder"]) != model.config.decoder.tie_embeddings
    batch = ivc_jax.Batch.from_hf(**hf_arrays(CASES["text only"]))
    return np.asarray(ivc_jax.prefill(model, batch).logits)


@FLAGS
def test_a_head_that_differs_is_used(tiny_hf, tmp_path, caplog, load_torch, generation, place):
    source = tiny_hf(generation=generation)
    tied = copy(source, tmp_path / "tied", place)
    found = logits(tied)
    np.testing.assert_array_equal(found, logits(source))
    assert "config.json ties the output head" in caplog.text
    torch = pytest.importorskip("torch")
    arrays = hf_arrays(CASES["text only"])
    theirs = load_torch(tied)(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    np.testing.assert_allclose(found, theirs.logits[:, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kept", ["both", HEAD, EMBEDDING])
def test_a_head_that_is_the_embedding_is_tied(tiny_hf, tmp_path, caplog, kept):
    """Whichever of the two is there."""
    source = tiny_hf(tied=True, generation="old")
    embedding = load_file(source / "model.safetensors")[EMBEDDING]
    tensors = {name: embedding if kept in ("both", name) else None for name in (HEAD, EMBEDDING)}
    folder = copy(source, tmp_path / "copy", **tensors)
    assert read_config(folder).decoder.tie_embeddings
    np.testing.assert_array_equal(logits(folder), logits(source))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_lone_head_of_another_shape_is_named(tiny_hf, tmp_path):
    head = np.ones((9, 64), np.float32)
    folder = copy(tiny_hf(generation="old"), tmp_path / "copy", **{HEAD: head, EMBEDDING: None})
    with pytest.raises(CheckpointError, match=r"misshaped: lm_head\.weight is \(9, 64\), the conf"):
        ivc_jax.load(folder)


def test_an_untied_model_needs_its_head(tiny_hf, tmp_path):
    folder = copy(tiny_hf(generation="old"), tmp_path / "copy", **{HEAD: None})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
        ivc_jax.load(folder)


def test_a_converted_head_is_used(tiny_hf, tmp_path, caplog):
    source = tiny_hf(generation="old")
    tied = copy(source, tmp_path / "tied")
    convert(tied, tmp_path / "converted")
    caplog.clear()
    np.testing.assert_array_equal(logits(tmp_path / "converted"), logits(source))
    assert "config.json ties the output head" in caplog.text
    convert(tmp_path / "converted", tmp_path / "again", "bfloat16")
    assert not read_config(tmp_path / "again").decoder.tie_embeddings
    whole = ivc_jax.load(tied)[0].params, ivc_jax.load(tmp_path / "converted")[0].params
    assert jax.tree.all(jax.tree.map(np.array_equal, *whole))


def test_matrices_are_compared_to_the_last_row(tmp_path):
    first = np.arange(9000, dtype=np.float32).reshape(4500, 2)
    last = first.copy()
    last[-1, -1] += 1
    save_file(
        {"a": first, "b": first.astype(np.float64), "c": last, "d": first[:-1].copy()},
        tmp_path / "model.safetensors",
    )
    files = TensorFiles(tmp_path)
    assert [files.equal("a", other) for other in "abcd"] == [True, True, False, False]
