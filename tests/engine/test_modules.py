"""Modules of methods: read from a file beside the model's parameters, checked before any work."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.modules import SMALL, draw_module, give_weights

import ivc_jax
from ivc_jax.engine.modules import Stored, name_model
from ivc_jax.engine.observe import observe
from ivc_jax.engine.prefill import count_programs
from ivc_jax.methods import MethodError
from ivc_jax.methods.covipal import CoViPAL, score
from ivc_jax.methods.requests import Hidden, Weights
from ivc_jax.weights.modules import read_module, write_module


@pytest.fixture(scope="module")
def spec(model, tmp_path_factory):
    return give_weights("covipal:keep_ratio=0.3", model.config, tmp_path_factory.mktemp("module"))


def refused(model, inputs, spec):
    with pytest.raises(MethodError) as caught:
        ivc_jax.prefill(model, inputs, spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_choice_is_that_of_the_module_in_the_file(model, inputs, spec):
    prompt = ivc_jax.prefill(model, inputs, spec)
    params = draw_module(SMALL, model.config.decoder.hidden_size)
    (hidden,) = observe(model, inputs, 0, Hidden())
    scores = np.asarray(jax.jit(score, static_argnums=0)(SMALL, params, hidden, inputs.layout))
    counts = np.asarray(inputs.layout.visual_count)
    for b, n in enumerate(counts):
        k = max(1, round(0.3 * n)) if n else 0
        best = np.sort(np.argsort(-scores[b, :n], kind="stable")[:k])
        slots = np.asarray(inputs.layout.visual_index)[b]
        dropped = np.setdiff1d(slots[:n], slots[best])
        wanted = np.setdiff1d(np.arange(int(inputs.layout.lengths[b])), dropped)
        np.testing.assert_array_equal(prompt.kept[b], wanted)


def test_a_folder_stands_for_its_file_and_equal_methods_share_a_program(model, inputs, spec):
    first = ivc_jax.prefill(model, inputs, spec)
    before = count_programs()
    ivc_jax.prefill(model, inputs, ivc_jax.methods.parse(spec))
    assert count_programs() == before
    folder = spec.replace("/module.safetensors", "")
    for one, other in zip(first.kept, ivc_jax.prefill(model, inputs, folder).kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_trained_anew_is_read_anew(model, inputs, tmp_path):
    spec = give_weights("covipal:keep_ratio=0.3", model.config, tmp_path)
    first = ivc_jax.prefill(model, inputs, spec).kept
    path = tmp_path / "module.safetensors"
    other = draw_module(SMALL, model.config.decoder.hidden_size, seed=5)
    write_module(path, other, read_module(path)[1])
    second = ivc_jax.prefill(model, inputs, spec).kept
    assert any((a != b).any() for a, b in zip(first, second, strict=True))


def test_parameters_may_lie_beside_the_model_already(model, inputs):
    params, width = draw_module(SMALL, model.config.decoder.hidden_size), SMALL.width
    stored = Stored(flatten_dict(params, sep="/"))
    own = dataclasses.replace(model, params={**model.params, "methods": {"mine": stored}})
    method = CoViPAL(keep_ratio=0.3, weights="mine", module=SMALL)
    assert Weights("mine") in method.requests(method.stages[0])
    assert ivc_jax.prefill(own, inputs, method).kept[0].size
    wrong = dataclasses.replace(method, module=dataclasses.replace(SMALL, width=2 * width))
    message = refused(own, inputs, wrong)
    assert "do not fit" in message
    assert f"types is (2, {width}), not (2, {2 * width})" in message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.safetensors", "no weights 'nowhere.safetensors' .nowhere.* does not exist"),
        ("bundled/covipal", "weights=FILE, a module trained for this model"),
        ("bundled/nothing", "does not exist"),
    ],
)
def test_without_weights_there_is_one_line(model, inputs, path, message):
    assert re.search(message, refused(model, inputs, f"covipal:weights={path}"))
    assert "give covipal weights=FILE" in refused(model, inputs, f"covipal:weights={path}")


def test_weights_of_another_model_layer_or_kind_are_refused(model, inputs, tmp_path):
    path, width = tmp_path / "a.safetensors", model.config.decoder.hidden_size
    spec, params = f"covipal:weights={path}", draw_module(SMALL, width)
    own = {"model": name_model(model.config), "sizes": vars(SMALL)}
    write_module(path, params, {**own, "model": "another, 3 blocks"})
    assert "are of another, 3 blocks, not qwen2_vl, 4 blocks" in refused(model, inputs, spec)
    write_module(path, params, {**own, "layer": 2})
    assert "were trained for layer=2, not 0" in refused(model, inputs, spec)
    write_module(path, {**params, "more": {"bias": np.zeros(2)}}, own)
    assert "has more/bias, which nobody reads" in refused(model, inputs, spec)
    del params["types"]
    write_module(path, params, own)
    assert f"lacks types (2, {SMALL.width})" in refused(model, inputs, spec)
    path.write_bytes(b"not a file of tensors")
    assert "cannot read" in refused(model, inputs, spec)
