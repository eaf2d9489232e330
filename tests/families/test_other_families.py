"""A family of another package: installed by pip, found by the model type of its checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.packages import install
from helpers.prompts import hf_arrays
from safetensors.numpy import load_file, save_file

import ivc_jax
from ivc_jax import families
from ivc_jax.config import ConfigError
from ivc_jax.model import read_config

# Qwen2-VL under other names: of the architecture, of every tensor, of a published model.
MODULE = """
import dataclasses
from ivc_jax.families import QWEN2_VL

RENAMED = dataclasses.replace(
    QWEN2_VL,
    model_types=("renamed_vl", "qwen2_vl"),
    rules=tuple(dataclasses.replace(rule, name=f"net.{rule.name}") for rule in QWEN2_VL.rules),
    sizes={"renamed-2b": {**QWEN2_VL.sizes["qwen2-vl-2b"], "model_type": "renamed_vl"}},
)
"""
ENTRY_POINTS = """[ivc_jax.families]
renamed = renamed_family:RENAMED
missing = renamed_family:MISSING
number = renamed_family:__name__
"""
KNOWN = [kind for family in families.FAMILIES for kind in family.model_types]
PROMPT = [(3, ("image", (1, 4, 6)), 5)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return install(tmp_path_factory.mktemp("family"), "renamed_family", MODULE, ENTRY_POINTS)


@pytest.fixture
def installed(site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    families.list_families.cache_clear()
    yield
    families.list_families.cache_clear()


@pytest.fixture
def renamed(tiny_hf, tmp_path) -> Path:
    """A checkpoint of the other family, with the parameters of the tiny Qwen2-VL."""
    source = tiny_hf()
    for file in source.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    config = json.loads((source / "config.json").read_text()) | {"model_type": "renamed_vl"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    tensors = {f"net.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_its_checkpoints_load_and_answer(installed, renamed, tiny_hf):
    answers = []
    for path in (tiny_hf(), renamed):
        model, processor = ivc_jax.load(path, dtype="float32")
        batch = ivc_jax.Batch.from_hf(**hf_arrays(PROMPT))
        out = ivc_jax.generate(model, batch, max_new_tokens=6, stop_ids=())
        written = processor(["What is it?"], [[np.zeros((16, 24, 3), np.uint8)]]).tokens[0]
        answers.append((np.asarray(out.tokens).tolist(), written.tolist()))
    assert answers[0] == answers[1]
    assert read_config(renamed).family == "qwen2_vl"  # asked as Qwen2-VL is


def test_its_sizes_are_known(installed):
    config = families.parse_config(families.list_sizes()["renamed-2b"])
    assert config.decoder.hidden_size == 1536


def test_names_are_kept_and_broken_packages_left_out(installed, caplog):
    assert families.find_family("qwen2_vl") is families.QWEN2_VL
    with pytest.raises(ConfigError, match=rf"supported: {', '.join(KNOWN)}, renamed_vl$"):
        families.find_family("foreign")
    assert "the model type 'qwen2_vl' is taken" in caplog.text
    assert "family 'missing' of renamed_family:MISSING does not load" in caplog.text
    assert "renamed_family:__name__ is a str, not a Family" in caplog.text


@pytest.mark.parametrize("model_type", ["foreign", None, ["qwen2_vl"]])
def test_unknown_architectures_are_named(model_type):
    with pytest.raises(ConfigError) as caught:
        families.find_family(model_type)
    known = ", ".join(KNOWN)
    assert str(caught.value) == (
        f"unknown architecture model_type={model_type!r}; supported: {known}"
    )


def test_a_missing_field_is_named():
    sizes = dict(families.list_sizes()["qwen2-vl-2b"])
    del sizes["image_token_id"]
    with pytest.raises(ConfigError, match=r"^config\.json lacks the field 'image_token_id'$"):
        families.parse_config(sizes)
