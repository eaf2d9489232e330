"""The real model behind the evaluation loop, with honest timing."""

import hashlib
import os
import pathlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import PIL.Image

from ivc_jax.engine.cost import prefill_flops
from ivc_jax.engine.decode import Output, decode
from ivc_jax.engine.prefill import Prefill, encode, prefill
from ivc_jax.evals.runner import Answer
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.methods.base import Method
from ivc_jax.model import Model
from ivc_jax.parallel import place_inputs
from ivc_jax.types import Inputs

_MOST_WORKERS = 4
_HASHED_WHOLE = 1 << 28  # bytes; of larger files only both ends are read


class ModelAnswerer:
    """Answers with a loaded model; see `ivc_jax.evals.runner.Answerer`.

    Args:
        buckets: sizes that batches are padded to.
        share_tower: run the vision tower once for each batch, before its methods; the times of a
            prefill leave it out, but for the blocks that a method's own questions need.
    """

    def __init__(
        self, model: Model, processor: Any, buckets: Buckets, share_tower: bool = False
    ) -> None:
        self.model = model
        self.processor = processor
        self.buckets = buckets
        self.share_tower = share_tower
        self.family = model.config.family
        self._warm: set[tuple] = set()

    def prepare(
        self, prompts: Sequence[str], images: Sequence[Sequence[PIL.Image.Image]]
    ) -> tuple[Inputs, Inputs]:
        """Tokenize and pad a batch; return it on the host and on the device."""
        inputs = self.pad(prompts, images)
        # transferred once here, not by every method within its prefill time
        device = place_inputs(inputs, self.model.mesh)
        if self.share_tower:
            device = encode(self.model, device)
        return inputs, jax.block_until_ready(device)

    def pad(self, prompts: Sequence[str], images: Sequence[Sequence[PIL.Image.Image]]) -> Inputs:
        """Tokenize and pad a batch on the host."""
        batch = self.processor(prompts=list(prompts), images=[list(group) for group in images])
        return collate(batch, self.model.config, self.buckets)

    def warm_up(
        self, prepared: tuple[Inputs, Inputs], methods: Sequence[Method], max_new_tokens: int
    ) -> None:
        """Compile what these methods need for a batch of this shape, by running it once.

        Compiling is one thread's work, so on CPU several programs compile at a time. Accelerators
        take one after the other: two batches might not fit into their memory.
        """
        _, device = prepared
        leaves, structure = jax.tree.flatten(device)
        shape = (structure, *(leaf.shape for leaf in leaves))
        new = [(method, shape, max_new_tokens) for method in methods]
        new = [key for key in new if key not in self._warm]
        on_cpu = jax.default_backend() == "cpu"
        workers = min(os.cpu_count() or 1, _MOST_WORKERS) if on_cpu else 1
        with ThreadPoolExecutor(workers) as pool:
            runs = [pool.submit(self._run, device, method, max_new_tokens) for method, *_ in new]
            for run in runs:
                run.result()
        self._warm.update(new)

    def answer(
        self, prepared: tuple[Inputs, Inputs], method: Method, max_new_tokens: int
    ) -> list[Answer]:
        """Run prefill and decode and time both; `warm_up` keeps compiling out of the times."""
        host, device = prepared
        prompt, output, prefill_seconds, decode_seconds = self._run(device, method, max_new_tokens)
        lengths = np.asarray(output.lengths)
        texts = self.processor.decode(output.tokens, output.lengths)
        shares, flops = prompt.cached_share, prefill_flops(self.model.config.decoder, prompt)
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
                cached_share=float(shares[sample]),
                flops=float(flops[sample]),
            )
            for sample, text in enumerate(texts)
        ]

    def _run(
        self, device: Inputs, method: Method, max_new_tokens: int
    ) -> tuple[Prefill, Output, float, float]:
        start = time.perf_counter()
        prompt = prefill(self.model, device, method)
        jax.block_until_ready((prompt.logits, prompt.cache))
        middle = time.perf_counter()
        output = decode(self.model, prompt, max_new_tokens, tuple(self.processor.stop_ids))
        jax.block_until_ready(output.tokens)
        return prompt, output, middle - start, time.perf_counter() - middle


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
