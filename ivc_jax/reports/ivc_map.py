"""The figure of the IVC map: V and U over positions and on the grid of an image."""

import matplotlib.colors
import matplotlib.patches
import matplotlib.ticker
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ivc_jax import ivc
from ivc_jax.reports.colours import BOTH, IMAGINARY, REAL
from ivc_jax.reports.results import Results

_FRACTION = 0.1  # of the tokens by V, and as many by U
CAPTION = (
    "V sums the cosines and U the sines of the rotary angles at a position, over all planes. The"
    f" top {_FRACTION:.0%} of the cells by each, taken as means over the position axes, are the"
    " IVC tokens: orange by V, blue by U, purple by both. Dots on the curves: rows and columns of"
    " chosen cells. They depend on positions alone."
)


def draw(results: Results) -> Figure | None:
    """Draw V and U over positions, and both with the chosen cells on the grid of an image."""
    meta = results.meta
    grids = next((record.grids for record in results.records if record.grids), None)
    if grids is None or meta.image_start is None:
        return None
    _, rows, columns = grids[0]
    start, rope = meta.image_start, meta.rope
    # [3, n] position ids of the cells: time stays, rows and columns count up
    cells = np.indices((1, rows, columns)).reshape(3, -1) + start
    length = int(cells.max()) + 1
    shown = max(length + 16, 64)  # positions; a little beyond the image
    V, U = ivc.scores(rope["head_dim"], rope["theta"], shown)  # [positions] each
    # the score of a cell is the mean over its three ids
    maps = [table[cells].mean(axis=0).reshape(rows, columns) for table in (V, U)]
    chosen = [
        ivc.select(cells, rope["head_dim"], rope["theta"], *fractions)
        for fractions in ((_FRACTION, 0.0), (0.0, _FRACTION))
    ]
    figure, (curves, real, imaginary, both) = pyplot.subplots(
        1, 4, figsize=(15.5, 4.1), layout="constrained", width_ratios=(1.5, 1, 1, 0.85)
    )
    # The axes of a cell are looked up in one curve: rows and columns share the positions.
    _draw_curves(curves, V, U, start, length, cells, chosen)
    for axes, values, picks, name, colour in zip(
        (real, imaginary), maps, chosen, "VU", (REAL, IMAGINARY), strict=True
    ):
        shown_map = axes.imshow(values, cmap="viridis")
        _outline(axes, picks, columns, colour)
        axes.set(title=f"mean {name} of a cell; top {_FRACTION:.0%} outlined",
                 xlabel="column (tokens)", ylabel="row (tokens)")  # fmt: skip
        figure.colorbar(shown_map, ax=axes, shrink=0.8, label=f"{name} (sum over planes)")
    paint(both, *chosen, rows, columns)
    union = len(np.union1d(*chosen))
    both.set(title=f"IVC tokens: {union} of {rows * columns}", xlabel="column (tokens)")
    both.text(0.5, -0.24, "orange: by V, blue: by U, purple: both", transform=both.transAxes,
              ha="center", va="top", fontsize=8)  # fmt: skip
    for axes in (real, imaginary, both):
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    return figure


def paint(axes: Axes, by_cos: np.ndarray, by_sin: np.ndarray, rows: int, columns: int) -> None:
    """Draw the grid of an image with the cells chosen by V, by U and by both in their colours.

    Args:
        by_cos: indices of the cells chosen by V.
        by_sin: indices of the cells chosen by U.
    """
    canvas = np.ones((rows * columns, 3))  # [cells, RGB], white
    shared = np.intersect1d(by_cos, by_sin).astype(int)
    for picks, colour in ((by_cos, REAL), (by_sin, IMAGINARY), (shared, BOTH)):
        canvas[picks] = matplotlib.colors.to_rgb(colour)
    axes.imshow(canvas.reshape(rows, columns, 3))
    # Cell centres are whole numbers, so their borders are halves.
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color="0.8", lw=0.5)
    axes.tick_params(which="minor", length=0)


def _draw_curves(axes, V, U, start, length, cells, chosen) -> None:
    axes.plot(V, color=REAL, label="V: sum of cosines")
    axes.plot(U, color=IMAGINARY, label="U: sum of sines")
    axes.axvspan(start, length - 1, color="black", alpha=0.07, label="positions of the image")
    for table, picks, colour in zip((V, U), chosen, (REAL, IMAGINARY), strict=True):
        used = np.unique(cells[1:, picks])  # ids of rows and columns; time has a single one
        axes.plot(used, table[used], "o", color=colour, markersize=5)
    axes.set(title="IVC scores (dots: chosen rows and columns)",
             xlabel="position id", ylabel="score (sum over planes)")  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _outline(axes: Axes, picks: np.ndarray, columns: int, colour: str) -> None:
    # white below the colour: it shows on any cell of the map
    for pick in picks:
        row, column = divmod(int(pick), columns)
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="white", lw=2.5
            )
        )
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, lw=1.4
            )
        )
