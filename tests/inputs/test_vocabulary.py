"""Token ids that the embedding does not have are named, wherever they come from."""

import json
from pathlib import Path

import pytest
from families.qwen import write_processor_files
from helpers.tiny import tiny_config

from ivc_jax.families import QWEN2_VL, parse_config
from ivc_jax.inputs.batch import Batch, InputError
from ivc_jax.inputs.bucket import collate
from ivc_jax.model import load_processor

CONFIG = parse_config(tiny_config())  # 272 embeddings; the tokenizer fills 264


def grow(folder: Path, count: int = 20) -> int:
    """Add tokens to the tokenizer alone, as fine-tuning scripts do; return the first new id."""
    content = json.loads((folder / "tokenizer.json").read_text())
    first = 1 + max(token["id"] for token in content["added_tokens"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] += [
        {"id": first + index, "content": f"<|loc_{index}|>", "special": True, **flags}
        for index in range(count)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return first


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_processor_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_without_an_embedding_are_named(folder, chat, caplog):
    first = grow(folder)
    grown = load_processor(folder, CONFIG, QWEN2_VL)
    beyond = 272 - first  # the first without an embedding
    assert f"{20 - beyond} added tokens have no embedding (vocab_size 272)" in caplog.text
    assert f"<|loc_{beyond}|>" in caplog.text
    assert 271 in grown([f"<|loc_{beyond - 1}|>"], chat=chat).tokens[0]
    message = "sample 1: token id 272 has no embedding, vocab_size is 272; use the tokenizer that"
    with pytest.raises(InputError, match=message):
        grown(["a", f"b <|loc_{beyond}|>"], chat=chat)
    with pytest.raises(InputError, match="token id 272 has no embedding"):
        grown.measure(f"<|loc_{beyond}|>", [], chat)
    if chat:
        with pytest.raises(InputError, match="token id 272 has no embedding"):
            grown([{"role": "user", "content": f"<|loc_{beyond}|>"}])


@pytest.mark.parametrize("number", [272, 100_000, -200])
def test_ids_of_other_processors_without_an_embedding_are_named(number):
    rows = [[1, 2, 3, 9], [number, 4, 271, 5]]
    batch = lambda mask: Batch.from_hf(input_ids=rows, attention_mask=mask)  # noqa: E731
    message = f"sample 1: token id {number} has no embedding, vocab_size is"
    with pytest.raises(InputError, match=message):
        collate(batch(None), CONFIG)
    # Padding is not read.
    assert collate(batch([[1] * 4, [0, 1, 1, 1]]), CONFIG).tokens[1, :3].tolist() == [4, 271, 5]


def test_ids_that_an_int32_does_not_hold_are_named():
    with pytest.raises(InputError, match="sample 0: token id 4294967301 has no embedding"):
        Batch.from_hf(input_ids=[[1, 2**32 + 5]])
    with pytest.raises(InputError, match="input_ids must be integers, got float64"):
        Batch.from_hf(input_ids=[[1.5, 2.0]])
