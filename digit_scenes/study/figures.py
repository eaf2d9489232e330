"""Figures of the study of cells."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from ivc_jax.reports import canvas
from ivc_jax.reports.colours import choose_styles


def draw_lines(
    panels: Sequence[str],
    series: Sequence[str],
    blocks: Sequence[int],
    score: Callable[[str, str, int], float | None],
    whole: Callable[[str], float],
) -> Figure:
    """Draw grounding against the first block that does not see the hidden cells.

    Args:
        panels: one each, from the left.
        series: at most eight lines of a panel.
        blocks: of the x axis.
        score: (panel, line, block) to a share; None where nothing was asked.
        whole: panel to the share with all cells, a dashed line.
    """
    figure, grid = pyplot.subplots(
        1, len(panels), sharey=True, squeeze=False, layout="constrained",
        figsize=(0.6 + 3.0 * len(panels), 3.3),
    )  # fmt: skip
    for axes, panel in zip(grid[0], panels, strict=True):
        axes.axhline(100 * whole(panel), color="black", lw=0.8, ls="--", label="all cells")
        for name, style in choose_styles(series).items():
            points = [(block, score(panel, name, block)) for block in blocks]
            known = [(block, 100 * share) for block, share in points if share is not None]
            if known:
                axes.plot(*zip(*known, strict=True), ms=5, label=name, **style)
        axes.set(title=panel, xlabel="hidden from block", ylim=(0, 100), xticks=list(blocks))
    grid[0][0].set_ylabel("grounding, right (%)")
    canvas.add_legend(figure, *canvas.collect_handles(grid[0]))
    return figure


def draw_maps(record: dict[str, Any], kind: str) -> Figure:
    """Draw the worth of places, a panel a block (all heads hidden) and one for each head below.

    Places whose worth is less than two standard errors from 0 are grey; the scale ends where 5 %
    of the larger half of the others lie beyond.

    Args:
        record: what `digit_scenes.study.maps` wrote.
        kind: "by_place" in the picture, or "from_target", where the middle is the digit asked for.
    """
    found = {name: find_sure(*maps[kind]) for name, maps in record["maps"].items()}
    blocks = record["meta"]["blocks"]
    heads = len(found) // blocks - 1
    known = np.concatenate([np.abs(values[~np.isnan(values)]) for values in found.values()])
    bound = np.percentile(known[known > np.median(known)], 95) if len(known) else 1.0
    figure, grid = pyplot.subplots(
        heads + 1, blocks, squeeze=False, layout="constrained",
        figsize=(1.4 * blocks + 1.2, 1.5 * (heads + 1)),
    )  # fmt: skip
    for block in range(blocks):
        names = [f"block {block}", *(f"block {block} head {head}" for head in range(heads))]
        for name, axes in zip(names, grid[:, block], strict=True):
            side = round(len(found[name]) ** 0.5)
            axes.set(xticks=[], yticks=[], facecolor="0.85")
            image = axes.imshow(
                found[name].reshape(side, side), cmap="PuOr_r", vmin=-bound, vmax=bound
            )
            axes.set_title(name if "head" in name else f"{name}, all heads", fontsize=7)
    label = "nats lost where the cell is hidden"
    figure.colorbar(image, ax=grid, shrink=0.6, label=label, extend="both")
    return figure


def find_sure(values: Sequence[float | None], errors: Sequence[float | None]) -> np.ndarray:
    """Return values of at least two standard errors; NaN for the others."""
    value, error = np.array(values, float), np.array(errors, float)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(value) >= 2 * error, value, np.nan)
