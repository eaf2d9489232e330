"""`load`: bounds, end tokens, names of models, and what it does without a processor."""

import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from digit_scenes import CHECKPOINT
from ivc_jax import model as ivc_model
from ivc_jax.inputs.batch import InputError
from ivc_jax.weights.source import CheckpointError


def assert_same(params, others):
    jax.tree.map(np.testing.assert_array_equal, params, others)


def test_load_gives_model_and_processor(tiny_hf):
    model, processor = ivc_model.load(tiny_hf())
    assert model.dtype == np.float32  # the default on CPU
    assert model.mesh is None
    assert processor.config == model.config


def test_load_takes_bounds_on_pictures(tiny_hf):
    _, processor = ivc_model.load(tiny_hf(), min_pixels=100, max_pixels=200)
    assert (processor.images.min_pixels, processor.images.max_pixels) == (100, 200)
    with pytest.raises(InputError, match=r"min_pixels 300 must be in 1\.\.max_pixels = 200"):
        ivc_model.load(tiny_hf(), min_pixels=300, max_pixels=200)


def test_load_knows_where_answers_end(tiny_hf, tmp_path):
    model, processor = ivc_model.load(tiny_hf())
    assert model.stop_ids == processor.stop_ids == (258, 256)
    assert ivc_model.load(tiny_hf(), processor=False)[0].stop_ids == (258, 256)
    folder = tmp_path / "copy"
    shutil.copytree(tiny_hf(), folder)
    (folder / "generation_config.json").unlink()
    assert ivc_model.load(folder)[0].stop_ids == (258,)  # the tokenizer's
    assert ivc_model.load(folder, processor=False)[0].stop_ids == ()


def test_load_without_a_processor_needs_no_tokenizer(tiny_hf, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_hf() / name, folder)
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor"):
        ivc_model.load(folder)
    model, nothing = ivc_model.load(folder, processor=False)
    assert nothing is None
    whole = ivc_model.load(tiny_hf())[0]
    assert model.config == whole.config
    assert_same(model.params, whole.params)
    with pytest.raises(InputError, match="min_pixels and max_pixels are the processor's"):
        ivc_model.load(folder, processor=False, max_pixels=256)
    # Methods that look at pixels undo the scaling of the files that are there.
    settings = json.loads((tiny_hf() / "preprocessor_config.json").read_text())
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    vision = ivc_model.load(folder, processor=False)[0].config.vision
    assert (vision.pixel_mean, vision.pixel_std) == ((0.5,) * 3, (0.25,) * 3)


def test_load_takes_the_processor_of_another_folder(tiny_hf, tmp_path):
    for file in tiny_hf().iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"max_pixels": 1024}))
    model, processor = ivc_model.load(tiny_hf(), processor=tmp_path)
    assert processor.images.max_pixels == 1024
    assert model.stop_ids == (258, 256)
    assert_same(model.params, ivc_model.load(tiny_hf())[0].params)


def test_the_bundled_model_has_a_name():
    assert ivc_model.find_folder("bundled") == CHECKPOINT
    model, processor = ivc_model.load("bundled")
    assert (model.config, model.stop_ids) == (processor.config, (2,))


def test_revision_and_token_go_to_the_hub(tiny_hf, monkeypatch):
    asked = []

    def fetch(name, allow_patterns, revision, token):
        asked.append((name, "*.safetensors" in allow_patterns, revision, token))
        return str(tiny_hf())

    hub = types.SimpleNamespace(snapshot_download=fetch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    ivc_model.load("owner/name", revision="v2", token="secret", processor="owner/other")
    assert asked == [("owner/name", True, "v2", "secret"), ("owner/other", False, None, "secret")]
    with pytest.raises(CheckpointError, match="local directory and has no revision 'v2'"):
        ivc_model.load(tiny_hf(), revision="v2")


@pytest.mark.parametrize("dtype", ["float64", "int8", "half"])
def test_unknown_dtype_lists_the_known(tiny_hf, dtype):
    with pytest.raises(ValueError, match=f"unknown dtype '{dtype}'; known: float32, bfloat16"):
        ivc_model.load(tiny_hf(), dtype=dtype)


def test_float16_is_refused_where_it_is_not_computed(tiny_hf, monkeypatch):
    message = "^float16 is not computed on cpu; use dtype bfloat16 or float32$"
    for dtype in ("float16", np.float16):
        with pytest.raises(ValueError, match=message):
            ivc_model.load(tiny_hf(), dtype=dtype)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ValueError, match=r"^float16 is not computed on tpu"):
        ivc_model.load(tiny_hf(), dtype="float16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ivc_model.load(tiny_hf(), dtype="float16")[0].dtype == np.float16


@pytest.mark.parametrize("arguments", [{}, {"processor": False}])
def test_end_tokens_without_an_embedding_are_named(tiny_hf, tmp_path, arguments):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_hf(), folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [258, 300]}')
    with pytest.raises(InputError, match="end tokens: token id 300 has no embedding, vocab_size"):
        ivc_model.load(folder, **arguments)


def test_a_path_that_is_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        ivc_model.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        ivc_model.load(tmp_path / "file")


def test_a_hub_id_without_the_hub_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        ivc_model.load("owner/name")
