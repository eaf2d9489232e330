"""The model of an lmms-eval run: its tasks and scores, this package's pruning and batches.

    lmms-eval eval --model ivc_jax --model_args pretrained=PATH,method=ivc:keep_ratio=0.5 --tasks T

lmms-eval finds `manifest` through the entry point group `lmms_eval.models`. This file is imported
by it alone; docs/lmms.md says how to run it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import PIL.Image
from lmms_eval.api.model import lmms
from rich.progress import track

import ivc_jax
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.evals.running.batching import BatchPlan, Example, plan_batches
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.messages import Messages
from ivc_jax.inputs.picture import load_picture
from ivc_jax.inputs.prompt import MARKS
from ivc_jax.parallel.mesh import make_mesh


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
    options: Mapping[str, Any]
    visuals: Callable[[], Any]
    place: str
    generation: Generation

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
        loaded, processor = ivc_jax.load(pretrained, dtype=dtype, mesh=mesh, weights=weights)
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
        if self.world_size > 1:
            raise HarnessError(
                f"{self.world_size} processes: start a single one, and use data=N in --model_args"
                " for N devices"
            )
        questions = [self._read(*request.args) for request in requests]
        # a batch decodes up to one bound: requests of each are planned as a task of their own
        kinds = list(dict.fromkeys(question.generation.max_new_tokens for question in questions))
        examples = [
            Example(
                kinds.index(question.generation.max_new_tokens), number, self._measure(question)
            )
            for number, question in enumerate(questions)
        ]
        plans = plan_batches(examples, self.batch_size, self._answerer.num_shards, self.buckets)
        answers = [""] * len(questions)  # in the order of the requests, filled batch by batch
        for plan in track(plans, description="answering"):
            texts = self._answer(plan, questions, kinds[plan.task])
            # repetitions that fill the batch drop out
            for number, text in zip(plan.positions[: plan.count], texts, strict=False):
                question = questions[number]
                answers[number] = question.generation.cut(text)
                self.cache_hook.add_partial(
                    "generate_until", (question.context, question.options), answers[number]
                )
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: the engine returns the logits of the last token only."""
        raise NotImplementedError(
            "ivc_jax generates answers and has no log-likelihoods of given ones; choose tasks with"
            " output_type: generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: a prompt is one message."""
        raise NotImplementedError(
            "ivc_jax answers single questions; choose tasks with output_type: generate_until"
        )

    def _read(
        self,
        context: str,
        options: Mapping[str, Any],
        to_visuals: Callable[[Any], Any] | None,
        number: int,
        task: str,
        split: str,
    ) -> _Question:
        place = f"task {task}, document {number}"
        try:
            generation = Generation.from_task(options, self.max_new_tokens)
        except HarnessError as error:
            raise HarnessError(f"{place}: {error}") from None

        # A closure: harnesses keep thousands of requests, their pictures would not fit in memory.
        def load_visuals() -> Any:
            return to_visuals(self.task_dict[task][split][number]) if to_visuals else None

        return _Question(context, options, load_visuals, place, generation)

    def _measure(self, question: _Question) -> Any:
        try:
            pictures = question.decode_pictures()
            return self._answerer.measure(question.write_messages(pictures))
        except InputError as error:
            raise HarnessError(f"{question.place}: {error}") from None

    def _answer(
        self, plan: BatchPlan, questions: Sequence[_Question], max_new_tokens: int
    ) -> Iterable[str]:
        """Run one batch; return its texts, those of the padding last."""
        samples = []
        for number in plan.positions:
            pictures = questions[number].decode_pictures()
            messages = questions[number].write_messages(pictures)
            samples.append(self._answerer.process(messages))
        size = len(samples) // self._answerer.num_shards  # samples of a shard
        parts = {
            shard: self._answerer.collate(samples[shard * size : (shard + 1) * size], plan.shape)
            for shard in range(self._answerer.num_shards)
        }
        placed = self._answerer.place(parts)
        answers = self._answerer.answer(placed, self.method, max_new_tokens)
        for number, answer in zip(plan.positions, answers, strict=True):
            if answer.error is not None:  # lmms-eval knows no failed rows: it would score silence
                raise HarnessError(f"{questions[number].place}: {answer.error}")
        return [answer.text for answer in answers]
