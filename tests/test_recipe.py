"""Settings of the training recipe: sizes fit each other, and the small one is the bundled one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from digit_scenes import answering, dense, digits, export, packing, tower, train
from digit_scenes import tokenizer as words
from digit_scenes.model import model_config
from digit_scenes.scenes import render
from digit_scenes.setting import LARGE, SETTINGS, SMALL, SMALL_BLIND
from ivc_jax.config import from_hf
from ivc_jax.nn import decoder
from ivc_jax.weights.keymap import to_hf_names


@pytest.fixture(scope="module")
def tokenizer():
    return words.build()


def sizes(setting, tokenizer):
    return model_config(setting, words.special_ids(tokenizer), tokenizer.get_vocab_size())


def test_the_small_setting_has_the_shapes_of_the_bundled_weights(tokenizer):
    config = sizes(SMALL, tokenizer)
    shapes = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
    drawn = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    expected = {name: tensor.shape for name, tensor in to_hf_names(drawn, config)}
    header = (export.BUNDLED / "model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    stored = json.loads(header[8 : 8 + length])
    del stored["__metadata__"]
    assert {name: tuple(entry["shape"]) for name, entry in stored.items()} == expected


def test_the_small_setting_draws_the_scenes_of_the_benchmark():
    source = digits.load("train")
    own = SMALL.render(np.random.default_rng(3), source, 6)
    np.testing.assert_array_equal(own.pixels, render(np.random.default_rng(3), source, 6).pixels)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_stage_has_a_finite_shape(setting, tokenizer):
    random = np.random.default_rng(0)
    scenes = setting.make_scenes(random, 1, setting.digits, "train")
    config = sizes(setting, tokenizer)
    params = jax.eval_shape(lambda: tower.init_params(setting.vision, jax.random.key(0)))
    text = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))["decoder"]
    layout = answering.plan(setting.grid, answering.COUNTING_QUESTIONS)
    batch = answering.pack(random, tokenizer, layout, scenes)
    objective = answering.Objective(setting, tokenizer, layout, 0.5, 1.0)

    def whole(params, text):
        pixels = jnp.asarray(scenes[0].pixels)[None]
        tokens = tower.encode(setting.vision, params["vision"], pixels)
        wanted = dense.targets(scenes, setting.cell, setting.cues)
        taught, _ = dense.loss(dense.read(params["heads"], tokens), wanted)
        return tokens, taught, objective(text, batch, tokens, 1.5)[0]

    tokens, taught, asked = jax.eval_shape(whole, params, text)
    assert tokens.shape == (1, setting.grid**2, setting.width)
    assert taught.shape == asked.shape == ()


def test_the_large_grid_is_packed_like_the_small_one():
    assert (LARGE.grid, LARGE.cell, LARGE.layers) == (24, 16, 12)
    plan = packing.Plan(("colour",), grid=24)
    assert plan.picture == 24 * 24 + 2
    np.testing.assert_array_equal(plan.positions[:, 1 + 24], [1, 2, 1])  # second row, first column
    np.testing.assert_array_equal(plan.positions[:, plan.picture], [26, 26, 26])
    share = packing.shares((100, 200, 150, 250), 384, 24)
    np.testing.assert_allclose(share.sum(), 1, rtol=1e-6)


def test_the_blind_setting_shows_no_frame():
    source = digits.load("train")
    seen = SMALL.render(np.random.default_rng(3), source, 3).pixels
    blind = SMALL_BLIND.render(np.random.default_rng(3), source, 3).pixels
    assert (seen[0] == 16).all()
    assert not (blind[0] == 16).all()


def test_exported_settings_are_read_back(tokenizer):
    config = sizes(LARGE, tokenizer)
    read = from_hf(export.hf_config(config, words.special_ids(tokenizer)))
    assert read.decoder == config.decoder
    assert (read.vision.depth, read.vision.embed_dim) == (6, 192)
    limits = export.preprocessor_config(LARGE)
    assert limits["min_pixels"] <= 384 * 384 <= limits["max_pixels"]


def test_settings_say_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="canvas=200 must be a multiple of 32"):
        dataclasses.replace(SMALL, canvas=200)
    with pytest.raises(ValueError, match="look_layer=7 must be below layers=5"):
        dataclasses.replace(SMALL, look_layer=7)
    train.claim(tmp_path, SMALL)
    train.claim(tmp_path, SMALL)
    with pytest.raises(ValueError, match="holds a run of the setting 'small'"):
        train.claim(tmp_path, LARGE)
