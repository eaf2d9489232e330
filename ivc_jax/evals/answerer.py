"""The real model behind the evaluation loop, with honest timing."""

import hashlib
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image

from ivc_jax.engine.decode import decode
from ivc_jax.engine.prefill import Prefill, compiled_programs, prefill
from ivc_jax.evals.runner import Answer
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.methods.base import Method
from ivc_jax.model import Model
from ivc_jax.parallel import place_inputs
from ivc_jax.types import Inputs

_HASHED_WHOLE = 1 << 28  # bytes; of larger files only both ends are read


class ModelAnswerer:
    """Answers with a loaded model; see `ivc_jax.evals.runner.Answerer`.

    Args:
        buckets: sizes that batches are padded to.
    """

    def __init__(self, model: Model, processor: Any, buckets: Buckets) -> None:
        self.model = model
        self.processor = processor
        self.buckets = buckets
        self.family = model.config.family
        self._warm: set[tuple] = set()

    def prepare(
        self, prompts: Sequence[str], images: Sequence[Sequence[PIL.Image.Image]]
    ) -> tuple[Inputs, Inputs]:
        """Tokenize and pad a batch; return it on the host and on the device."""
        batch = self.processor(prompts=list(prompts), images=[list(group) for group in images])
        inputs = collate(batch, self.model.config, self.buckets)
        return inputs, jax.block_until_ready(place_inputs(inputs, self.model.mesh))

    def answer(
        self, prepared: tuple[Inputs, Inputs], method: Method, max_new_tokens: int
    ) -> list[Answer]:
        """Run prefill and decode, again if either had to be compiled, and time both."""
        host, device = prepared
        while True:
            programs = compiled_programs()
            prompt, prefill_seconds = _timed(prefill, self.model, device, method)
            shapes = tuple(span.keys.shape for span in prompt.cache)
            output, decode_seconds = _timed(
                decode, self.model, prompt, max_new_tokens, tuple(self.processor.stop_ids)
            )
            key = (method, shapes, max_new_tokens)
            if programs == compiled_programs() and key in self._warm:
                break
            self._warm.add(key)
        lengths = np.asarray(output.lengths)
        texts = self.processor.decode(output.tokens, output.lengths)
        size = len(texts)
        return [
            Answer(
                text=text,
                visual_tokens=int(host.layout.visual_valid[sample].sum()),
                kept=_kept_visual(prompt, host, sample),
                grids=_grids(host, sample),
                kv_bytes=prompt.kv_bytes / size,
                prefill_ms=prefill_seconds * 1000 / size,
                decode_ms=decode_seconds * 1000 / size,
                # the loop runs until the longest answer of the batch has ended
                decode_steps=int(lengths.max()),
            )
            for sample, text in enumerate(texts)
        ]


def fingerprint(path: str) -> str:
    """Identify the files of a model folder by content; a name that is no folder stands for itself.

    Large files count with their size and their first and last mebibyte.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(part for part in folder.rglob("*") if part.is_file()):
        if file.suffix in (".md", ".jsonl", ".png"):
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}:{size}:".encode())
        with file.open("rb") as content:
            if size <= _HASHED_WHOLE:
                digest.update(hashlib.file_digest(content, "sha256").digest())
                continue
            digest.update(content.read(1 << 20))
            content.seek(-(1 << 20), 2)
            digest.update(content.read())
    return digest.hexdigest()[:16]


def _timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function(*arguments)
    arrays = (result.logits, result.cache) if isinstance(result, Prefill) else result.tokens
    jax.block_until_ready(arrays)
    return result, time.perf_counter() - start


def _kept_visual(prompt: Prefill, host: Inputs, sample: int) -> list[int]:
    """Translate surviving prompt positions into visual tokens counted from 0."""
    count = int(host.layout.visual_valid[sample].sum())
    slots = np.asarray(host.layout.visual_index[sample, :count])
    return np.flatnonzero(np.isin(slots, prompt.kept[sample])).tolist()


def _grids(host: Inputs, sample: int) -> list[list[int]]:
    """List (frames, rows, columns) of each image of a sample, in tokens."""
    valid = np.asarray(host.layout.visual_valid[sample])
    cells = np.asarray(host.layout.grid[sample])[valid]
    images = np.asarray(host.layout.image_id[sample])[valid]
    return [(cells[images == image].max(axis=0) + 1).tolist() for image in np.unique(images)]
