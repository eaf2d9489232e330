"""How relevant frames are to a question, said by a model (QuoTA, arXiv 2503.08689).

    query      "Who takes the red cup?"
    decouple   does it need objects? which? the physical ones: [person, red cup]
    question   to every frame alone: does it show any of: person, red cup? A. yes B. no
    relevance  probability of "A" in the softmax over the whole vocabulary

Questions are in our words; steps and answers are those of MAC-AutoML/QuoTA (quota_pipeline.py,
tools/qwen2vl_batch.py). Where no objects are needed the query itself is asked about, where the
released code stops at a name that is not set.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ivc_jax.engine.decode import generate
from ivc_jax.engine.prefill import prefill
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.clips import Video, list_per_sample, list_rates, load_clip
from ivc_jax.inputs.messages import Messages, find_conversations, list_texts, split_visuals
from ivc_jax.inputs.picture import Picture
from ivc_jax.inputs.processor import Processor
from ivc_jax.inputs.prompt import MARKS
from ivc_jax.inputs.relevance import average_slices
from ivc_jax.model import Model

_MAX_PIXELS = 1280 * 28 * 28  # of a frame
_CHOICE = "\nA. yes\nB. no\nAnswer with the letter of the right choice alone."
ENTITIES = "Does this frame of a video show any of these: {entities}?" + _CHOICE
QUERY = (
    "Does this frame of a video hold enough information to answer the question below?\n{query}"
    + _CHOICE
)
_NEED = (
    "Here is a question about a video: {query}\nMust objects be found in the video to answer it?"
    " Answer yes or no."
)
_NAME = (
    "Here is a question about a video: {query}\nWhich objects or other key elements must be found"
    " in the video to answer it? Answer with a list in brackets, such as [dog, red car]."
)
_KEEP = (
    "Here is a list: {objects}\nKeep what is a physical thing that a camera can see, and leave out"
    " everything else. Answer with a list in brackets, such as [dog, red car]."
)


@dataclasses.dataclass(frozen=True, eq=False)
class FrameScorer:
    """A model that rates frames, each alone, for a question.

    Attributes:
        model: any, that of the answers or another one.
        processor: of its checkpoint.
        answer: whose probability is the relevance, one token of its tokenizer.
        entities: the question where objects are known, with `{entities}`.
        query: the question where none are, with `{query}`.
        batch_size: frames that are rated together.
    """

    model: Model
    processor: Processor
    answer: str = "A"
    entities: str = ENTITIES
    query: str = QUERY
    batch_size: int = 64

    def __post_init__(self) -> None:
        (ids,) = self.processor.encode([self.answer])
        if len(ids) != 1:
            raise InputError(
                f"the scorer's tokenizer has no token {self.answer!r}, it reads {len(ids)} tokens;"
                " choose another answer"
            )

    def write(self, query: str, entities: Sequence[str]) -> str:
        """Return the question about a frame."""
        if entities:
            return self.entities.format(entities=", ".join(entities))
        return self.query.format(query=query)

    def __call__(self, questions: Sequence[str], frames: Sequence[Picture]) -> np.ndarray:
        """Rate each frame for its question: float32 [frames].

        Raises:
            InputError: as the processor.
        """
        (token,) = self.processor.encode([self.answer])[0]
        processor = self.processor
        if getattr(processor.images, "max_pixels", 0) > _MAX_PIXELS:
            processor = processor.bound(None, _MAX_PIXELS)
        # the last batch is filled up: one shape, one program
        count, size = len(frames), min(self.batch_size, len(frames))
        places = list(range(count)) + [0] * (-count % max(size, 1))
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(places), max(size, 1)):
            part = places[start : start + size]
            batch = processor([questions[i] for i in part], [[frames[i]] for i in part])
            logits = prefill(self.model, batch).logits  # [B, vocab]
            found.append(np.asarray(jax.nn.softmax(logits, axis=-1)[:, token]))
        return np.concatenate(found)[:count]


def rate_frames(
    scorer: FrameScorer | tuple[Model, Processor],
    processor: Processor,
    prompts: Sequence[str] | Messages | Sequence[Messages],
    images: Sequence[Sequence[Picture] | None] | None = None,
    videos: Sequence[Sequence[Video] | None] | None = None,
    fps: float | Sequence[Sequence[float] | None] | None = None,
    entities: Sequence[Sequence[str]] | None = None,
    decoupler: tuple[Model, Processor] | None = None,
) -> list[list[float]]:
    """Rate the images, and the frames of videos, of every prompt: what the processor takes.

        batch = processor(prompts, images, relevance=rate_frames((model, processor), processor,
                                                                 prompts, images))

    Args:
        scorer: that rates frames; a model with its processor is one with the usual question.
        processor: that will make the batch, which knows the temporal slices of videos: the
            relevance of a slice is the mean of its frames. It samples files, too; pass what
            `read_video` returns to read them once.
        prompts: as the processor takes them, like the next three.
        images: likewise.
        videos: likewise.
        fps: likewise.
        entities: what to look for, a list for each prompt; an empty one asks about the query.
        decoupler: the model that finds what to look for, where `entities` is not given; without
            either the query is asked about.

    Returns:
        For each sample a number for each image and each temporal slice of a video. A sample with
        one frame is not rated: it is 1.

    Raises:
        InputError: as the processor.
    """
    scorer = FrameScorer(*scorer) if isinstance(scorer, tuple) else scorer
    if (conversations := find_conversations(prompts)) is not None:
        prompts, (images, videos) = conversations, split_visuals(conversations)
    if entities is not None and len(entities) != len(prompts):
        raise InputError(f"{len(entities)} lists of entities for {len(prompts)} prompts")
    visuals = _list_visuals(processor, prompts, images, videos, fps)
    # of the samples that have several
    shown = {i: [frame for _, own in each for frame in own] for i, each in enumerate(visuals)}
    shown = {i: frames for i, frames in shown.items() if len(frames) > 1}
    queries = [read_query(prompts[i], i) for i in shown]
    if entities is not None:
        objects = [entities[i] for i in shown]
    elif decoupler is not None and queries:
        objects = decouple(*decoupler, queries)
    else:
        objects = [[] for _ in queries]
    questions, frames = [], []
    for query, names, own in zip(queries, objects, shown.values(), strict=True):
        questions += [scorer.write(query, names)] * len(own)
        frames += own
    rated = iter(scorer(questions, frames) if frames else ())
    return [_collect(own, rated, processor.videos.temporal_patch_size) for own in visuals]


def decouple(
    model: Model, processor: Processor, queries: Sequence[str], max_new_tokens: int = 64
) -> list[list[str]]:
    """Find the objects that must be seen to answer each query, in up to three short answers.

    Returns:
        For each query a list, empty where the model says that none are needed, or nothing that
        can be read as a list.
    """

    def ask(prompts: list[str]) -> list[str]:
        if not prompts:
            return []
        out = generate(model, processor(prompts), max_new_tokens=max_new_tokens)
        return processor.decode(out.tokens, out.lengths)

    needed = ask([_NEED.format(query=query) for query in queries])
    rows = [i for i, text in enumerate(needed) if text.strip().lower().startswith("yes")]
    named = ask([_NAME.format(query=queries[i]) for i in rows])
    kept = ask([_KEEP.format(objects=text.strip()) for text in named])
    found: list[list[str]] = [[] for _ in queries]
    for i, text in zip(rows, kept, strict=True):
        found[i] = read_list(text)
    return found


def read_list(text: str) -> list[str]:
    """Read the first list in brackets; [] without one."""
    found = re.search(r"\[([^\[\]]*)\]", text)
    parts = found.group(1).split(",") if found else []
    return [name for part in parts if (name := part.strip().strip("'\"").strip())]


def read_query(prompt: str | Messages, sample: int = 0) -> str:
    """Return the words of a prompt, without marks of visuals."""
    if not isinstance(prompt, str):
        return "\n".join(text for _, text in list_texts(prompt, sample)).strip()
    for mark in MARKS.values():
        prompt = prompt.replace(mark, " ")
    return prompt.strip()


def _list_visuals(
    processor: Processor,
    prompts: Sequence[str | Messages],
    images: Sequence[Sequence[Picture] | None] | None,
    videos: Sequence[Sequence[Video] | None] | None,
    fps: float | Sequence[Sequence[float] | None] | None,
) -> list[list[tuple[str, Sequence[Any]]]]:
    """List the visuals of every prompt, as `_list_frames` does."""
    pictures = list_per_sample(images, len(prompts), "image")
    clips = list_per_sample(videos, len(prompts), "video")
    rates = list_rates(fps, clips)
    return [
        _list_frames(processor, prompt, pictures[i], clips[i], rates[i], i)
        for i, prompt in enumerate(prompts)
    ]


def _list_frames(
    processor: Processor,
    prompt: str | Messages,
    pictures: Sequence[Picture],
    videos: Sequence[Video],
    rates: Sequence[float | None],
    sample: int,
) -> list[tuple[str, Sequence[Any]]]:
    """List the visuals of a prompt in its order: the kind and the frames of each."""
    counts = {"image": len(pictures), "video": len(videos)}
    kinds = processor.writer.list_kinds(prompt, counts, sample)
    waiting = {"image": iter([[picture] for picture in pictures])}
    waiting["video"] = iter(
        load_clip(video, rate, processor.sampling, f"sample {sample}, video {index}").frames
        for index, (video, rate) in enumerate(zip(videos, rates, strict=True))
    )
    return [(kind, next(waiting[kind])) for kind in kinds]


def _collect(visuals: Sequence[tuple[str, Sequence[Any]]], rated: Any, depth: int) -> list[float]:
    """Give the visuals of a sample their numbers, those of a video averaged over its slices."""
    alone, found = sum(len(frames) for _, frames in visuals) == 1, []
    for kind, frames in visuals:
        own = np.array([1.0 if alone else next(rated) for _ in frames], np.float32)
        found += (average_slices(own, depth) if kind == "video" else own).tolist()
    return found
