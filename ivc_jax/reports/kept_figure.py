"""The figure of one prompt: kept tokens over the image, one panel a method."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from PIL import Image

from ivc_jax.evals.benchmarks.grounding import BOX_PARSERS, GROUNDING
from ivc_jax.evals.running.recording import Answer
from ivc_jax.reports import figures

_COLUMNS = 4
_BOX_COLOUR = "#39ff9f"
_LETTERS = 34  # of a line of text above or below a panel


def save(
    path: pathlib.Path,
    picture: Image.Image,
    question: str,
    answers: Mapping[str, Answer],
    family: str,
) -> None:
    """Write the figure of a prompt with one image as PNG.

    Args:
        answers: by method; their grids have one image of one frame.
        family: says how boxes in the answers are written.

    Raises:
        OSError: the file cannot be written.
    """
    columns = min(_COLUMNS, len(answers))
    lines = -(-len(answers) // columns)
    shape = picture.height / picture.width
    figure, grid = pyplot.subplots(
        lines, columns, squeeze=False, layout="constrained",
        figsize=(3.2 * columns, lines * (3.2 * min(max(shape, 0.4), 2.5) + 0.8) + 0.5),
    )  # fmt: skip
    for axes in grid.flat:
        axes.axis("off")
    figure.suptitle(figures.printable(question, 40 * columns), fontweight="bold")
    pixels = np.asarray(picture.convert("RGB"))
    for axes, (spec, answer) in zip(grid.flat, answers.items(), strict=False):
        _panel(axes, pixels, spec, answer, family)
    try:
        figure.savefig(path, dpi=140, facecolor="white", format="png")
    finally:
        pyplot.close(figure)


def _panel(axes: Axes, pixels: np.ndarray, spec: str, answer: Answer, family: str) -> None:
    axes.imshow(figures.shaded(pixels, answer.grids[0], answer.kept))
    kept = f"{len(answer.kept)} of {answer.visual_tokens} tokens"
    axes.set_title(f"{figures.printable(spec, _LETTERS)}\n{kept}", fontsize=9)
    text = figures.printable(answer.text, _LETTERS)
    axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=9)
    height, width = pixels.shape[:2]
    if family in BOX_PARSERS:
        cells: dict[str, Any] = {"width": str(width), "height": str(height)}
        figures.draw_box(axes, GROUNDING.parse(answer.text, cells, family), _BOX_COLOUR, "-")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # boxes may stick out
