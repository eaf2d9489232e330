"""A setting that a `config.json` states in two places, in another one, or not at all."""

import json
import shutil

import numpy as np
import pytest
from helpers.prompts import CASES, IMAGE, hf_arrays
from helpers.tiny import tiny_config, write_checkpoint

import ivc_jax
from ivc_jax.config import ConfigError, RopeConfig
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.families.settings import Settings

BOTH = pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
WIDE = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 128


def nested(family="qwen2_vl", **text):
    config = tiny_config("new", family=family)
    config["text_config"] |= text
    return config


@BOTH
def test_an_object_of_null_is_none(family):
    flat = tiny_config("old", family=family)
    expected = parse_config(flat)
    assert parse_config({**flat, "text_config": None, "rope_parameters": None}) == expected
    vision = {**flat["vision_config"], "rope_parameters": None, "in_channels": None}
    assert parse_config({**flat, "vision_config": vision}) == expected
    assert parse_config({**flat, "head_dim": None, "num_key_value_heads": 2}) == expected
    with pytest.raises(ConfigError, match="lacks the field 'vision_config'"):
        parse_config({**flat, "vision_config": None})
    with pytest.raises(ConfigError, match=r"text_config must be an object, got \[\]"):
        parse_config({**flat, "text_config": []})


def test_a_flat_config_with_a_null_text_config_loads(tiny_hf, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_hf(generation="old"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": None}))
    assert ivc_jax.load(folder)[0].config == ivc_jax.load(tiny_hf(generation="old"))[0].config


@pytest.mark.parametrize(
    ("change", "places"),
    [
        ({"vocab_size": 300}, r"vocab_size is 300, text_config\.vocab_size is 272"),
        ({"hidden_size": 32}, r"hidden_size is 32, text_config\.hidden_size is 64"),
        ({"rms_norm_eps": 1e-5}, r"rms_norm_eps is 1e-05, text_config\.rms_norm_eps is 1e-06"),
        (
            {"rope_theta": 1e6},
            r"rope_theta is 1000000\.0, text_config\.rope_parameters\.rope_theta is",
        ),
        (
            {"rope_scaling": {"mrope_section": [4, 2, 2]}},
            r"rope_scaling\.mrope_section is .*, text_c",
        ),
        (
            {"rope_scaling": {"rope_theta": 5e5}},
            r"rope_scaling\.rope_theta is .*_parameters\.rope_the",
        ),
    ],
)
def test_two_places_that_disagree_are_both_named(change, places):
    with pytest.raises(ConfigError, match=f"config.json contradicts itself: .*{places}"):
        parse_config({**nested(), **change})


def test_two_spellings_that_disagree_are_both_named():
    config = tiny_config("old")
    config["vision_config"]["in_channels"] = 1
    with pytest.raises(ConfigError, match=r"vision_config\.in_channels is 1, .*\.in_chans is 3"):
        parse_config(config)
    with pytest.raises(ConfigError, match=r": image_token_id is 262, text_config\.image_token_id"):
        parse_config(nested(image_token_id=261))
    with pytest.raises(ConfigError, match="rope type 'yarn' is not supported"):
        parse_config({**tiny_config("old"), "rope_parameters": {"rope_type": "yarn"}})


@BOTH
def test_places_that_agree_are_one(family):
    config = nested(family)
    text = config["text_config"]
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}
    twice = {**text, **config, "rope_theta": 10000, "rope_scaling": rope}
    assert parse_config(twice) == parse_config(config)
    # The file that says it elsewhere: nested sizes, rope settings at the top.
    moved = dict(text)
    moved.pop("rope_parameters")
    top = {**config, "rope_theta": 1e4, "rope_scaling": rope, "text_config": moved}
    assert parse_config(top) == parse_config(config)


def test_a_setting_is_found_by_any_name():
    settings = Settings({"": {"a": 1, "c": None}, "inner": {"b": 1, "deep": {"d": 2}}})
    assert settings.find("a", "b") == settings["b"] == 1
    assert settings.find("c", default=5) == 5
    assert settings.enter("deep").parts == {"inner.deep": {"d": 2}}
    with pytest.raises(KeyError, match="c"):
        settings["c"]


@pytest.mark.parametrize("scaling", [{"type": "mrope"}, {"rope_type": "default"}, {}, None])
def test_sections_that_are_not_stated_are_the_usual_ones(scaling):
    config = {**list_sizes()["qwen2-vl-7b"], "rope_scaling": scaling}
    assert parse_config(config).decoder.rope == RopeConfig(128, 1e6, (16, 24, 24))


@pytest.mark.parametrize("scaling", [{"type": "mrope"}, {"rope_type": "default"}, None])
def test_sections_that_cannot_be_the_usual_ones_are_asked_for(scaling):
    config = {**tiny_config("old"), "rope_scaling": scaling}
    with pytest.raises(ConfigError, match=r"no mrope_section.*\[16, 24, 24\] does not fit.*= 8"):
        parse_config(config)


@pytest.mark.parametrize(
    ("sections", "message"),
    [([], "must be three counts"), ([4, 4], "three counts"), ([-1, 5, 4], "three counts")],
)
def test_sections_of_another_shape_are_refused(sections, message):
    config = {**tiny_config("old"), "rope_scaling": {"type": "mrope", "mrope_section": sections}}
    with pytest.raises(ConfigError, match=message):
        parse_config(config)


def test_logits_without_sections_equal_transformers(tmp_path, load_torch, highest_precision):
    torch = pytest.importorskip("torch")
    config = tiny_config("old", **WIDE) | {"rope_scaling": {"type": "mrope"}}
    write_checkpoint(tmp_path, config, generation="old")
    arrays = hf_arrays(CASES["two unequal images"])
    model, _ = ivc_jax.load(tmp_path)
    ours = ivc_jax.prefill(model, ivc_jax.Batch.from_hf(**arrays)).logits
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    kinds = (tensors["input_ids"] == IMAGE).int()
    theirs = load_torch(tmp_path)(**tensors, mm_token_type_ids=kinds).logits[:, -1].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]
)
@pytest.mark.parametrize("number", [272, -1])
def test_marks_without_an_embedding_are_named(name, number):
    with pytest.raises(ConfigError, match=f"^{name} {number} has no embedding: vocab_size is 272;"):
        parse_config(tiny_config("old") | {name: number})
