"""Figures of a run: scores against tokens in the cache, at budgets, kept tokens, the IVC map."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.figure
import numpy as np
from matplotlib import colormaps, pyplot
from matplotlib.axes import Axes

from ivc_jax.reports import ivc_map, kept
from ivc_jax.reports.comparison import ALL, REFERENCE, Cell
from ivc_jax.reports.labels import PERCENT, find_points, label_methods, shorten_task
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Figure

_DENSE = "dense"
_MARKERS = "osD^vPXd<>p*h"
_SCORES_CAPTION = (
    "Every point is one keep ratio or budget; bars are 95 % bootstrap intervals. x: mean over"
    " layers of the share of visual tokens in the cache; points are set apart a little."
)
_BUDGETS_CAPTION = (
    "x: mean over layers of the share of visual tokens in the cache, as measured. Every point is"
    " one budget; bars are 95 % bootstrap intervals of IVC-Prune, those of the others are in the"
    " table."
)


def draw(results: Results) -> Iterator[Figure]:
    """Draw all figures of a run."""
    title = "Score against visual tokens in the cache"
    yield save("accuracy", title, _SCORES_CAPTION, draw_scores(results))
    pictures = [("budgets", "Equal budgets", _BUDGETS_CAPTION, draw_budgets(results.comparison))]
    for task in kept.choose_tasks(results.meta.tasks):
        drawn, name = kept.draw_example(results, task), shorten_task(task)
        pictures.append((f"kept_{name}", f"Kept tokens: {name}", kept.CAPTION, drawn))
    title = "Implicit visual coordinates of this model"
    pictures.append(("ivc_map", title, ivc_map.CAPTION, ivc_map.draw(results)))
    yield from (save(*picture) for picture in pictures if picture[-1] is not None)


def save(name: str, title: str, caption: str, drawn: matplotlib.figure.Figure) -> Figure:
    """Turn what matplotlib drew into a figure of a report, and let go of it."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, dpi=140, facecolor="white", format="png")
    pyplot.close(drawn)
    return Figure(name, title, caption, buffer.getvalue())


def choose_styles(names: Sequence[str]) -> dict[str, dict]:
    """Give every method a colour and a marker; IVC-Prune is black and thick."""
    palette = colormaps["tab20"]  # 20 colours: dark, light, dark, light, ...
    found, number = {}, 0  # the reference takes no number: others keep their colours without it
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


def draw_scores(results: Results) -> matplotlib.figure.Figure:
    """Draw scores over tokens in the cache: one panel a task, one line a method."""
    rows = results.rows
    tasks = [task for task in dict.fromkeys(row.task for row in rows) if "/" not in task]
    labels = label_methods(results.meta.methods)
    names = list(dict.fromkeys(labels.values()))
    lines_of = choose_styles([name for name in names if name != _DENSE])
    columns = min(4, len(tasks))  # panels beside each other; the rest goes below
    lines = -(-len(tasks) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(3.3 * columns + 0.4, 3.0 * lines + 0.9), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, task in zip(grid.flat, tasks, strict=False):
        here, points = [row for row in rows if row.task == task], find_points(task)
        for number, (name, style) in enumerate(lines_of.items()):
            # set apart a little: methods with equal budgets would hide each other
            # -2.75 to 2.75 percent of the axis
            shift = 5.5 * (number / max(len(lines_of) - 1, 1) - 0.5)
            chosen = [row for row in here if labels[row.method] == name]
            _draw_line(axes, chosen, name, style, shift, points)
        for row in here:
            if row.method == _DENSE:
                axes.axhline(points * row.score, color="black", ls="--", lw=1, label=_DENSE)
        unit = "%" if points == PERCENT else f"points of {points:g}"
        axes.set(title=shorten_task(task), xlabel="visual tokens in the cache (%)")
        axes.set(ylabel=f"score ({unit})", xlim=(0, 100), ylim=(-0.03 * points, 1.03 * points))
        axes.grid(alpha=0.25)
    for axes in grid.flat[len(tasks) :]:
        axes.axis("off")
    handles, texts = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=8, frameon=False)
    return figure


def _draw_line(
    axes: Axes,
    rows: list[dict[str, Any]],
    name: str,
    style: dict[str, Any],
    shift: float,
    points: float,
) -> None:
    # a line from few tokens to many
    rows = sorted(rows, key=lambda row: row.metrics["cached_share"])
    shares = [100 * row.metrics["cached_share"] + shift for row in rows]
    scores = np.array([points * row.score for row in rows])
    axes.plot(shares, scores, label=name, markersize=5, **style)
    for share, score, row in zip(shares, scores, rows, strict=True):
        if "low" in row.metrics:
            low, high = (points * row.metrics[end] for end in ("low", "high"))
            # a point estimate such as F1 may lie outside the interval of the mean
            below, above = max(score - low, 0), max(high - score, 0)
            axes.errorbar(share, score, [[below], [above]], color=style["color"], alpha=0.35, lw=1)


def draw_budgets(cells: Sequence[Cell]) -> matplotlib.figure.Figure | None:
    """Draw the curves; None without budgets."""
    groups = [group for group in dict.fromkeys(cell.group for cell in cells) if group != ALL]
    groups += [ALL]
    pruned = [cell for cell in cells if cell.label != "dense"]
    if not pruned:
        return None
    names = choose_styles(list(dict.fromkeys(cell.label for cell in pruned)))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(5.6 * columns, 4.0 * lines + 1.0), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, group in zip(grid.flat, groups, strict=False):
        _draw_budget_panel(axes, group, cells, names)
    for axes in grid.flat[len(groups) :]:
        axes.axis("off")
    handles, texts = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _draw_budget_panel(
    axes: Axes, group: str, cells: Sequence[Cell], names: dict[str, dict]
) -> None:
    for name, style in names.items():
        line = [cell for cell in cells if cell.group == group and cell.label == name]
        line.sort(key=lambda cell: cell.cached_share)
        shares = [100 * cell.cached_share for cell in line]
        scores = [100 * cell.score for cell in line]
        axes.plot(shares, scores, label=name, markersize=4.5, **style)
        if name == REFERENCE:
            errors = [  # [2, points], downwards and upwards
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
