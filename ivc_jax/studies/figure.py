"""The figure of a study: differences row by row, scores over one setting, or over two."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from ivc_jax.reports import canvas
from ivc_jax.reports.colours import (
    MEASURED,
    REST,
    Style,
    choose_highlighted,
    choose_styles,
)
from ivc_jax.studies.study import Study
from ivc_jax.studies.table import ALL, Row

CAPTIONS = {
    "rows": (
        "Difference in points, paired by example, to what the table names; bars are 95 % bootstrap"
        " intervals over pictures. Filled: p below 0.05 after adjusting for all rows (Holm)."
    ),
    "lines": (
        "Score by group of tasks; shaded: 95 % bootstrap interval over pictures; dashed: the"
        " unpruned model."
    ),
    "heat": "Score in percent by group of tasks, all on one scale of colours.",
}
# of the panels; grounding first, where pruning hurts most
_GROUP_ORDER = ("grounding", "spatial", "semantic", ALL)
_FILLED, _HOLLOW = MEASURED, "white"
_DENSE = "dense"


def draw(study: Study, rows: Sequence[Row]) -> Figure | None:
    """Draw the figure of a study; None without rows."""
    if not rows:
        return None
    groups = [group for group in _GROUP_ORDER if group in rows[0].cells]
    if study.figure == "lines":
        return _draw_lines(study, rows, groups)
    if study.figure == "heat":
        return _draw_heat(study, rows, groups)
    return _draw_rows(rows, [group for group in groups if group != ALL])


def _draw_rows(rows: Sequence[Row], groups: Sequence[str]) -> Figure | None:
    # the reference itself and rows without a control have no difference
    compared = [row for row in rows if row.versus]
    if not compared:
        return None
    figure, grid = pyplot.subplots(
        1, len(groups), sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(2.6 + 2.9 * len(groups), 1.2 + 0.22 * len(compared)),
    )  # fmt: skip
    places = _place_rows(compared)
    for axes, group in zip(grid[0], groups, strict=True):
        axes.axvline(0, color="black", lw=0.8)
        for place, row in zip(places, compared, strict=True):
            cell = row.cells[group]
            if math.isnan(cell.difference):
                continue
            low, high = 100 * cell.difference_low, 100 * cell.difference_high  # points
            axes.plot([low, high], [place, place], color=_FILLED, lw=1.2, alpha=0.7)
            sure = cell.p_holm < 0.05  # filled marker: told from zero after Holm's adjustment
            axes.plot(100 * cell.difference, place, "o", ms=5, color=_FILLED,
                      mfc=_FILLED if sure else _HOLLOW)  # fmt: skip
        axes.set(title=group, xlabel="difference (points)")
        axes.grid(alpha=0.25, axis="x")
    several = len({row.series for row in compared}) > 1
    names = [f"{row.series}: {row.label}" if several else row.label for row in compared]
    # shared y: the first panel speaks for all
    grid[0, 0].set_yticks(places, names, fontsize=8)
    grid[0, 0].set_ylim(max(places) + 1, -1)  # upside down: the first row on top
    return figure


def _place_rows(rows: Sequence[Row]) -> list[float]:
    """Number the rows from top to bottom, with a gap between series."""
    places, place = [], 0.0
    for number, row in enumerate(rows):
        if number and row.series != rows[number - 1].series:
            place += 0.7  # of a row's height
        places.append(place)
        place += 1
    return places


def _draw_lines(study: Study, rows: Sequence[Row], groups: Sequence[str]) -> Figure:
    # grid: [1, groups]
    figure, grid = pyplot.subplots(
        1, len(groups), sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(3.4 * len(groups) + 0.4, 3.3),
    )  # fmt: skip
    series: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.x):  # a line must not run back
        series.setdefault(row.series, []).append(row)
    series = {name: series[name] for name in dict.fromkeys(row.series for row in rows)}
    means = {n: np.mean([row.cells[groups[-1]].score for row in own]) for n, own in series.items()}
    shown = choose_highlighted(means)
    styles = dict.fromkeys(series) | choose_styles(shown)
    for axes, group in zip(grid[0], groups, strict=True):
        for name, own in series.items():
            _draw_series(axes, own, group, name, styles[name])
        dense = find_dense(rows, group)
        if dense is not None:
            canvas.draw_dense(axes, 100 * dense)
        axes.set(title=group, xlabel=study.x_label)
        axes.grid(alpha=0.25)
    places = sorted({row.x for row in rows})
    if all(float(place).is_integer() for place in places):  # layers: there is nothing between two
        grid[0, 0].set_xticks(places)
    grid[0, 0].set_ylabel("score (%)")
    handles, texts = canvas.collect_handles(grid[0])
    if len(shown) < len(series):
        handles.append(Line2D([], [], color=REST, marker=".", lw=0.9))
        texts.append(canvas.name_rest(len(series) - len(shown)))
    canvas.add_legend(figure, handles, texts)
    return figure


def _draw_series(
    axes: Axes, rows: Sequence[Row], group: str, name: str, style: Style | None
) -> None:
    x, cells = [row.x for row in rows], [row.cells[group] for row in rows]
    scores = [100 * cell.score for cell in cells]
    if style is None:
        axes.plot(x, scores, color=REST, lw=0.9, marker=".", ms=3, zorder=1)
        return
    axes.plot(x, scores, label=name, ms=5, **style)
    low, high = ([100 * getattr(cell, end) for cell in cells] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.1, lw=0)


def find_dense(rows: Sequence[Row], group: str) -> float | None:
    """Return what the unpruned model scores on a group, from a row that was compared with it.

    Args:
        rows: of a study; "dense" is often none of its rows, but what they are compared with.
    """
    scores = [row.cells[group].score - row.cells[group].difference
              for row in rows if row.versus == _DENSE]  # fmt: skip
    return next((score for score in scores if not math.isnan(score)), None)


def _draw_heat(study: Study, rows: Sequence[Row], groups: Sequence[str]) -> Figure:
    x, y = (sorted({getattr(row, axis) for row in rows}) for axis in "xy")
    # grid: [1, groups]; a panel grows with the number of its cells
    figure, grid = pyplot.subplots(
        1, len(groups), squeeze=False, layout="constrained",
        sharey=True, figsize=((0.7 + 0.55 * len(x)) * len(groups) + 1.2, 1.4 + 0.5 * len(y)),
    )  # fmt: skip
    maps = np.full((len(groups), len(y), len(x)), np.nan)  # what did not run stays empty
    for row in rows:
        scores = [100 * row.cells[group].score for group in groups]
        maps[:, y.index(row.y), x.index(row.x)] = scores
    scale = np.nanmin(maps), np.nanmax(maps)  # one for all panels: they are to be compared
    for axes, group, values in zip(grid[0], groups, maps, strict=True):
        shown = _draw_heat_panel(axes, values, x, y, scale)
        axes.set(title=group, xlabel=study.x_label)
    grid[0, 0].set_ylabel(study.y_label)
    figure.colorbar(shown, ax=list(grid[0]), shrink=0.85, pad=0.01, label="score (%)")
    return figure


def _draw_heat_panel(
    axes: Axes, values: np.ndarray, x: Sequence[float], y: Sequence[float],
    scale: tuple[float, float],
) -> AxesImage:  # fmt: skip
    # origin "lower": y grows upwards
    shown = axes.imshow(values, cmap="viridis", origin="lower", aspect="auto",
                        vmin=scale[0], vmax=scale[1])  # fmt: skip
    # viridis is dark below the middle of its range, and black would not be read on it
    middle = sum(scale) / 2
    for (line, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            dark = value < middle
            axes.text(column, line, f"{value:.0f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(len(x)), [f"{value:g}" for value in x])
    axes.set_yticks(range(len(y)), [f"{value:g}" for value in y])
    return shown
