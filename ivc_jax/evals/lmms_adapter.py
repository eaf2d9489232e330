"""The model of an lmms-eval run: its tasks and scores, this package's pruning and batches.

    lmms-eval eval --model ivc_jax --model_args pretrained=PATH,method=ivc:keep_ratio=0.5 --tasks T

lmms-eval finds `manifest` through the entry point group `lmms_eval.models`. This file is imported
by it alone; docs/lmms.md says how to run it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from lmms_eval.api.model import lmms
from rich.progress import track

import ivc_jax
from ivc_jax.engine.finite import explain_broken
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.evals.running.batching import BatchPlan, Example, plan_batches
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.messages import Messages
from ivc_jax.inputs.picture import load_picture
from ivc_jax.inputs.prompt import MARKS
from ivc_jax.parallel.mesh import make_mesh
from ivc_jax.types import Inputs


def manifest() -> Any:
    """Tell lmms-eval which class `--model ivc_jax` means."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("ivc_jax", simple_class_path=f"{__name__}.{IvcJax.__name__}")


class HarnessError(ValueError):
    """Something that a task or a command asks for and this model does not do."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """How an answer is generated.

    Attributes:
        max_new_tokens: bound on its tokens; counts the stop token.
        until: strings that end it; the first one found is cut off with all that follows.
    """

    max_new_tokens: int
    until: tuple[str, ...] = ()

    @classmethod
    def from_task(cls, options: Mapping[str, Any], default: int) -> "Generation":
        """Read the generation options of a task; what says nothing about greedy answers is left.

        Args:
            options: `generation_kwargs` of the task, changed by `--gen_kwargs`.
            default: max_new_tokens where the task names none.

        Raises:
            HarnessError: they ask for sampling or beams, or a bound is no positive number.
        """
        temperature, sampling = options.get("temperature") or 0, options.get("do_sample")
        # As in transformers: do_sample decides, its temperature is 1 unless it is given.
        warm = temperature > 0 or (sampling and options.get("temperature") is None)
        if warm and sampling is not False:
            raise HarnessError(
                f"answers are greedy, the task asks for do_sample={sampling},"
                f" temperature={temperature}; pass --gen_kwargs do_sample=False,temperature=0"
            )
        if (options.get("num_beams") or 1) > 1:
            raise HarnessError(
                f"answers are greedy, the task asks for num_beams={options['num_beams']};"
                " pass --gen_kwargs num_beams=1"
            )
        bound = options.get("max_new_tokens") or options.get("max_gen_toks") or default
        if not isinstance(bound, int) or bound < 1:
            raise HarnessError(f"max_new_tokens must be a positive number, got {bound!r}")
        until = options.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        return cls(bound, tuple(text for text in until if text))

    def cut(self, answer: str) -> str:
        """Cut an answer before the first stop string."""
        # where each stop string begins
        ends = [place for text in self.until if (place := answer.find(text)) >= 0]
        return answer[: min(ends, default=len(answer))]


@dataclasses.dataclass(frozen=True)
class _Question:
    """A request of lmms-eval; its visuals are decoded when they are asked for."""

    context: str
    visuals: Callable[[], Any]
    place: str

    def decode_pictures(self) -> list[PIL.Image.Image]:
        """Decode the images."""
        found = self.visuals()
        found = found if isinstance(found, list | tuple) else [found]
        # tasks return an image, a list, or lists in a list
        flat = [part for each in found for part in (each if isinstance(each, list) else [each])]
        return [
            load_picture(picture, f"image {number}")
            for number, picture in enumerate(part for part in flat if part is not None)
        ]

    def write_messages(self, pictures: Sequence[PIL.Image.Image]) -> Messages:
        """Return what is asked: pictures where the text has one mark for each.

        Some tasks write one mark whatever they show, or quote it: images come first then, and the
        marks are words of the text, as `<video>` is.
        """
        texts = self.context.split(MARKS["image"])
        if len(texts) != len(pictures) + 1:
            texts = [*[""] * len(pictures), self.context]
        # text picture text picture ... text
        parts: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}]
        for picture, text in zip(pictures, texts[1:], strict=True):
            parts += [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        return [{"role": "user", "content": [p for p in parts if p.get("text") != ""]}]


class IvcJax(lmms):
    """A checkpoint under a pruning method, as lmms-eval asks for it.

    Args:
        pretrained: as `path` of `ivc_jax.load`.
        method: as for `ivc_jax.methods.parse`, with `;` for `,`, which lmms-eval splits at.
        dtype: as for `ivc_jax.load`.
        weights: as for `ivc_jax.load`.
        min_pixels: as for `ivc_jax.load`.
        max_pixels: as for `ivc_jax.load`.
        batch_size: prompts at a time, a multiple of `data`.
        data: shards of a batch, on devices of their own.
        model: devices that each layer is split over.
        buckets: bound on the padded shapes of a call.
        max_new_tokens: bound on answers of tasks that name none.
        max_batch_size: not used.
        device: not used; JAX knows its devices.

    Raises:
        ValueError: an argument that cannot be used.
    """

    is_simple = True  # lmms-eval: requests hold text and visuals, not chat messages

    def __init__(
        self,
        pretrained: str,
        method: str = "dense",
        dtype: str | None = None,
        weights: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        batch_size: int | str = 1,
        data: int = 1,
        model: int = 1,
        buckets: int = 6,
        max_new_tokens: int = 128,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or int(batch_size) % data:
            raise HarnessError(
                f"batch_size must be a multiple of data={data}, got {batch_size!r};"
                f" pass --batch_size {data}"
            )
        self.method = ivc_jax.methods.parse(method.strip("'\"").replace(";", ","))
        self.batch_size, self.buckets = int(batch_size), buckets
        self.max_new_tokens = max_new_tokens
        mesh = make_mesh(data, model) if data * model > 1 else None
        pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        loaded, processor = ivc_jax.load(pretrained, dtype, mesh, weights, **pixels)
        self.method.resolve(loaded.config)  # complain before any long work
        self._answerer = ModelAnswerer(loaded, processor)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer greedily, in batches of like size.

        Args:
            requests: with `args` (context, generation options, document to visuals, document
                number, task, split).

        Returns:
            Answers in the order of the requests.

        Raises:
            HarnessError: a request that cannot be used, before the first batch runs; the message
                names task and document.
        """
        questions, generations = [], []
        for context, options, *source in (request.args for request in requests):
            questions.append(self._read(context, *source))
            try:
                generations.append(Generation.from_task(options, self.max_new_tokens))
            except HarnessError as error:
                raise HarnessError(f"{questions[-1].place}: {error}") from None
        # a batch decodes up to one bound: requests of each are planned as a task of their own
        bounds = [generation.max_new_tokens for generation in generations]
        answers = [""] * len(questions)  # in the order of the requests, filled batch by batch
        for plan, placed in self._run_batches(questions, bounds):
            found = self._answerer.answer(placed, self.method, bounds[plan.positions[0]])
            for number, answer in zip(plan.positions[: plan.count], found, strict=False):
                if answer.error is not None:  # lmms-eval has no failed rows: it would score silence
                    raise HarnessError(f"{questions[number].place}: {answer.error}")
                answers[number] = generations[number].cut(answer.text)
                context, options, *_ = requests[number].args
                self.cache_hook.add_partial("generate_until", (context, options), answers[number])
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Score given answers, in batches of like size.

        Args:
            requests: with `args` (context, answer or document to answer, document to visuals,
                document number, task, split).

        Returns:
            In the order of the requests the loss (mean over tokens of -log p), since lmms-eval
            takes the smallest for the best where it chooses, and whether the answer is what greedy
            decoding begins with.

        Raises:
            HarnessError: a request that cannot be used; the message names task and document.
        """
        questions, texts = [], []
        for request in requests:
            if len(request.args) != 6:
                raise HarnessError("mutual information is not offered; leave out acc_mutual_info")
            context, target, to_visuals, number, task, split = request.args
            questions.append(self._read(context, to_visuals, number, task, split))
            known = isinstance(target, str)
            texts.append(target if known else str(target(self.task_dict[task][split][number])))
        answers = self._answerer.processor.encode(texts)
        for question, answer in zip(questions, answers, strict=True):
            if not answer:
                raise HarnessError(f"{question.place}: its answer is empty")
        scores = [(0.0, False)] * len(questions)  # in the order of the requests
        for plan, placed in self._run_batches(questions, [0] * len(questions)):
            tokens = [answers[number] for number in plan.positions]
            score = self._answerer.score(placed, self.method, tokens)
            for number, total, greedy, length in zip(
                plan.positions[: plan.count], score.log_likelihood, score.greedy, score.lengths,
                strict=False,
            ):  # fmt: skip
                if not np.isfinite(total):
                    said = explain_broken(self._answerer.model)
                    raise HarnessError(f"{questions[number].place}: {said}")
                scores[number] = (float(-total / length), bool(greedy))
                context = questions[number].context
                self.cache_hook.add_partial(
                    "loglikelihood", (context, texts[number]), scores[number]
                )
        return scores

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: a prompt is one message."""
        raise NotImplementedError(
            "ivc_jax answers single questions; choose tasks with output_type: generate_until"
        )

    def _read(
        self,
        context: str,
        to_visuals: Callable[[Any], Any] | None,
        number: int,
        task: str,
        split: str,
    ) -> _Question:
        # A closure: harnesses keep thousands of requests, their pictures would not fit in memory.
        def load_visuals() -> Any:
            return to_visuals(self.task_dict[task][split][number]) if to_visuals else None

        return _Question(context, load_visuals, f"task {task}, document {number}")

    def _measure(self, question: _Question) -> Any:
        try:
            pictures = question.decode_pictures()
            return self._answerer.measure(question.write_messages(pictures))
        except InputError as error:
            raise HarnessError(f"{question.place}: {error}") from None

    def _run_batches(
        self, questions: Sequence[_Question], kinds: Sequence[int]
    ) -> Iterator[tuple[BatchPlan, Inputs]]:
        """Plan batches of questions of one kind; yield each on the devices, padding rows last."""
        if self.world_size > 1:
            raise HarnessError(
                f"{self.world_size} processes: start a single one, and use data=N in --model_args"
                " for N devices"
            )
        known = list(dict.fromkeys(kinds))
        examples = [
            Example(known.index(kind), number, self._measure(question))
            for number, (question, kind) in enumerate(zip(questions, kinds, strict=True))
        ]
        shards = self._answerer.num_shards
        plans = plan_batches(examples, self.batch_size, shards, self.buckets)
        for plan in track(plans, description="answering"):
            samples = []
            for number in plan.positions:
                pictures = questions[number].decode_pictures()
                messages = questions[number].write_messages(pictures)
                samples.append(self._answerer.process(messages))
            size = len(samples) // shards  # samples of a shard
            parts = {
                shard: self._answerer.collate(samples[shard * size :][:size], plan.shape)
                for shard in range(shards)
            }
            yield plan, self._answerer.place(parts)
