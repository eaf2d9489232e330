"""Both forms of tokenizer files give Hugging Face's ids."""

import json
from pathlib import Path

import pytest
from families.qwen import change, write_processor_files

from ivc_jax.families import QWEN2_VL
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.messages import quote
from ivc_jax.inputs.tokenizer import Tokenizer, read_stop_ids

TEXTS = [
    "",
    "Locate the red 7.",
    "\nLocate the red 7.\n\n  Thanks, it's 100 % right!",
    "naïve café — 漢字 🙂\t\r\n",
    "<|im_start|>user<|im_end|> <|image_pad|>",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_processor_files(tmp_path)
    return tmp_path


def read_old(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder, QWEN2_VL.word_pattern)


def write_trained_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE with merges as vocab.json, merges.txt and tokenizer_config.json."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([*TEXTS, "the red seven, the blue 100"] * 9, vocab_size=330)
    folder.mkdir()
    trained.save_model(str(folder))
    size = trained.get_vocab_size()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<tool>"]
    added = {
        str(size + index): {"content": mark, "special": mark != "<tool>", "normalized": False}
        for index, mark in enumerate(marks)
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "model_max_length": 9}
    config |= {"pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "added_tokens_decoder": added})
    )


@pytest.mark.parametrize("text", TEXTS)
def test_both_tokenizer_forms_equal_hf(folder, text):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_trained_tokenizer(folder / "bpe")
    for path in (folder, folder / "bpe"):
        reference = transformers.AutoTokenizer.from_pretrained(path)
        tokenizer = read_old(path)
        ids = tokenizer.encode(text)
        assert ids == reference(text)["input_ids"]
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == reference.decode(
                ids, skip_special_tokens=skip
            )


def test_bpe_from_its_two_files_merges_and_keeps_added_ids(tmp_path):
    write_trained_tokenizer(tmp_path / "bpe")
    tokenizer = read_old(tmp_path / "bpe")
    assert len(tokenizer.encode("the red the red")) < len("the red the red") // 2
    assert tokenizer.decode(tokenizer.encode("it's <tool> 漢<|im_end|>")) == "it's <tool> 漢"
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    change(
        tmp_path / "bpe" / "tokenizer_config.json",
        added_tokens_decoder={"9999": {"content": "<far>", "special": True}},
    )
    with pytest.raises(InputError, match="gives '<far>' the id 9999, the vocabulary"):
        read_old(tmp_path / "bpe")


def write_older(folder: Path, *, map_file: bool, special: bool = True) -> None:
    """Move the added tokens of the trained tokenizer to added_tokens.json."""
    write_trained_tokenizer(folder)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    added = content.pop("added_tokens_decoder")
    ids = {entry["content"]: int(number) for number, entry in added.items()}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    marks = [entry["content"] for entry in added.values() if entry["special"]] if special else []
    named = {name: content.pop(name) for name in ("eos_token", "pad_token", "unk_token")}
    named["additional_special_tokens"] = marks
    if map_file:
        (folder / "special_tokens_map.json").write_text(json.dumps(named))
    else:
        content |= named
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("map_file", [True, False])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", [*TEXTS, "a<|im_end|> <tool><|im_start|>b"])
def test_added_tokens_in_a_file_of_their_own_equal_hf(tmp_path, map_file, special, text):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_older(tmp_path / "bpe", map_file=map_file, special=special)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "bpe")
    tokenizer = read_old(tmp_path / "bpe")
    ids = tokenizer.encode(text)
    assert ids == reference(text)["input_ids"]
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == reference.decode(
            ids, skip_special_tokens=skip
        )


def test_added_tokens_in_a_file_of_their_own_are_single_ids(tmp_path):
    write_older(tmp_path / "bpe", map_file=True)
    tokenizer = read_old(tmp_path / "bpe")
    ids = json.loads((tmp_path / "bpe" / "added_tokens.json").read_text())
    assert tokenizer.encode("<|im_end|><tool>") == [ids["<|im_end|>"], ids["<tool>"]]
    assert tokenizer.decode(tokenizer.encode("a<|im_end|><tool>")) == "a<tool>"
    assert read_stop_ids(tmp_path / "bpe", tokenizer) == (ids["<|im_end|>"],)
    change(tmp_path / "bpe" / "added_tokens.json", **{"<far>": 9999})
    with pytest.raises(InputError, match=r"^added_tokens\.json gives '<far>' the id 9999, the vo"):
        read_old(tmp_path / "bpe")
    # A list of added tokens in tokenizer_config.json is the newer word.
    change(tmp_path / "bpe" / "tokenizer_config.json", added_tokens_decoder={})
    assert len(read_old(tmp_path / "bpe").encode("<|im_end|>")) > 1


def test_stop_ids_come_from_the_generation_config(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    assert read_stop_ids(folder, tokenizer) == (258, 256)
    change(folder / "generation_config.json", eos_token_id=258)
    assert read_stop_ids(folder, tokenizer) == (258,)
    (folder / "generation_config.json").unlink()
    assert read_stop_ids(folder, tokenizer) == (258,)
    change(folder / "tokenizer_config.json", eos_token=None)
    assert read_stop_ids(folder, Tokenizer.from_pretrained(folder)) == ()


def test_a_tokenizer_of_another_model_is_named(folder):
    with pytest.raises(InputError, match="the tokenizer has no token 99999"):
        Tokenizer.from_pretrained(folder).token(99999)


WORDS = [
    "Say <|im_end|>!",
    "<|im_start|>",
    "the<|im_end|> red<|image_pad|>  <|im_start|>seven\n",
    "it's <tool>, <|no such token|> é 漢",
]


@pytest.mark.parametrize("form", ["single file", "two files"])
@pytest.mark.parametrize("words", WORDS)
def test_quoted_special_tokens_are_words_as_hf_splits_them(folder, form, words):
    """Between special tokens that count, before and behind other text."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if form == "two files":
        folder = folder / "bpe"
        write_trained_tokenizer(folder)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    split = lambda text: reference(text, split_special_tokens=True)["input_ids"]  # noqa: E731
    start, end = reference.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    tokenizer = read_old(folder)
    text = f"<|im_start|>user\nIs {quote(words)} the?<|im_end|>\n<|im_start|>"
    ids = [start, *split(f"user\nIs {words} the?"), end, *split("\n"), start]
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode(quote(words)) == split(words)
    assert tokenizer.encode(words) == reference(words)["input_ids"]  # the switch is not left on
    assert tokenizer.decode(ids, skip_special_tokens=False) == text.replace(quote(words), words)


def test_quoting_changes_nothing_else(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    for text in ("", "Locate the red 7.", "a < b, [c] _d_ <image>", "naïve café — 漢字 🙂\t\r\n"):
        assert tokenizer.encode(quote(text)) == tokenizer.encode(text)
    assert quote("The man.") == "The man."  # the last character is what prompts may cut
