"""One prompt under several methods: answers, costs, sets, and the page that shows them."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.evals.running.recording import Answer
from ivc_jax.inputs.bucket import collate
from ivc_jax.inputs.processor import Processor
from ivc_jax.inputs.video import Clip
from ivc_jax.methods import describe
from ivc_jax.methods.base import Method
from ivc_jax.model import Model
from ivc_jax.reports.inspector import Inspection
from ivc_jax.reports.panels import Panel, make_panels
from ivc_jax.studies.inspection.sets import sweep
from ivc_jax.types import Inputs

_LAYOUT = ("grid", "image_id", "tiles", "content")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked: a question about pictures, or about one video.

    Attributes:
        question: text.
        pictures: RGB.
        video: instead of pictures.
    """

    question: str
    pictures: tuple[Image.Image, ...] = ()
    video: Clip | None = None


class Inspector:
    """Asks a loaded model about prompts.

    Args:
        model: with weights.
        processor: of the same checkpoint.
        name: what pages call the model.
    """

    def __init__(self, model: Model, processor: Processor, name: str) -> None:
        self.model, self.processor, self.name = model, processor, name
        self.answerer = ModelAnswerer(model, processor)

    def place(self, prompt: Prompt) -> Inputs:
        """Collate a prompt and put it on the devices."""
        visuals: dict[str, Any] = {"images": [list(prompt.pictures)]}
        if prompt.video is not None:
            visuals = {"videos": [[prompt.video]]}
        batch = self.processor(prompts=[prompt.question], **visuals)
        return self.answerer.place({0: collate(batch, self.model.config)})  # one shard: number 0

    def answer(
        self, inputs: Inputs, method: Method, max_new_tokens: int, repeats: int = 0
    ) -> Answer:
        """Answer a placed prompt; times are medians of warm runs, or those of compiling too.

        Args:
            inputs: of `place`.
            method: to prune by.
            max_new_tokens: bound on the answer.
            repeats: warm runs.
        """
        (first,) = self.answerer.answer(inputs, method, max_new_tokens)
        warm = [self.answerer.answer(inputs, method, max_new_tokens)[0] for _ in range(repeats)]
        if not warm:
            return first
        times = {
            name: statistics.median(getattr(each, name) for each in warm)
            for name in ("prefill_ms", "decode_ms")
        }
        return dataclasses.replace(first, **times)

    def inspect(
        self,
        prompt: Prompt,
        methods: Sequence[Method],
        max_new_tokens: int,
        repeats: int = 0,
        tell: Callable[[str], None] = lambda doing: None,
    ) -> Inspection:
        """Ask about a prompt under all methods and gather what the page shows.

        Args:
            prompt: what is asked.
            methods: not resolved.
            max_new_tokens: bound on answers.
            repeats: warm runs whose median times are shown; 0 shows none.
            tell: hears what is being done.

        Raises:
            MethodError: a method that does not fit the model or the prompt.
            InputError: pictures that cannot be shown to the model.
        """
        inputs, answers = self.place(prompt), {}
        for method in methods:
            tell(describe(method))
            answers[describe(method)] = self.answer(inputs, method, max_new_tokens, repeats)
        tell("sets of the sliders")
        sweeps = sweep(self.model, inputs, methods, [each.kept for each in answers.values()])
        panels = self._lay_out(inputs, prompt)
        return Inspection(self.name, prompt.question.strip(), panels, answers, sweeps, repeats)

    def _lay_out(self, inputs: Inputs, prompt: Prompt) -> list[Panel]:
        valid = np.asarray(inputs.layout.visual_valid)[0]  # [V]
        layout = {name: np.asarray(getattr(inputs.layout, name))[0][valid] for name in _LAYOUT}
        if prompt.video is None:
            show = self.answerer.make_reader().pictures.show
            return make_panels(
                layout, [show(picture.convert("RGB")) for picture in prompt.pictures]
            )
        depth = self.processor.videos.temporal_patch_size
        clip = prompt.video
        frames = [Image.fromarray(np.asarray(clip.frames[n])) for n in range(0, len(clip), depth)]
        return make_panels(
            layout, frames=frames, titles=[f"{time:.1f} s" for time in clip.time_slices(depth)]
        )
