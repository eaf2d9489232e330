"""Conversion: round trips, nothing half-written, and the comparison with transformers."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert import __main__ as command
from checkpoints_convert import convert as conversion
from checkpoints_convert import verify as verification
from ivc_jax import model as ivc_model
from ivc_jax.weights import checkpoint
from ivc_jax.weights.source import DTYPES, CheckpointError

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None,
    reason="compares with transformers on torch",
)


@pytest.fixture(scope="module")
def source(tiny_hf):
    return tiny_hf(tied=True, generation="old", shards=2)


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """A converted directory; treat it as read-only."""
    target = tmp_path_factory.mktemp("converted") / "target"
    conversion.convert(source, target)
    return target


def equal(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def test_load_takes_either_form(source, converted):
    original, _ = ivc_model.load(source)
    model, processor = ivc_model.load(converted)
    assert model.config == processor.config == original.config
    assert equal(model.params, original.params)


def test_companion_files_come_along(source, converted):
    names = {file.name for file in converted.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "preprocessor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "params"),
    }
    for name in names - {"params"}:
        assert (converted / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_stored_and_cast_back(source, converted, tmp_path, dtype):
    written = conversion.convert(source, tmp_path / "target", dtype)
    assert checkpoint.stored_dtype(written.folder) == dtype
    config = ivc_model.read_config(source)
    restored = ivc_model.load_params(written.folder, config, DTYPES["float32"])
    original = ivc_model.load_params(converted, config, DTYPES["float32"])
    rounded = jax.tree.map(lambda p: p.astype(dtype).astype("float32"), original)
    assert equal(restored, rounded)
    count = sum(leaf.size for leaf in jax.tree.leaves(original))
    assert written.num_bytes == count * DTYPES[dtype].itemsize


def test_the_stored_dtype_is_kept_by_default(source, tmp_path):
    half = conversion.convert(source, tmp_path / "half", "bfloat16").folder
    assert conversion.convert(half, tmp_path / "again").dtype == "bfloat16"


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_target_that_holds_something_is_refused(source, tmp_path, kind, capsys):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    assert command.main([str(source), str(target)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {target} ")
    assert len(message.splitlines()) == 1
    assert (target if kind == "file" else target / "mine").read_text() == "mine"


def test_an_empty_directory_is_a_target(source, tmp_path):
    (tmp_path / "target").mkdir()
    conversion.convert(source, tmp_path / "target")
    assert (tmp_path / "target" / "config.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing(source, tmp_path, monkeypatch, error):
    def fail(folder, params):
        (folder / "params").mkdir()
        (folder / "params" / "half").write_text("x")
        raise error

    monkeypatch.setattr(checkpoint, "save_params", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CheckpointError
    with pytest.raises(expected) as caught:
        conversion.convert(source, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
    if expected is CheckpointError:
        assert "cannot write" in str(caught.value)
        assert "No space left" in str(caught.value)


def test_too_small_a_disk_is_known_before_reading(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(conversion, "load_params", None)  # not reached
    with pytest.raises(CheckpointError, match="GB free, the checkpoint needs"):
        conversion.convert(source, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_target_is_one_line(source, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main([str(source), str(tmp_path / "file" / "target")]) == 1
    message = capsys.readouterr().err
    assert "cannot write" in message
    assert len(message.splitlines()) == 1


def test_errors_of_the_source_reach_the_user(tmp_path, capsys):
    assert command.main([str(tmp_path / "none"), str(tmp_path / "target")]) == 1
    assert "neither a directory nor a hub id" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert command.main([str(tmp_path / "empty"), str(tmp_path / "target")]) == 1
    assert "has no config.json" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def test_a_config_that_does_not_fit_is_one_error(converted, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(converted, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(num_hidden_layers=4, tie_word_embeddings=False)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        ivc_model.load(folder)
    assert "missing: decoder/lm_head/weight" in str(caught.value)
    assert "missing: decoder/layers/3/k_proj/bias" in str(caught.value)


# TensorStore's reads of other files end after the loop that waited for them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_parameters_are_one_line(converted, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(converted, folder)
    for file in (folder / "params").rglob("*"):
        if file.is_file() and "d" in file.parent.name:
            file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="is damaged or incomplete") as caught:
        ivc_model.load(folder)
    assert len(str(caught.value).splitlines()) == 1
    (folder / "params" / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match="is damaged or incomplete"):
        ivc_model.load(folder)


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify_accepts_a_faithful_conversion(source, tmp_path, capsys, dtype):
    arguments = [str(source), str(tmp_path / "target"), "--dtype", dtype, "--verify"]
    assert command.main(arguments) == 0
    output = capsys.readouterr().out
    assert "text prompt: largest difference" in output
    assert "image prompt: largest difference" in output
    assert "verified" in output


@needs_torch
def test_verify_sees_a_difference(tiny_hf, tmp_path, capsys, monkeypatch):
    source = tiny_hf(generation="new")
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.visual.blocks.1.attn.proj.bias"][0] += 1.0
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    target = tmp_path / "target"
    conversion.convert(broken, target)
    differences = verification.verify(source, target, "float32")
    assert differences["text"] <= 1e-4 < differences["image"]
    # The command reports it by its exit status and keeps the directory.
    monkeypatch.setattr(command, "verify", lambda *_: {**differences, "image": float("nan")})
    assert command.main([str(source), str(tmp_path / "kept"), "--verify"]) == 1
    assert "kept for inspection" in capsys.readouterr().err
    assert (tmp_path / "kept" / "params").is_dir()


def test_verify_without_torch_says_so(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command.main([str(source), str(tmp_path / "target"), "--verify"]) == 1
    assert "install torch and transformers" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()
