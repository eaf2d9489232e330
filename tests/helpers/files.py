"""Files of tiny checkpoints beside their tensors: a tokenizer, and settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_tokenizer(folder: Path, marks: Sequence[str], begin: str | None = None) -> None:
    """Write a byte-level `tokenizer.json`: 256 bytes, then the marks.

    Args:
        begin: the mark that it puts in front of what it encodes.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_settings(folder: Path, **files: dict[str, Any]) -> None:
    """Write `NAME.json` for each."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
