"""`tokenizer.model` files, written here by hand."""

import json
import struct

import pytest

from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.tokenizer import Tokenizer, find_id

NORMAL, UNKNOWN, CONTROL, DEFINED, BYTE = 1, 2, 3, 4, 6
# "▁" is a blank. Of "the", "th" is made before "he": its score is higher.
PIECES = [
    *(("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)),
    *((f"<0x{number:02X}>", 0, BYTE) for number in range(256)),
    *(("th", -1, NORMAL), ("he", -2, NORMAL), ("▁the", -4, NORMAL), ("▁th", -3, NORMAL)),
    *((letter, -10 - number, NORMAL) for number, letter in enumerate("▁the n")),
    *(("[UNUSED_TOKEN_0]", 0, DEFINED), ("[UNUSED_TOKEN_1]", 0, DEFINED)),
]
ID = {text: number for number, (text, _, _) in enumerate(PIECES)}


def varint(value):
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def write(folder, prefix=False, kind=2, **settings):
    pieces = (
        field(1, field(1, text) + field(2, float(score)) + field(3, piece))
        for text, score, piece in PIECES
    )
    trained, prepared = field(3, kind) + field(35, 1), field(1, "identity") + field(3, int(prefix))
    (folder / "tokenizer.model").write_bytes(
        b"".join(pieces) + field(2, trained) + field(3, prepared)
    )
    end, image = len(PIECES) - 2, len(PIECES)
    usual = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "added_tokens_decoder": {
            str(end): {"content": "<|im_end|>", "special": True},
            str(image): {"content": "<IMG_CONTEXT>", "special": True},
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(usual | settings))
    return Tokenizer.from_pretrained(folder)


def texts(ids):
    return [next(text for text, number in ID.items() if number == each) for each in ids]


def test_pairs_are_merged_by_score_and_bytes_stand_in(tmp_path):
    tokenizer = write(tmp_path)
    ids = tokenizer.encode("then the", add_special_tokens=False)
    assert texts(ids) == ["th", "e", "n", "▁the"]
    assert tokenizer.decode(ids) == "then the"
    ids = tokenizer.encode("é", add_special_tokens=False)
    assert texts(ids) == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "é"


def test_tokens_that_settings_rename_and_add(tmp_path):
    tokenizer = write(tmp_path)
    ids = tokenizer.encode("the<|im_end|><IMG_CONTEXT>")
    assert ids == [ID["<s>"], ID["th"], ID["e"], len(PIECES) - 2, len(PIECES)]
    assert tokenizer.decode(ids) == "the"
    assert find_id(tmp_path, "<|im_end|>") == len(PIECES) - 2
    assert tokenizer.encode("[UNUSED_TOKEN_1]", add_special_tokens=False) == [len(PIECES) - 1]


def test_what_stands_in_front_of_a_text(tmp_path):
    tokenizer = write(tmp_path, prefix=True, add_bos_token=False)
    assert texts(tokenizer.encode("the")) == ["▁the"]
    assert tokenizer.decode([ID["▁the"]]) == "the"


def test_files_that_are_no_such_models(tmp_path):
    with pytest.raises(InputError, match="has no byte pairs, which are all that is read"):
        write(tmp_path, kind=1)
    write(tmp_path)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[:-5])
    with pytest.raises(InputError, match="is no SentencePiece model; fetch it again"):
        Tokenizer.from_pretrained(tmp_path)
