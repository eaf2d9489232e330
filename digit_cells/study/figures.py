"""Figures of the study of cells."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from ivc_jax.reports import canvas
from ivc_jax.reports.colours import PALETTE

_STYLES = tuple(zip(PALETTE, "os^DvPX*", strict=True))


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
        for name, (colour, marker) in zip(series, _STYLES, strict=False):
            points = [(block, score(panel, name, block)) for block in blocks]
            known = [(block, 100 * share) for block, share in points if share is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, marker=marker, ms=5, label=name)
        axes.set(title=panel, xlabel="hidden from block", ylim=(0, 100), xticks=list(blocks))
    grid[0][0].set_ylabel("grounding, % right")
    canvas.add_legend(figure, *canvas.collect_handles(grid[0]))
    return figure


def draw_maps(record: dict[str, Any], kind: str) -> Figure:
    """Draw the worth of places, a panel a block (all heads hidden) and one for each head below.

    Args:
        record: what `digit_cells.study.maps` wrote.
        kind: "by_place" in the picture, or "from_target", where the middle is the digit asked for.
    """
    found = {name: np.array(maps[kind][0], float) for name, maps in record["maps"].items()}
    blocks = record["meta"]["blocks"]
    heads = len(found) // blocks - 1
    bound = max(np.nanpercentile(np.abs(values), 99) for values in found.values())
    figure, grid = pyplot.subplots(
        heads + 1, blocks, squeeze=False, layout="constrained",
        figsize=(1.4 * blocks + 1.2, 1.5 * (heads + 1)),
    )  # fmt: skip
    for block in range(blocks):
        for row in range(heads + 1):
            name = f"block {block}" + (f" head {row - 1}" if row else "")
            values = found[name]
            side = round(len(values) ** 0.5)
            axes = grid[row][block]
            image = axes.imshow(values.reshape(side, side), cmap="PuOr_r", vmin=-bound, vmax=bound)
            axes.set(xticks=[], yticks=[])
            axes.set_title(name if row else f"{name}, all heads", fontsize=7)
    figure.colorbar(image, ax=grid, shrink=0.6, label="nats lost where the cell is hidden")
    return figure
