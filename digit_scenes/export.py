"""Write a Hugging Face checkpoint directory."""

import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from digit_scenes import tokenizer


def make_generation_config(special_ids: dict[str, int]) -> dict[str, Any]:
    """Return `generation_config.json`: greedy answers, which are short."""
    stop, pad = special_ids["<|im_end|>"], special_ids["<|endoftext|>"]
    return {"do_sample": False, "eos_token_id": stop, "pad_token_id": pad, "max_new_tokens": 16}


def write_folder(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    words: Tokenizer,
    settings: Mapping[str, dict[str, Any]],
    *,
    card: str = "",
    log: pathlib.Path | None = None,
    template: str = tokenizer.CHAT_TEMPLATE,
) -> None:
    """Write a checkpoint directory, tensors as float32.

    The directory appears in one step: readers see the old one or the new one, whole.

    Args:
        settings: contents of the JSON files, by name.
        card: text of README.md.
        log: training log to put beside the weights.
        template: the chat template.
    """
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    fresh.chmod(0o755)
    try:
        weights = fresh / "model.safetensors"
        floats = {name: array.astype(np.float32) for name, array in tensors.items()}
        save_file(floats, weights, metadata={"format": "pt"})
        weights.chmod(0o644)
        tokenizer.save(words, fresh, template)
        for name, content in settings.items():
            (fresh / name).write_text(json.dumps(content, indent=2) + "\n")
        (fresh / "README.md").write_text(card)
        if log is not None and log.exists():
            shutil.copyfile(log, fresh / "training_log.jsonl")
        old = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
