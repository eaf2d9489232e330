"""Figures of the lens: where the classes lie in pictures, and what they are like by block."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from PIL import Image

from ivc_jax.methods.words import CLASSES
from ivc_jax.reports import canvas
from ivc_jax.reports.colours import CLASSES as COLOURS

NAMES = ("alive", "ViT sink", "LLM sink", "dead")
_MARKERS = "os^X"


def arrange_cells(grid: np.ndarray, kind: np.ndarray) -> list[str]:
    """Write the classes of a picture's tokens as they lie, a line of digits a row of tokens.

    Args:
        grid: [n, 3], frame, row and column of each token; of several frames (tiles) the first.
        kind: [n], places in `CLASSES`.

    Returns:
        One line a row; "." where there is no token.
    """
    mine = grid[:, 0] == grid[:, 0].min()
    rows, columns = grid[mine, 1:].T
    cells = np.full((rows.max() + 1, columns.max() + 1), ".")
    cells[rows, columns] = [str(int(number)) for number in kind[mine]]
    return ["".join(row) for row in cells]


def draw_maps(
    path: pathlib.Path, pictures: Sequence[Image.Image], cells: Sequence[Sequence[str]]
) -> None:
    """Draw pictures above the classes of their tokens.

    Args:
        cells: of each picture, as `arrange_cells` writes them.
    """
    count = len(pictures)
    figure, axes = pyplot.subplots(
        2, count, squeeze=False, figsize=(2.1 * count, 4.3), layout="constrained"
    )
    for column, (picture, lines) in enumerate(zip(pictures, cells, strict=True)):
        kinds = np.array([[np.nan if mark == "." else int(mark) for mark in row] for row in lines])
        axes[0, column].imshow(picture)
        axes[1, column].imshow(
            kinds, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=3.5,
            aspect=picture.height / kinds.shape[0] / (picture.width / kinds.shape[1]),
        )  # fmt: skip
        for row in (0, 1):
            axes[row, column].set(xticks=[], yticks=[])
    patches = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, NAMES, strict=True)]
    canvas.add_legend(figure, patches, NAMES)
    path.write_bytes(canvas.render(figure))


def draw_layers(path: pathlib.Path, layers: dict[str, Any]) -> None:
    """Draw shares, lengths, steps and attention of the classes by block."""
    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.1), layout="constrained")
    shares = np.array([[each[name] for name in CLASSES] for each in layers["shares"]])
    axes[0].stackplot(range(len(shares)), shares.T, colors=COLOURS, labels=NAMES)
    axes[0].set(title="classes by what enters a block", ylabel="share of tokens", ylim=(0, 1))
    titles = {  # title of a panel, and what its axis shows
        "norm": ("length of a token", "Euclidean norm"),
        "step": ("a token before and after a block", "cosine"),
        "attention": ("attention by class", "part of the visual attention"),
    }
    for panel, (name, (title, unit)) in zip(axes[1:], titles.items(), strict=True):
        for kind, colour, marker in zip(CLASSES, COLOURS, _MARKERS, strict=True):
            if layers[name][kind] is not None:
                panel.plot(layers[name][kind], marker=marker, ms=4, color=colour)
        panel.set(title=title, ylabel=unit)
        panel.grid(alpha=0.25)
    for panel in axes:
        panel.set(xlabel="block")
    canvas.add_legend(figure, *canvas.collect_handles(axes[:1]))
    path.write_bytes(canvas.render(figure))


def draw_overlap(path: pathlib.Path, usual: dict[str, float], rows: list[dict[str, Any]]) -> None:
    """Draw which classes are among what methods keep, below those of all tokens."""
    every = [{"name": "all tokens", "among": usual}, *rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.26 * len(every)), layout="constrained")
    left = np.zeros(len(every))
    for kind, colour, name in zip(CLASSES, COLOURS, NAMES, strict=True):
        share = np.array([row["among"][kind] for row in every])
        axes.barh(range(len(every)), share, left=left, color=colour, label=name)
        left += share
    axes.axvline(usual["alive"], color="black", lw=0.8)
    axes.set_yticks(range(len(every)), [row["name"] for row in every], fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(every) - 0.5, -0.5), xlabel="share of the kept tokens")
    canvas.add_legend(figure, *canvas.collect_handles([axes]))
    path.write_bytes(canvas.render(figure))
