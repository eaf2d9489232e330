"""Accuracy against budget, one panel a group of tasks, one line a method."""

from collections.abc import Sequence

from matplotlib import colormaps, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ivc_jax.reports.comparison import ALL, REFERENCE, Cell

_MARKERS = "osD^vPXd<>p*h"
CAPTION = (
    "x: mean over layers of the share of visual tokens in the cache, as measured. Every point is"
    " one budget; bars are 95 % bootstrap intervals of IVC-Prune, those of the others are in the"
    " table."
)


def styles(names: Sequence[str]) -> dict[str, dict]:
    """Give every method a colour and a marker; IVC-Prune is black and thick."""
    palette = colormaps["tab20"]
    found, number = {}, 0
    for name in names:
        if name == REFERENCE:
            found[name] = {"color": "black", "marker": "o", "lw": 2.6, "zorder": 5}
            continue
        # Dark shades first: tab20 pairs each with a light one.
        place = (2 * number) % 20 + (2 * number) // 20
        found[name] = {
            "color": palette(place % 20),
            "marker": _MARKERS[number % len(_MARKERS)],
            "lw": 1.2,
        }
        number += 1
    return found


def draw(cells: Sequence[Cell]) -> Figure | None:
    """Draw the curves; None without budgets."""
    groups = [group for group in dict.fromkeys(cell.group for cell in cells) if group != ALL]
    groups += [ALL]
    pruned = [cell for cell in cells if cell.label != "dense"]
    if not pruned:
        return None
    names = styles(list(dict.fromkeys(cell.label for cell in pruned)))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(5.6 * columns, 4.0 * lines + 1.0), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, group in zip(grid.flat, groups, strict=False):
        _panel(axes, group, cells, names)
    for axes in grid.flat[len(groups) :]:
        axes.axis("off")
    handles, texts = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _panel(axes: Axes, group: str, cells: Sequence[Cell], names: dict[str, dict]) -> None:
    for name, style in names.items():
        line = [cell for cell in cells if cell.group == group and cell.label == name]
        line.sort(key=lambda cell: cell.cached_share)
        shares = [100 * cell.cached_share for cell in line]
        scores = [100 * cell.score for cell in line]
        axes.plot(shares, scores, label=name, markersize=4.5, **style)
        if name == REFERENCE:
            errors = [
                [100 * (cell.score - cell.low) for cell in line],
                [100 * (cell.high - cell.score) for cell in line],
            ]
            axes.errorbar(shares, scores, errors, color="black", alpha=0.4, lw=1, ls="none")
    for cell in cells:
        if cell.group == group and cell.label == "dense":
            axes.axhline(100 * cell.score, color="grey", ls="--", lw=1, label="dense")
    axes.set(title=group, xlabel="visual tokens in the cache, mean over layers (%)")
    axes.set(ylabel="score (%)", xlim=(0, None))
    axes.grid(alpha=0.25)
