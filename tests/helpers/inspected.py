"""An inspection of a made-up model, whose sets follow rules."""

import io

import numpy as np
from PIL import Image

from ivc_jax.evals.running.recording import Answer
from ivc_jax.reports.inspector import Inspection, Sweep
from ivc_jax.reports.panels import Panel

ROWS, COLUMNS = 4, 6
RATIOS = (0.25, 0.5, 0.75)
SIDE = 20  # pixels of a cell
QUESTION = "What is <script>alert(1)</script>?"


def keep(layer, ratio):
    """The tokens kept at places of the sliders: a run that begins elsewhere at each layer."""
    count = round(RATIOS[ratio] * ROWS * COLUMNS)
    return np.isin(np.arange(ROWS * COLUMNS), (np.arange(count) + 5 * layer) % (ROWS * COLUMNS))


def draw_picture():
    """A picture without dark places, so that shading shows."""
    draw = np.random.default_rng(0)
    shape = ROWS * SIDE, COLUMNS * SIDE, 3
    return Image.fromarray(draw.integers(150, 256, shape).astype(np.uint8))


def make_inspection(repeats=0):
    """Two methods, one with both sliders and all layers of a choice."""
    n = ROWS * COLUMNS
    kept = np.stack([[keep(layer, ratio) for ratio in range(len(RATIOS))] for layer in range(2)])
    ramp = np.linspace(-1, 1, n)
    marked = np.arange(n) % 5 == 0
    parts = {
        "cosine": np.stack([ramp, ramp]),
        "sine": np.stack([-ramp, -ramp]),
        "coordinates": np.stack([marked, marked]),
        "seeds": np.stack([np.arange(n) == 3, np.arange(n) == 4]),
        "score": np.stack([np.exp(-9 * ramp), np.exp(9 * ramp)]),
    }
    specs = [[f"ivc:layer={layer},keep_ratio={r}" for r in RATIOS] for layer in (1, 2)]
    specs = tuple(map(tuple, specs))
    flops = np.full(kept.shape[:2], 2e9)
    ivc = Sweep((1, 2), RATIOS, specs, (1, 1), kept, flops, parts)
    dense = Sweep((), (None,), (("dense",),), (0, 0), np.ones((1, 1, n), bool), note="All stay.")
    answers = {
        "ivc:keep_ratio=0.5": make_answer(np.flatnonzero(keep(1, 1)).tolist(), "a <b>seven</b>"),
        "dense": make_answer(list(range(n)), ""),
    }
    file = io.BytesIO()
    draw_picture().save(file, "WEBP", quality=90)
    panel = Panel("Picture", ROWS, COLUMNS, list(range(n)), file.getvalue())
    return Inspection("tiny", QUESTION, [panel], answers, [ivc, dense], repeats)


def make_answer(kept, text):
    """What a method says and costs."""
    grids = [[1, ROWS, COLUMNS]]
    return Answer(text, ROWS * COLUMNS, kept, grids, 2048, 72.0, 8.0, 4, 0.5, 1e9)
