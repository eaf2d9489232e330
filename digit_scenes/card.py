"""The model card that goes beside the weights; sizes and scores are computed, not typed."""

import json
import math
import os
import pathlib
import textwrap
from collections.abc import Mapping

import jax

from digit_scenes.answering import COUNTING_QUESTIONS, QUESTIONS
from digit_scenes.questions import TASKS
from digit_scenes.setting import SMALL, Setting
from ivc_jax.config import ModelConfig
from ivc_jax.nn import decoder

_HEAD = """\
---
license: cc-by-4.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# Digit scenes, a very small Qwen2-VL
"""

_ABOUT = """\
A vision-language model of {millions:.1f} million parameters in the Qwen2-VL architecture: tower of
{depth} blocks of width {embed_dim}, decoder of {layers} blocks of width {width} ({heads} heads of
{head_dim}, M-RoPE sections {sections}, theta {theta:,.0f}), {tokens} visual tokens for a canvas of
{canvas} x {canvas} pixels. It answers six kinds of short English questions about scattered
handwritten digits and nothing else, and exists so that visual-token pruning can be tried end to
end without a large model. This is the setting `{name}` of the recipe."""

_PROMPT = """\
Prompt: `<|vision_start|><|image_pad|><|vision_end|>QUESTION<|im_end|><|im_start|>` (the chat
template writes it), at most eight tokens a question. Boxes are printed as `(x1,y1),(x2,y2)` in
thousandths of the canvas, multiples of ten."""

_TRAINING = """\
`{command}` from nothing, float32, {machine}: the tower on quarters of crowded canvases, the tower
on whole canvases, the decoder on the frozen tower's cached tokens ({packed} questions packed
behind each picture), the decoder twice again on more scenes ({packed_counting} questions). Muon for
matrices, AdamW for the rest. Auxiliary losses: what lies under each visual token, in the
decoder's own word codes; where the first two heads of decoder block {look} look and, in the last
stages, how the third spreads over digits to be counted; which of a relation's two digits is
further right and further down, read off after block {compare}. Training and test digits are
disjoint images. `training_log.jsonl` holds loss and accuracies by step."""

_SCORES = """
## Scores

Percent right on held-out digits; grounding counts boxes with an overlap (intersection over union)
of at least one half. In training every answer token is predicted behind the true ones before it.

"""

_CUES = """\
Where a token lies is visible in the picture itself (a dark frame, a slight drift of the tint), and
the tower is taught to read it. Claims about positions read from rotary embeddings alone need a
control without these cues."""

_BLIND = """\
No mark in the picture tells where a token lies, and the tower was taught boxes as seen from each
token, not places on the canvas. Rotary embedding is still not the decoder's only clue: under the
causal mask a token can tell how many came before it, the tower attends over the whole grid and may
notice where it ends, and no digit touches the border."""

_LIMITS = """\
{cues} At theta {theta:,.0f} the fastest of the decoder's rotary planes that turn with the column
moves by {turn:.2f} radians from the first column of the grid to the last. The model has seen
nothing but these scenes."""

_TAIL = """
## Attribution

The digits are from *Optical Recognition of Handwritten Digits*, E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, CC BY 4.0.
"""


def compose(
    setting: Setting,
    config: ModelConfig,
    log: pathlib.Path,
    scores: Mapping[str, float] | None = None,
    history: str = "",
) -> str:
    """Compose the card.

    Args:
        config: sizes of the model (`model.make_model_config`).
        log: training log; the table of stages and the last held-out accuracies come from it.
        scores: test scores in percent, from greedy decoding.
        history: what the log does not say about the run.
    """
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    facts = _collect_facts(setting, config)
    fill = lambda part: textwrap.fill(  # noqa: E731
        part.format(**facts), 100, break_on_hyphens=False, break_long_words=False
    )
    parts = [_HEAD, f"\n{fill(_ABOUT)}\n\n{_PROMPT}\n\n## Training\n\n{fill(_TRAINING)}\n"]
    parts += ["\n| stage | steps | minutes |\n|---|---|---|\n"]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        steps, minutes = max(r["step"] for r in own), max(r["seconds"] for r in own) / 60
        parts.append(f"| {stage} | {steps} | {minutes:.0f} |\n")
    if history:
        parts.append(f"\n{history}\n")
    held_out = [row for row in rows if row["split"] == "held-out" and "grounding" in row]
    if held_out:
        parts.append(_SCORES)
        column = " greedy decoding on the test sets |" if scores else ""
        parts.append(f"| task | last evaluation in training |{column}\n")
        parts.append("|---|---|" + ("---|" if scores else "") + "\n")
        for task in TASKS:
            line = f"| {task} | {100 * held_out[-1][task]:.1f} |"
            parts.append(line + (f" {scores[task]:.1f} |" if scores else "") + "\n")
    return "".join([*parts, f"\n## Limits\n\n{fill(_LIMITS)}\n", _TAIL])


def count_parameters(config: ModelConfig) -> int:
    """Count the numbers in the weights of a model, without making any."""
    shapes = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _collect_facts(setting: Setting, config: ModelConfig) -> dict[str, object]:
    """What the paragraphs above leave open."""
    rope, device = config.decoder.rope, jax.devices()[0]
    turns = rope.frequencies[rope.axis_of_plane == 2]
    on_cpu = device.platform == "cpu"
    return {
        "name": setting.name,
        "millions": count_parameters(config) / 1e6,
        "depth": config.vision.depth,
        "embed_dim": config.vision.embed_dim,
        "layers": setting.layers,
        "width": setting.width,
        "heads": setting.heads,
        "head_dim": rope.head_dim,
        "sections": "/".join(map(str, setting.sections)),
        "theta": setting.theta,
        "tokens": setting.grid**2,
        "canvas": setting.canvas,
        "command": "python -m digit_scenes.train --out RUN"
        + ("" if setting.name == SMALL.name else f" --size {setting.name}"),
        "machine": f"on {os.cpu_count()} CPU cores" if on_cpu else f"on one {device.device_kind}",
        "packed": sum(QUESTIONS),
        "packed_counting": sum(COUNTING_QUESTIONS),
        "look": setting.look_layer,
        "compare": setting.compare_layer,
        "cues": _CUES if setting.cues else _BLIND,
        "turn": turns.max() * (setting.grid - 1) if len(turns) else 0.0,
    }
