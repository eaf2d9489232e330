"""A figure of kept tokens over the frames of a video: a line a method, a panel a temporal slice."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot

from ivc_jax.evals.running.recording import Answer
from ivc_jax.inputs.video import Clip
from ivc_jax.reports.kept import shade, shorten

_MOST_PANELS = 8  # of a line
_LETTERS = 60


def save_frames(
    path: pathlib.Path, clip: Clip, depth: int, question: str, answers: Mapping[str, Answer]
) -> None:
    """Write the figure of a prompt with one video as PNG.

    Args:
        path: of the file.
        clip: what was shown.
        depth: frames of a temporal slice, the first of which is drawn.
        question: that was asked.
        answers: by method.

    Raises:
        OSError: the file cannot be written.
    """
    count = -(-len(clip) // depth)
    shown = np.unique(np.linspace(0, count - 1, min(count, _MOST_PANELS)).round().astype(int))
    height, width = clip.frames.shape[1:3]
    high = 1.7 * min(max(height / width, 0.4), 2.0)
    figure, grid = pyplot.subplots(
        len(answers), len(shown), squeeze=False, layout="constrained",
        figsize=(1.7 * len(shown) + 0.3, len(answers) * (high + 0.6) + 0.5),
    )  # fmt: skip
    figure.suptitle(shorten(question, 20 * len(shown)), fontweight="bold")
    for line, (spec, answer) in zip(grid, answers.items(), strict=True):
        slices = list_slices(answer)
        for axes, number in zip(line, shown, strict=True):
            cells, kept = slices[number]
            axes.imshow(shade(clip.frames[number * depth], (1, *cells), kept))
            axes.set_xlabel(f"{clip.time_slices(depth)[number]:.1f} s: {len(kept)}", fontsize=7)
            axes.set(xticks=[], yticks=[])
        told = f"{shorten(spec, _LETTERS)}: {shorten(answer.text, _LETTERS)}"
        line[0].set_title(told, fontsize=8, loc="left")
    try:
        figure.savefig(path, dpi=140, facecolor="white", format="png")
    finally:
        pyplot.close(figure)


def list_slices(answer: Answer) -> list[tuple[tuple[int, int], Sequence[int]]]:
    """Return of each temporal slice its (rows, columns) of tokens, and which of these are kept.

    A model has a video in one piece, or as an image a frame: slices follow each other either way.
    """
    found, first = [], 0
    for frames, rows, columns in answer.grids:
        for _ in range(frames):
            inside = [token - first for token in answer.kept if 0 <= token - first < rows * columns]
            found.append(((rows, columns), inside))
            first += rows * columns
    return found
