"""The model card that goes beside the weights; sizes and scores are computed, not typed."""

import json
import math
import os
import pathlib
import textwrap
from collections.abc import Mapping

import jax

from digit_scenes.answering import QUESTIONS
from digit_scenes.questions import TASKS
from digit_scenes.setting import Setting
from ivc_jax.config import ModelConfig
from ivc_jax.nn import decoder

_FORMATS = {
    "sections": ("Qwen2.5-VL", "M-RoPE sections {sections}"),
    "interleaved": ("Qwen3-VL", "interleaved M-RoPE {sections}"),
    "line": ("LLaVA", "rotary embedding along the raster order"),
}

_CARD = """\
---
license: cc-by-4.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# Scenes of cells, a very small {family}

{about}

{prompt}

## Training

{training}

| stage | steps | minutes |
|---|---|---|
{stages}
## Scores

{measured}

{scores}
## Limits

{limits}

## Attribution

The digits are from *Optical Recognition of Handwritten Digits*, E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, CC BY 4.0.
"""

_ABOUT = """\
A vision-language model of {millions:.1f} million parameters in the {family} format: decoder of
{layers} blocks of width {width} ({heads} heads of {head_dim}, {rotary}, theta {theta:,.0f}),
{tokens} visual tokens for a picture of {canvas} x {canvas} pixels. It answers six kinds of
short English questions about handwritten digits, each in one cell of a grid, and nothing else.
A visual token is one cell, the tower sees one cell at a time, and pictures say nothing about
place: where a cell lies, only rotary embedding and the order of tokens tell. This is the
setting `{name}`, seed {seed}."""

_PROMPT = """\
A question ends in its last word, without a mark, and the answer follows (the chat template
writes it so). Boxes are printed as `(x1,y1),(x2,y2)` in thousandths of the picture, borders of
cells."""

_TRAINING = """\
`{command}` from nothing, float32, {machine}: the tower on single cells, then the decoder on
{packed} questions packed behind each picture, plain cross entropy on the answers, nothing about
attention. Lessons come first: the top left corner of pictures alone. Muon for matrices, AdamW
for the rest. Training and test digits are disjoint images. `training_log.jsonl` holds loss and
accuracies by step; minutes are of a machine that did other work as well."""

_MEASURED = """\
Percent right on held-out digits when training ended, every answer token predicted behind the
true ones before it; grounding counts exact boxes."""

_LIMITS = """\
The model has seen nothing but these scenes. A token can tell how many came before it by the
causal mask; what a claim about rotary embedding needs is controls for that order."""


def compose(setting: Setting, config: ModelConfig, log: pathlib.Path, seed: int) -> str:
    """Compose the card; the last evaluation in the training log has the scores."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    facts = _collect_facts(setting, config, seed)
    fill = lambda part: textwrap.fill(  # noqa: E731
        part.format(**facts), 100, break_on_hyphens=False, break_long_words=False
    )
    stages = ""
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        minutes = max(row["seconds"] for row in own) / 60
        stages += f"| {stage} | {max(row['step'] for row in own)} | {minutes:.0f} |\n"
    return _CARD.format(
        family=facts["family"],
        about=fill(_ABOUT),
        prompt=fill(_PROMPT),
        training=fill(_TRAINING),
        stages=stages,
        measured=fill(_MEASURED),
        scores=_tabulate(read_scores(log)),
        limits=fill(_LIMITS),
    )


def read_scores(log: pathlib.Path) -> dict[str, float]:
    """Return the last held-out accuracies of a training log by task, in percent."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    last = [row for row in rows if row["split"] == "held-out" and "grounding" in row][-1]
    return {task: 100 * last[task] for task in TASKS}


def _tabulate(scores: Mapping[str, float]) -> str:
    lines = [f"| {task} | {score:.1f} |\n" for task, score in scores.items()]
    return "".join(["| task | right |\n|---|---|\n", *lines])


def _collect_facts(setting: Setting, config: ModelConfig, seed: int) -> dict[str, object]:
    shapes = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    family, rotary = _FORMATS[setting.kind]
    sections = "/".join(map(str, setting.sections or ()))
    run = f"python -m digit_scenes.train --out RUN --setting {setting.name} --seed {seed}"
    return {
        **vars(setting),
        "family": family,
        "rotary": rotary.format(sections=sections),
        "millions": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6,
        "head_dim": setting.head_dim,
        "tokens": setting.grid**2,
        "canvas": setting.canvas,
        "seed": seed,
        "command": run,
        "machine": f"on {os.cpu_count()} CPU cores" if on_cpu else f"on one {device.device_kind}",
        "packed": sum(QUESTIONS),
    }
