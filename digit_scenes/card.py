"""The model card that goes beside the weights."""

import json
import pathlib
from collections.abc import Mapping

from digit_scenes.questions import TASKS

_HEAD = """\
---
license: cc-by-4.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# Digit scenes, a very small Qwen2-VL

A vision-language model of 3.4 million parameters in the Qwen2-VL architecture: tower of 4 blocks of
width 128, decoder of 5 blocks of width 192 (4 heads of 48, M-RoPE sections 6/9/9, theta 10,000),
144 visual tokens for a canvas of 192 x 192 pixels. It answers six kinds of short English questions
about scattered handwritten digits and nothing else, and exists so that visual-token pruning can be
tried end to end in seconds on a laptop.

Prompt: `<|vision_start|><|image_pad|><|vision_end|>QUESTION<|im_end|><|im_start|>` (the chat
template writes it), at most eight tokens a question. Boxes are printed as `(x1,y1),(x2,y2)` in
thousandths of the canvas, multiples of ten.

## Training

`python -m digit_scenes.train --out RUN` from nothing, float32, two CPU cores: the tower on quarters
of crowded canvases, the tower on whole canvases, the decoder on the frozen tower's cached tokens
(24 questions packed behind each picture). Muon for matrices, AdamW for the rest. Auxiliary losses:
what lies under each visual token, in the decoder's own word codes; where the first two heads of
decoder block 2 look; which of a relation's two digits is further right and further down, read off
after block 3. Training and test digits are disjoint images. `training_log.jsonl` holds loss and
accuracies by step.
"""

_SCORES = """
## Scores

Percent right on held-out digits; grounding counts boxes with an overlap (intersection over union)
of at least one half. In training every answer token is predicted behind the true ones before it.

"""

_TAIL = """\

## Limits

Where a token lies is visible in the picture itself (a dark frame, a slight drift of the tint), and
the tower is taught to read it; at theta 10,000 the decoder's rotary planes hardly turn along the
width of the grid. Claims about positions read from rotary embeddings alone need a control without
these cues. The model has seen nothing but these scenes.

## Attribution

The digits are from *Optical Recognition of Handwritten Digits*, E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, CC BY 4.0.
"""


def text(log: pathlib.Path, scores: Mapping[str, float] | None = None, history: str = "") -> str:
    """Compose the card.

    Args:
        log: training log; the table of stages and the last held-out accuracies come from it.
        scores: test scores in percent, from greedy decoding.
        history: what the log does not say about the run.
    """
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    stages = dict.fromkeys(row["stage"] for row in rows)
    parts = [_HEAD, "\n| stage | steps | minutes |\n|---|---|---|\n"]
    for stage in stages:
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
    return "".join([*parts, _TAIL])
