"""How many questions a second does a whole evaluation answer, beside a loop over transformers?

    python benchmarks/throughput.py [--models bundled random-2b] [--questions 64]

The bundled model answers grounding questions of its benchmark, dense: through the API (processor,
generate, decode) one by one and in batches of 16, and through the runner, which also reads the rows
of the TSV, decodes their pictures and writes records; once as in the default run, where questions
of a batch about one picture share its way through the tower ("shared"). The other side is the loop
that one writes with transformers (processor, generate, batch_decode) in batches of 1, 4, 8 and 16,
the same messages and bounds; its fastest batch is what ours of 16 are compared with. All take
turns. Prompts and patches of both processors must be equal first, and so must the answers.
`random-2b` is four blocks of Qwen2-VL-2B's width with random weights, asked a quarter of the
questions; no token ends its answers, both sides write eight.
Expected on two CPU cores: three minutes for the bundled model, fifteen for the other.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch_side
from record import Row, make_parser, read_options, write_record
from timing import alternate, measure_machine, measure_share
from tower import count_flops as count_tower

import digit_scenes.tsv
import ivc_jax
from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running import runner
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.evals.running.recording import MethodEntry, RunIdentity
from ivc_jax.evals.running.records import RunFolder, read_all
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.model import find_bundled

_TASK = TASKS["DigitScenes_grounding"]
_OURS, _THEIRS = (1, 16), (1, 4, 8, 16)  # samples of a batch
_QUICK = (1, 2)
_RANDOM_TOKENS = 8
_RANDOM = {  # Qwen2-VL-2B's width; pictures, prompts and vocabulary are the bundled model's
    **{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 4},
    **{"num_attention_heads": 12, "num_key_value_heads": 2},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
_RANDOM_TOWER = {
    **{"depth": 4, "hidden_size": 1280, "num_heads": 16},
    **{"intermediate_size": 3420, "out_hidden_size": 1536},
}


class Ours:
    """Both ways through this package."""

    def __init__(
        self, folder: Path, dtype: str, data: Path, bound: int, questions: int, records: Path
    ) -> None:
        self.model, self.processor = ivc_jax.load(folder, dtype)
        self.answerers = {
            share: ModelAnswerer(self.model, self.processor, share, share)
            for share in (False, True)
        }
        self.data, self.bound, self.questions, self.records = data, bound, questions, records

    def read(self) -> list[Any]:
        """Return the conversations, their pictures decoded."""
        entry = TaskEntry.open(_TASK, self.data)
        rows = [entry.read(position) for position in range(self.questions)]
        family = self.model.config.family
        return [_TASK.write_messages(row.cells, family, row.images) for row in rows]

    def loop(self, messages: Sequence[Any], size: int) -> list[str]:
        """Answer through the API."""
        texts = []
        for start in range(0, len(messages), size):
            batch = self.processor(messages[start : start + size])
            out = ivc_jax.generate(self.model, batch, max_new_tokens=self.bound)
            texts += self.processor.decode(out.tokens, out.lengths)
        return texts

    def run(self, size: int, share: bool = False) -> list[str]:
        """Answer through the runner, from the file to the records.

        Args:
            size: samples of a batch.
            share: let those about one picture share its way through the tower.
        """
        shutil.rmtree(self.records, ignore_errors=True)  # nothing to go on with
        plan = runner.RunPlan(
            tasks=[TaskEntry.open(_TASK, self.data)],
            methods=[MethodEntry("dense", 1.0, ivc_jax.methods.parse("dense"))],
            batch_size=size,
            identity=RunIdentity("model", 0, ""),
            limit=self.questions,
            max_new_tokens={"": self.bound},
        )
        records = RunFolder(self.records)
        try:
            runner.run(plan, self.answerers[share], records, lambda *_: None)
        finally:
            records.close()
        found = {record.example_id: record.prediction for record in read_all(self.records)}
        return [found[each] for each in plan.tasks[0].file.list_ids(self.questions)]


class Theirs:
    """The loop that one writes with transformers."""

    def __init__(self, folder: Path, dtype: str, bound: int) -> None:
        from transformers import AutoTokenizer
        from transformers.models.qwen2_5_vl import processing_qwen2_5_vl
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        class WithoutVideo(processing_qwen2_5_vl.Qwen2_5_VLProcessor):  # which wants torchvision
            def check_argument_for_proper_class(self, name: str, argument: Any) -> None:
                return None

        self.model = torch_side.TorchModel(folder, dtype).model
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
        images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.processor = WithoutVideo(images, tokenizer, chat_template=template)
        self.bound = bound

    def process(self, messages: Sequence[Any]) -> Any:
        """Make the tensors of a batch."""
        return self.processor.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=True, processor_kwargs={"padding": True},
        )  # fmt: skip

    def loop(self, messages: Sequence[Any], size: int) -> list[str]:
        """Answer through transformers."""
        import torch

        texts = []
        for start in range(0, len(messages), size):
            inputs = self.process(messages[start : start + size])
            with torch.inference_mode():
                tokens = self.model.generate(
                    **inputs, max_new_tokens=self.bound, do_sample=False
                )  # [B, N + T]
            answers = tokens[:, inputs["input_ids"].shape[1] :]
            texts += self.processor.batch_decode(answers, skip_special_tokens=True)
        return texts


def write_random(folder: Path) -> None:
    """Write a wide random model with the bundled one's tokenizer, template and picture settings."""
    folder.mkdir()
    for file in find_bundled().glob("*.json"):
        shutil.copy(file, folder)
    # no token ends an answer: both sides write as many
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    sizes = json.loads((folder / "config.json").read_text()) | _RANDOM | {"eos_token_id": None}
    shapes.write_checkpoint(
        folder, sizes | {"vision_config": sizes["vision_config"] | _RANDOM_TOWER}
    )


def count_flops(model: Any, batch: ivc_jax.Batch, tokens: float) -> float:
    """Return the operations of a prompt and an answer of so many tokens; blocks alone."""
    sizes = model.config.decoder
    flops = shapes.count_flops(sizes, [len(batch.tokens[0])] * sizes.num_layers)
    flops += tokens * 2.0 * shapes.count_block_params(sizes) * sizes.num_layers
    return flops + sum(count_tower(model.config.vision, len(v.patches)) for v in batch.images)


def measure(
    options: argparse.Namespace, name: str, folder: Path, scratch: Path, peak: float
) -> Iterator[Row]:
    """Check that both sides answer alike, and time them in turns."""
    bundled = name == "bundled"
    bound = _TASK.max_new_tokens if bundled else _RANDOM_TOKENS
    questions = options.questions if bundled else max(2, options.questions // 4)
    digit_scenes.tsv.write(scratch / "data", questions)
    data = scratch / "data" / _TASK.file_name
    ours = Ours(folder, options.dtype, data, bound, questions, scratch / "run")
    messages = ours.read()
    runs: dict[str, Callable[[], list[str]]] = {}
    for size in _QUICK if options.quick else _OURS:
        runs[f"API, batch {size}"] = lambda size=size: ours.loop(messages, size)
        runs[f"runner, batch {size}"] = lambda size=size: ours.run(size)
    runs[f"runner, batch {size}, shared"] = lambda size=size: ours.run(size, share=True)
    named = list(runs)  # ours
    if not options.alone:
        theirs = Theirs(folder, options.dtype, bound)
        check_prompts(ours, theirs, messages)
        for size in _QUICK if options.quick else _THEIRS:
            runs[f"torch {size}"] = lambda size=size: theirs.loop(messages, size)
    answers = {each: run() for each, run in runs.items()}
    agreed = compare(answers, list(answers)[-1], exact=bundled)
    seconds = alternate(runs, options.repeats, f"{name}, {questions} questions")
    rates = {each: [questions / one for one in taken] for each, taken in seconds.items()}
    middle = {each: statistics.median(found) for each, found in rates.items()}
    best = max((each for each in rates if each not in named), key=middle.get, default="")
    lengths = [len(each) + bundled for each in ours.processor.encode(answers[named[0]])]  # the end
    tokens = statistics.mean(lengths)
    flops = count_flops(ours.model, ours.processor(messages[:1]), tokens)
    for each in named:
        other = "torch 1" if each.endswith("batch 1") else best
        more = {
            **{"questions": questions, "tokens": tokens, "flops": flops},
            "same_answers": agreed[each],
            "torch_batch": int(other.split()[-1]) if best else None,
            "torch_by_batch": {size: middle[size] for size in rates if size not in named},
        }
        of_limit = measure_share(questions * flops, seconds[each], peak)
        yield Row(
            f"{name}, {each}", "samples/s", rates[each], rates.get(other, []),
            "matrix products", of_limit, more,
        )  # fmt: skip


def check_prompts(ours: Ours, theirs: Theirs, messages: Sequence[Any]) -> None:
    """Refuse to compare sides that do not read the same tokens and pixels."""
    batch, inputs = ours.processor(messages[:2]), theirs.process(messages[:2])
    rows = zip(inputs["input_ids"], inputs["attention_mask"], batch.tokens, strict=True)
    same = all(np.array_equal(ids[mask.bool()], tokens) for ids, mask, tokens in rows)
    patches = np.concatenate([visual.patches for visual in batch.images])
    if not same or not np.array_equal(patches, inputs["pixel_values"]):
        raise SystemExit("the processors disagree")


def compare(answers: dict[str, list[str]], reference: str, exact: bool) -> dict[str, float]:
    """Return the share of answers that equal those of one run, which must be all of them.

    Args:
        exact: of a random model logits lie so close that rounding decides some answers.
    """
    shares = {
        name: float(np.mean([a == b for a, b in zip(found, answers[reference], strict=True)]))
        for name, found in answers.items()
    }
    if exact and min(shares.values()) < 1:
        raise SystemExit(f"answers differ: equal to those of {reference} are {shares}")
    return shares


def main() -> None:
    """Run and write the record."""
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=("bundled", "random-2b"))
    parser.add_argument("--questions", type=int, default=64)
    options = read_options(parser)
    options.questions = 4 if options.quick else options.questions
    machine = measure_machine(options.dtype, not options.alone, options.quick)
    rows = []
    for name in options.models or ["bundled"]:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            folder = find_bundled()
            if name != "bundled":
                folder = Path(scratch) / "checkpoint"
                write_random(folder)
            rows += measure(options, name, folder, Path(scratch), machine["matrix_flops"])
    write_record(options, rows, machine=machine)


if __name__ == "__main__":
    main()
