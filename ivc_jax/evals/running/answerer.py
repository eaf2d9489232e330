"""The real model behind the evaluation loop, with honest timing."""

import dataclasses
import hashlib
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import jax
import numpy as np

from ivc_jax.engine.cost import count_prefill_flops
from ivc_jax.engine.decode import Output, answer
from ivc_jax.engine.finite import explain_broken
from ivc_jax.engine.prefill import Prefill, encode, prefill
from ivc_jax.engine.rating import rate_frames
from ivc_jax.engine.score import Score, pad_answers, rate
from ivc_jax.evals.benchmarks.released import Bounds
from ivc_jax.evals.benchmarks.scorers.base import Reader
from ivc_jax.evals.running.memory_maps import find_limit, is_nearly_full
from ivc_jax.evals.running.recording import Answer
from ivc_jax.inputs.batch import Batch
from ivc_jax.inputs.bucket import Shape, Size, pad
from ivc_jax.inputs.layout import Arrangement, arrange
from ivc_jax.inputs.messages import Messages, list_visuals
from ivc_jax.inputs.objects import Box
from ivc_jax.inputs.processor import Processor
from ivc_jax.methods.base import Method
from ivc_jax.methods.requests import Objects, Relevance, Request, TowerAttention
from ivc_jax.model import Model
from ivc_jax.parallel import processes
from ivc_jax.parallel.batch import assemble, fetch
from ivc_jax.types import Inputs

_log = logging.getLogger(__name__)

_MOST_WORKERS = 4
_HASHED_WHOLE = 1 << 28  # bytes; of larger files only both ends are read

# On the host: what stands in for a sample that could not be read, its images left out.
_NOTHING = Batch(tokens=(np.zeros(1, np.int32),))


class ModelAnswerer:
    """Answers with a loaded model; see `ivc_jax.evals.running.runner.Answerer`.

    Args:
        share_tower: run the vision tower once for each batch, before its methods; the times of a
            prefill leave it out, but for the blocks that a method's own questions need.
        share_pictures: a picture that several samples of a batch ask about goes through the tower
            once. Not for methods that ask for attention in the tower (`can_share_pictures`).
        with_objects: every batch says where objects are, those of tasks that do not know that there
            are none, so that all have one form. Methods that ask are kept from those tasks.
        rates_frames: rate the frames of samples that have several by the model itself, which finds
            what to look for first (`engine.rating`), and never while an answer is timed.
    """

    def __init__(
        self,
        model: Model,
        processor: Processor,
        share_tower: bool = False,
        share_pictures: bool = False,
        with_objects: bool = False,
        rates_frames: bool = False,
    ) -> None:
        self.model = model
        self.processor = processor
        self.share_tower, self.share_pictures = share_tower, share_pictures
        self.with_objects, self.rates_frames = with_objects, rates_frames
        self.family = model.config.family
        self.num_shards = processes.num_shards(model.mesh)
        self.local_shards = processes.local_shards(model.mesh)
        # Compiling is one thread's work, so on CPU several programs compile at a time. Accelerators
        # take one after the other: two batches might not fit into their memory. So do several
        # processes, which must all run the same program at a time.
        alone = jax.default_backend() == "cpu" and jax.process_count() == 1
        self.compiles_at_once = min(os.cpu_count() or 1, _MOST_WORKERS) if alone else 1
        self._can_drop = alone
        self._busy = threading.Lock()  # by what is timed, or by rating in a thread that loads
        # programs that have run: (method, shapes, bound on answers); those compiled now, and ever
        self._warm: set[tuple] = set()
        self._met: set[tuple] = set()

    def find_owner(self, shard: int) -> int:
        """Return the process that records a shard."""
        return processes.owner(self.model.mesh, shard)

    def make_reader(self, bounds: Bounds | None = None) -> Reader:
        """Return what reads the answers about pictures within these bounds."""
        return Reader(self.family, self._bound(bounds).images)

    def measure(self, messages: Messages, bounds: Bounds | None = None) -> Size:
        """Say what a conversation takes up, from the sizes of its PIL images and video files."""
        visuals = list_visuals(messages, 0)
        sizes = [image.size for image in visuals["image"]]
        return self._bound(bounds).measure(messages, sizes, videos=visuals["video"])

    def process(
        self,
        messages: Messages,
        bounds: Bounds | None = None,
        objects: Sequence[Sequence[Box]] | None = None,
    ) -> Batch:
        """Tokenize one conversation and cut its visuals, with boxes in images, into patches."""
        boxes = None if objects is None else [objects]
        processor, relevance, own = self._bound(bounds), None, (self.model, self.processor)
        if self.rates_frames:
            with self._busy:
                relevance = rate_frames(own, processor, [messages], decoupler=own)
        return processor(prompts=[messages], objects=boxes, relevance=relevance)

    def _bound(self, bounds: Bounds | None) -> Processor:
        if bounds is None:
            return self.processor
        return self.processor.bound(**dataclasses.asdict(bounds))

    def collate(
        self,
        samples: Sequence[Batch | None],
        shape: Shape,
        holders: Sequence[int | None] | None = None,
    ) -> Inputs:
        """Pad the samples of a shard; the first stands in for those that are None.

        Args:
            holders: samples with the same number have the same pictures, which they may share.
        """
        known = [sample for sample in samples if sample is not None]
        filler = known[0] if known else _NOTHING
        share = self.share_pictures and holders is not None
        if share:
            samples = list(samples)
            first: dict[int, tuple] = {}  # holder -> images and videos of its first sample
            for place, (sample, holder) in enumerate(zip(samples, holders, strict=True)):
                if sample is not None:
                    images, videos = first.setdefault(holder, (sample.images, sample.videos))
                    samples[place] = dataclasses.replace(sample, images=images, videos=videos)
        batch = Batch.join([filler if sample is None else sample for sample in samples])
        arranged = arrange(batch, self.model.config)
        if self.with_objects:
            arranged = [_fill_in(each, "objects", bool) for each in arranged]
        if self.rates_frames:
            arranged = [_fill_in(each, "relevance", np.float32) for each in arranged]
        return pad(arranged, self.model.config, shape, share)

    def place(self, parts: Mapping[int, Inputs]) -> Inputs:
        """Put the shards of a batch on the devices, and through the tower if it is shared."""
        # transferred once here, not by every method within its prefill time
        area = self.model.config.vision.merge_area
        device = assemble(parts, self.model.mesh, area)
        if self.share_tower:
            device = encode(self.model, device)
        return jax.block_until_ready(device)

    def warm_up(
        self,
        device: Inputs,
        methods: Sequence[Method],
        max_new_tokens: int,
        report: Callable[[], None] = lambda: None,
    ) -> None:
        """Compile what these methods need for a batch of this shape, by running it once.

        Where programs take up nearly all memory maps, all are dropped first and compiled, or read
        from the cache, when they are needed again.

        Args:
            report: called after each method that was not compiled before.
        """
        # jit keys its programs by structure and shapes, so this does too.
        leaves, structure = jax.tree.flatten(device)
        shape = (structure, *(leaf.shape for leaf in leaves))
        new = [(method, shape, max_new_tokens) for method in methods]
        new = [key for key in new if key not in self._warm]
        if new and self._can_drop and is_nearly_full():
            _log.warning(
                "the programs of %d methods fill the memory maps of this process: they are dropped,"
                " and each is made again when it is needed; faster with fewer methods in a run, or"
                " with vm.max_map_count above %d",
                *(len(self._warm), find_limit() or 0),
            )
            jax.clear_caches()
            self._warm.clear()
        with ThreadPoolExecutor(self.compiles_at_once) as pool:
            runs = {pool.submit(self._run, device, key[0], max_new_tokens): key for key in new}
            for run in as_completed(runs):
                run.result()
                if runs[run] not in self._met:
                    report()
        self._warm.update(new)
        self._met.update(new)

    def answer(self, device: Inputs, method: Method, max_new_tokens: int) -> list[Answer]:
        """Run prefill and decode and time both; `warm_up` keeps compiling out of the times."""
        with self._busy:
            prompt, output, prefill_seconds, decode_seconds = self._run(
                device, method, max_new_tokens
            )
        names = ("visual_valid", "visual_index", "grid", "image_id")
        places = {name: getattr(device.layout, name) for name in names}
        # tokens [B, T], lengths [B], finite [B]; of the layout what says where visual tokens are
        tokens, lengths, finite, layout = fetch(
            (output.tokens, output.lengths, output.finite, places)
        )
        prompt = _fetch_counts(prompt)
        texts = self.processor.decode(tokens, lengths)
        shares = prompt.cached_share  # [B]
        flops = count_prefill_flops(self.model.config.decoder, prompt)  # [B]
        size = len(texts)
        return [
            Answer(
                text=text,
                visual_tokens=int(layout["visual_valid"][sample].sum()),
                kept=_find_kept(prompt.kept[sample], layout, sample),
                grids=_measure_grids(layout, sample),
                kv_bytes=prompt.kv_bytes / size,
                prefill_ms=prefill_seconds * 1000 / size,
                decode_ms=decode_seconds * 1000 / size,
                # the loop runs until the longest answer of the batch has ended
                decode_steps=int(lengths.max()),
                cached_share=float(shares[sample]),
                flops=float(flops[sample]),
                error=None if finite[sample] else explain_broken(self.model),
            )
            for sample, text in enumerate(texts)
        ]

    def score(self, device: Inputs, method: Method, answers: Sequence[Sequence[int]]) -> Score:
        """Say how likely an answer to each prompt of a batch is; raises as `engine.score.score`."""
        tokens, lengths = pad_answers(self.model.config, answers, device.tokens.shape[0])
        return rate(self.model, prefill(self.model, device, method), tokens, lengths)

    def _run(
        self, device: Inputs, method: Method, max_new_tokens: int
    ) -> tuple[Prefill, Output, float, float]:
        start = time.perf_counter()
        prompt = prefill(self.model, device, method)
        # JAX returns before the work is done: wait, then read the clock
        jax.block_until_ready((prompt.logits, prompt.cache))
        middle = time.perf_counter()
        output = answer(self.model, prompt, max_new_tokens, tuple(self.processor.stop_ids))
        jax.block_until_ready(output.tokens)
        return prompt, output, middle - start, time.perf_counter() - middle


def _fill_in(sample: Arrangement, name: str, dtype: type) -> Arrangement:
    """Say 0 of all tokens where nobody says anything, so that all shards have one form."""
    if getattr(sample, name) is not None:
        return sample
    return dataclasses.replace(sample, **{name: np.zeros(len(sample.content), dtype)})


def _fetch_counts(prompt: Prefill) -> Prefill:
    """Fetch all of a prefill but its logits, keys and values, which stay where they are."""
    small = ("origin", "lengths", "text_count", "visual_count", "visual_computed")
    fetched = fetch({name: getattr(prompt, name) for name in small})
    lengths = fetch([span.lengths for span in prompt.cache])
    spans = zip(prompt.cache, lengths, strict=True)
    return prompt.replace(
        cache=tuple(span.replace(lengths=count) for span, count in spans), **fetched
    )


def can_share_pictures(methods: Sequence[Method]) -> bool:
    """Say whether samples may share patch rows under these methods, which are resolved."""
    asked = [r for method in methods for stage in method.stages for r in method.requests(stage)]
    return not any(isinstance(request, TowerAttention) for request in asked)


def asks_for_objects(method: Method) -> bool:
    """Say whether a method, which is resolved, asks where objects are."""
    return _asks_for(method, Objects())


def asks_for_relevance(method: Method) -> bool:
    """Say whether a method, which is resolved, asks how relevant frames are."""
    return _asks_for(method, Relevance())


def _asks_for(method: Method, request: Request) -> bool:
    return any(request in method.requests(stage) for stage in method.stages)


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
            digest.update(content.read(1 << 20))  # headers lie in front, the last tensors behind
            content.seek(-(1 << 20), 2)
            digest.update(content.read())
    return digest.hexdigest()[:16]  # 64 bits tell folders apart


def _find_kept(kept: np.ndarray, layout: Mapping[str, np.ndarray], sample: int) -> list[int]:
    """Translate surviving prompt positions into visual tokens counted from 0.

    prompt positions   0 1 2 3 4 5 6 7       slots of visual tokens   2 3 4 5
    kept               0 1 . 3 . 5 6 7       -> visual tokens         . 1 . 3
    """
    count = int(layout["visual_valid"][sample].sum())
    slots = layout["visual_index"][sample, :count]  # [n], prompt positions of the visual tokens
    return np.flatnonzero(np.isin(slots, kept)).tolist()


def _measure_grids(layout: Mapping[str, np.ndarray], sample: int) -> list[list[int]]:
    """List (frames, rows, columns) of each image of a sample, in tokens."""
    valid = layout["visual_valid"][sample]  # [V]
    cells, images = layout["grid"][sample][valid], layout["image_id"][sample][valid]  # [n, 3], [n]
    return [(cells[images == image].max(axis=0) + 1).tolist() for image in np.unique(images)]
