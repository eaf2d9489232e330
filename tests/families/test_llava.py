"""LLaVA-1.5 against transformers: tensor names, logits, greedy tokens, prompts, bad files."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from families import llava
from families.llava import ID, PATCH, RAGGED, SIDE, TOKENS, hf_arrays
from families.qwen import change
from helpers.tiny import tiny_config, write_checkpoint
from PIL import Image
from safetensors.numpy import load_file, save_file

import ivc_jax
from checkpoints_convert.__main__ import main as convert
from ivc_jax.config import ConfigError
from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.evals.running.tsv import Row
from ivc_jax.families import LLAVA, list_sizes, parse_config
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.bucket import Buckets
from ivc_jax.inputs.messages import quote
from ivc_jax.weights.keymap import to_hf_names

CASES = {
    "text only": [(9,)],
    "one picture": [(4, "image", 5)],
    "two pictures": [(2, "image", 3, "image", 5)],
    "two that touch": [(2, "image", "image", 5)],
    "ragged batch": RAGGED,
}
BUCKET = Buckets(visual=(2 * TOKENS,), rows=(2, 3), images=(2,))  # of one prompt, of three
CHECKPOINTS = {
    "published": {"generation": "old"},
    "tied, grouped": {"generation": "new", "tied": True, "num_key_value_heads": 2},
    "newest": {"generation": "newest"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a function that writes a checkpoint whose files hold what nobody reads, too."""

    def make(generation="old", tied=False, **text):
        folder = tmp_path_factory.mktemp("llava")
        layout = "old" if generation == "old" else "new"
        config = tiny_config(layout, tied, "llava", **text)
        write_checkpoint(folder, config, family="llava", generation="old")
        tensors = load_file(folder / "model.safetensors") | llava.unread_tensors()
        rename = {"old": str, "new": llava.new_name, "newest": llava.newest_name}[generation]
        tensors = {rename(name): tensor for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="module")
def loaded(folder):
    return ivc_jax.load(folder(), dtype="float32")


@pytest.fixture(scope="module")
def pairs(folder, load_torch):
    @functools.cache
    def make(name):
        path = folder(**CHECKPOINTS[name])
        return ivc_jax.load(path, dtype="float32")[0], load_torch(path)

    return make


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(("published", case) for case in CASES),
        ("tied, grouped", "ragged batch"),
        ("newest", "two pictures"),
    ],
)
def test_logits_and_32_greedy_tokens_equal_transformers(pairs, name, case):
    pytest.importorskip("torch")
    from helpers import parity

    model, reference = pairs(name)
    arrays = hf_arrays(CASES[case])
    wanted = parity.ask(reference, parity.to_tensors(arrays))
    parity.check_answers(model, arrays, *wanted, buckets=BUCKET)


def test_what_nobody_reads_is_excused_and_nothing_else(folder):
    path = folder()
    tensors = load_file(path / "model.safetensors")
    name = "vision_tower.vision_model.encoder.layers.3.self_attn.gate.weight"
    save_file(tensors | {name: np.zeros(3, np.float32)}, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 problem\(s\):\n  unused: vision_tower.*gate"):
        ivc_jax.load(path)
    name = "vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias"
    save_file({k: v for k, v in tensors.items() if k != name}, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 problem\(s\):\n  missing: vision_tower.*fc1.bias"):
        ivc_jax.load(path)


def test_released_files_state_no_sizes():
    """The defaults of the three classes that read them."""
    stated = {"vocab_size": 32064, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    small = {"model_type": "llava", "text_config": stated}
    config = parse_config(small)
    assert config == parse_config(list_sizes()["llava-1.5-7b"])
    decoder, vision = config.decoder, config.vision
    assert (decoder.num_layers, decoder.hidden_size, decoder.intermediate_size) == (32, 4096, 11008)
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (32, 32, 128)
    assert (vision.depth, vision.embed_dim, vision.num_heads) == (23, 1024, 16)
    assert (vision.mlp_dim, vision.norm_eps) == (4096, 1e-5)
    assert (vision.table_side, vision.patch_size) == (24, 14)
    assert (config.image_token_id, config.released.layer) == (32000, 16)
    unsaid = {"text_config": {"vocab_size": 32064}}
    assert parse_config(small | unsaid).decoder.norm_eps == 1e-6
    bare = parse_config({**small, "vision_config": {"hidden_act": "quick_gelu"}}).vision
    assert (bare.depth, bare.embed_dim, bare.table_side) == (11, 768, 7)
    large = parse_config(list_sizes()["llava-1.5-13b"])
    assert (large.decoder.num_layers, large.released.layer) == (40, None)
    assert large.released.combine == "union"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("projector_hidden_act", "relu", "projector_hidden_act 'relu' is not supported"),
        ("vision_feature_select_strategy", "full", "vision_feature_select_strategy 'full'"),
        ("vision_feature_layer", [-2, -5], r"vision_feature_layer \[-2, -5\] is not supported"),
        ("vision_feature_layer", -9, "name one of the 4 blocks"),
        ("vision_feature_layer", -6, "or what comes before them, 0"),
        ("image_token_index", 400, "image_token_id 400 has no embedding"),
    ],
)
def test_settings_that_cannot_be_run_are_named(field, value, message):
    config = tiny_config(family="llava")
    with pytest.raises(ConfigError, match=message):
        parse_config(config | {field: value})
    assert parse_config(config | {"vision_feature_layer": 3}) == parse_config(config)
    for before in (0, -5):  # transformers counts what is embedded as a hidden state, too
        assert parse_config(config | {"vision_feature_layer": before}).vision.depth == 0


def test_other_halves_are_named():
    config = tiny_config(family="llava")
    config["text_config"] |= {"model_type": "mistral"}
    with pytest.raises(ConfigError, match="decoder model_type 'mistral' is not supported in LLaVA"):
        parse_config(config)
    config = tiny_config(family="llava")
    config["vision_config"] |= {"model_type": "siglip_vision_model"}
    with pytest.raises(ConfigError, match="vision model_type 'siglip_vision_model'"):
        parse_config(config)


def pictures(*seeds):
    draws = [np.random.default_rng(seed) for seed in seeds]
    return [draw.integers(0, 256, (20 + 9 * i, 31, 3), np.uint8) for i, draw in enumerate(draws)]


def test_prompts_and_pixels_equal_those_of_transformers(loaded, folder):
    """Chat and raw prompts: <s> in front, a picture's placeholder once a token, pictures first."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    _, processor = loaded
    theirs = transformers.AutoProcessor.from_pretrained(folder(), use_fast=False)
    shown = pictures(0, 1)
    raw = "USER: <image>\n<image>\nWhat changed? ASSISTANT:"
    expected = theirs(text=[raw], images=[list(shown)], return_tensors="np")
    messages = [{"role": "user", "content": [
        {"type": "text", "text": "What changed?"}, {"type": "image", "image": shown[0]},
        {"type": "image", "image": shown[1]},
    ]}]  # fmt: skip
    chat = theirs.apply_chat_template(messages, add_generation_prompt=True)
    chat_ids = theirs(text=[chat], images=[list(shown)], return_tensors="np")["input_ids"]
    for ids, batch in (
        (expected["input_ids"], processor([raw], [shown], chat=False)),
        (chat_ids, processor(messages)),
        (chat_ids, processor(["What changed?"], [shown])),
        (chat_ids, processor(["<image>What changed?<image>"], [shown])),
    ):
        np.testing.assert_array_equal(batch.tokens[0], ids[0])
    from_theirs = ivc_jax.Batch.from_hf(**expected)
    assert [each.grid for each in from_theirs.images] == [(1, SIDE, SIDE)] * 2
    logits = [
        ivc_jax.prefill(loaded[0], each).logits
        for each in (from_theirs, processor([raw], [shown], chat=False))
    ]
    np.testing.assert_array_equal(*logits)


def test_words_are_not_lost_where_a_template_reads_parts_alone(loaded):
    _, processor = loaded
    (tokens,) = processor(["Who is it?"]).tokens
    assert tokens[0] == ID["<s>"]
    assert processor.writer.tokenizer.decode(tokens) == "USER: Who is it? ASSISTANT:"
    # what a benchmark's cell quotes is no mark, and <s> is in front all the same
    (tokens,) = processor([quote("Is <image> a mark?")]).tokens
    assert tokens[0] == ID["<s>"]
    assert ID["<image>"] not in tokens


def test_a_folder_without_a_template_has_the_familys(folder):
    path = folder()
    (path / "chat_template.json").unlink()
    _, processor = ivc_jax.load(path)
    own = processor(["What?"], [pictures(0)]).tokens[0]
    written = processor(["USER: <image>\nWhat? ASSISTANT:"], [pictures(0)], chat=False).tokens[0]
    np.testing.assert_array_equal(own, written)


def test_one_placeholder_a_picture_says_what_to_do(loaded):
    arrays = hf_arrays([(4, "image", 5)])
    ids = arrays["input_ids"][0]
    first = list(ids).index(ID["<image>"])
    bare = np.concatenate([ids[: first + 1], ids[first + TOKENS :]])[None]
    batch = ivc_jax.Batch.from_hf(input_ids=bare, pixel_values=arrays["pixel_values"])
    with pytest.raises(InputError, match=r"36 placeholders, found 1; .*patch_size in proc"):
        ivc_jax.prefill(loaded[0], batch)


def test_pictures_of_another_size_are_refused(loaded):
    arrays = hf_arrays([(4, "image", 5)])
    pixels = np.zeros((1, 3, SIDE, SIDE + PATCH), np.float32)
    ids = np.concatenate([arrays["input_ids"], np.full((1, 6), ID["<image>"])], axis=1)
    batch = ivc_jax.Batch.from_hf(input_ids=ids, pixel_values=pixels)
    with pytest.raises(InputError, match=r"grid \(1, 6, 7\) should be 6 x 6"):
        ivc_jax.prefill(loaded[0], batch)


def test_padding_is_a_choice_of_the_file_and_of_the_caller(folder):
    path, picture = folder(), pictures(0)[0]
    shown = {None: ivc_jax.load(path)[1]([""], [[picture]]).images[0].patches}
    change(path / "preprocessor_config.json", do_pad=True)
    for pad in (None, False, True):
        images = ivc_jax.load(path, pad=pad)[1]([""], [[picture]]).images
        shown["file" if pad is None else pad] = images[0].patches
    np.testing.assert_array_equal(shown[None], shown[False])
    np.testing.assert_array_equal(shown["file"], shown[True])
    assert np.abs(shown[True] - shown[False]).max() > 0.1
    with pytest.raises(InputError, match="pad is the processor's"):
        ivc_jax.load(path, pad=True, processor=False)
    preprocessor = json.loads((path / "preprocessor_config.json").read_text())
    assert preprocessor["do_pad"] is True


def test_other_checkpoints_do_not_pad(tiny_hf):
    with pytest.raises(InputError, match="does not make pictures square; leave out pad"):
        ivc_jax.load(tiny_hf(), pad=True)


def test_conversion_is_verified_and_goes_back(folder, tmp_path, capsys):
    """What nobody reads is not written back."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = folder()
    assert convert([str(path), str(tmp_path / "target"), "--verify"]) == 0
    assert "verify, image prompt: largest difference" in capsys.readouterr().out
    model, _ = ivc_jax.load(tmp_path / "target", dtype="float32")
    published = dict(to_hf_names(model.params, model.config, LLAVA.rules))
    stored = load_file(path / "model.safetensors")
    assert published.keys() == stored.keys() - llava.unread_tensors().keys()
    for name, tensor in published.items():
        np.testing.assert_array_equal(tensor, stored[name])


def test_int8_weights_answer_alike(folder):
    pytest.importorskip("qwix")
    arrays = hf_arrays(RAGGED)
    exact, rounded = (
        ivc_jax.prefill(
            ivc_jax.load(folder(), dtype="float32", weights=weights)[0],
            ivc_jax.Batch.from_hf(**arrays),
        ).logits
        for weights in (None, "int8")
    )
    difference = np.abs(np.asarray(exact) - np.asarray(rounded)).max()
    assert 0 < difference < 0.05 * np.abs(exact).max()


def test_a_quoted_placeholder_in_a_message_is_words(loaded):
    """A question of a benchmark may hold <image>, which is this model's placeholder."""
    _, processor = loaded
    (shown,) = pictures(0)
    words = {"type": "text", "text": quote("What does <image> mean?")}
    picture = {"type": "image", "image": shown}
    (tokens,) = processor([{"role": "user", "content": [picture, words]}]).tokens
    assert (tokens == ID["<image>"]).sum() == TOKENS
    bare = {"type": "text", "text": "What does <image> mean?"}
    with pytest.raises(InputError, match="its text holds <image>, which stands for images"):
        processor([{"role": "user", "content": [picture, bare]}])


def test_benchmarks_are_asked_as_released(loaded):
    """By the released protocol a sentence comes first: the picture starts at 35, as there."""
    _, processor = loaded
    cells = {"question": "Is there a cat?", "answer": "Yes"}
    row = Row(0, "1", cells, tuple(map(Image.fromarray, pictures(0))), 0)
    entry = TaskEntry(tasks.find(("POPE",))[0], None, released=True)
    (ids,) = processor(entry.write_messages(row, "llava")).tokens
    own = dataclasses.replace(entry, released=False)
    assert len(own.write_messages(row, "llava")) == 1
    assert len(entry.write_messages(row, "qwen2_vl")) == 1
    shown = processor.writer.tokenizer.decode(ids, skip_special_tokens=False)
    before, after = shown.split("<image>" * TOKENS)
    assert before == (
        "<s>A chat between a curious human and an artificial intelligence assistant. The assistant"
        " gives helpful, detailed, and polite answers to the human's questions. USER: "
    )
    assert after == "\nIs there a cat? ASSISTANT:"
