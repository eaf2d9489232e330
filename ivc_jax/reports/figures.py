"""Figures of a run: scores against tokens in the cache, at budgets, kept tokens, the IVC map."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import matplotlib.figure
import matplotlib.lines
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

from ivc_jax.evals.schema import Record, Row
from ivc_jax.reports import canvas, ivc_map, kept
from ivc_jax.reports.colours import HIGHLIGHTED, REST, Style, choose_highlighted, choose_styles
from ivc_jax.reports.comparison import ALL, REFERENCE, Cell
from ivc_jax.reports.labels import (
    PERCENT,
    SEEDS,
    find_points,
    label_methods,
    read_budget,
    read_size,
    shorten_task,
)
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Figure

_DENSE = "dense"
_X_LABEL = "visual tokens in the cache (%)"
_REST_CAPTION = (
    f" At most {HIGHLIGHTED} methods have a colour, `ivc`, `random` and those of the best average;"
    " the others are grey."
)
_SCORES_CAPTION = (
    "Every point is one keep ratio or budget; bars are 95 % bootstrap intervals. x: mean over"
    " layers of the share of visual tokens in the cache; points are set apart a little. Runs that"
    " differ in their seed alone are averaged, and have no bars."
)
_BUDGETS_CAPTION = (
    "x: mean over layers of the share of visual tokens in the cache, as measured. Every point is"
    " one budget; bars are 95 % bootstrap intervals of IVC-Prune, those of the others are in the"
    " table."
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A score over its share of tokens in the cache, both from 0 to 1; NaN without an interval."""

    share: float
    score: float
    low: float = math.nan
    high: float = math.nan


def draw(results: Results) -> Iterator[Figure]:
    """Draw all figures of a run."""
    title = "Score against visual tokens in the cache"
    caption = _SCORES_CAPTION + _note_rest(pool_rows(results))
    yield save("accuracy", title, caption, draw_scores(results))
    cells = results.comparison
    caption = _BUDGETS_CAPTION + _note_rest({cell.label for cell in cells})
    pictures = [("budgets", "Equal budgets", caption, draw_budgets(cells))]
    for task in kept.choose_tasks(results.meta.tasks):
        drawn, name = kept.draw_example(results, task), shorten_task(task)
        pictures.append((f"kept_{name}", f"Kept tokens: {name}", kept.CAPTION, drawn))
    title = "Implicit visual coordinates of this model"
    pictures.append(("ivc_map", title, ivc_map.CAPTION, ivc_map.draw(results)))
    yield from (save(*picture) for picture in pictures if picture[-1] is not None)


def _note_rest(names: Collection[str]) -> str:
    return _REST_CAPTION if len({*names} - {_DENSE}) > HIGHLIGHTED else ""


def list_drawn_records(results: Results) -> list[Record]:
    """List the records that figures show; all else in them follows from rows and comparison."""
    tasks = kept.choose_tasks(results.meta.tasks)
    return [record for task in tasks for record in kept.choose_example(results, task).values()]


def save(name: str, title: str, caption: str, drawn: matplotlib.figure.Figure) -> Figure:
    """Turn what matplotlib drew into a figure of a report, and let go of it."""
    return Figure(name, title, caption, canvas.render(drawn))


def draw_scores(results: Results) -> matplotlib.figure.Figure:
    """Draw scores over tokens in the cache: one panel a task, one line a method."""
    tasks = [task for task in dict.fromkeys(row.task for row in results.rows) if "/" not in task]
    series = pool_rows(results)
    names = [name for name in series if name != _DENSE]
    # the last panel is the average of tasks, where there are several
    shown = choose_highlighted({name: _average(series[name], tasks[-1]) for name in names})
    styles = choose_styles(shown)
    columns = min(4, len(tasks))  # panels beside each other; the rest goes below
    lines = -(-len(tasks) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(3.3 * columns + 0.4, 3.0 * lines), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    shares = [point.share for n in names for line in series[n].values() for point in line]
    right = min(110 * max(shares, default=1.0), 100) + 2  # room for points that are set apart
    for axes, task in zip(grid.flat, tasks, strict=False):
        points = find_points(task)
        for name in names:
            if name not in styles:
                _draw_line(axes, series[name].get(task, []), points)
        for name, style in styles.items():
            shift = _set_apart(shown.index(name), len(shown))
            _draw_line(axes, series[name].get(task, []), points, name, style, shift)
        for point in series.get(_DENSE, {}).get(task, []):
            canvas.draw_dense(axes, points * point.score)
        unit = "%" if points == PERCENT else f"points of {points:g}"
        axes.set(title=shorten_task(task), xlabel=_X_LABEL, ylabel=f"score ({unit})")
        axes.set(xlim=(0, right), ylim=(-0.03 * points, 1.03 * points))
        axes.grid(alpha=0.25)
    canvas.hide_unused(grid.flat[len(tasks) :])
    _add_legend(figure, grid.flat[: len(tasks)], len(names) - len(shown))
    return figure


def pool_rows(results: Results) -> dict[str, dict[str, list[Point]]]:
    """Arrange the rows of a run as lines: by name and task the points, from few tokens to many.

    Runs that differ in their seed alone are one point, the mean. A field that a method has a value
    of its own for at each budget makes no other line.
    """
    specs, labels = results.meta.methods, {}
    for budget in dict.fromkeys(map(read_budget, specs)):
        here = [spec for spec in specs if read_budget(spec) == budget]
        labels |= label_methods(here, without=SEEDS)
    runs: dict[tuple, list[Row]] = {}
    for row in results.rows:
        key = labels[row.method], row.task, read_size(row.method, row.keep_ratio)
        runs.setdefault(key, []).append(row)
    series: dict[str, dict[str, list[Point]]] = {}
    for (name, task, _), rows in runs.items():
        series.setdefault(name, {}).setdefault(task, []).append(_make_point(rows))
    for by_task in series.values():
        for points in by_task.values():
            points.sort(key=lambda point: point.share)
    return series


def _make_point(rows: Sequence[Row]) -> Point:
    share = float(np.mean([row.metrics["cached_share"] for row in rows]))
    score = float(np.mean([row.score for row in rows]))
    if len(rows) > 1 or "low" not in rows[0].metrics:
        return Point(share, score)
    return Point(share, score, rows[0].metrics["low"], rows[0].metrics["high"])


def _average(by_task: Mapping[str, Sequence[Point]], task: str) -> float:
    points = by_task.get(task, [])
    return float(np.mean([point.score for point in points])) if points else -math.inf


def _set_apart(number: int, count: int) -> float:
    """Return by how many percent of the axis a line is moved: equal budgets would hide each other.

    From -2 to 2.
    """
    return 4 * (number / max(count - 1, 1) - 0.5)


def _draw_line(
    axes: Axes,
    line: Sequence[Point],
    points: float,
    name: str | None = None,
    style: Style | None = None,
    shift: float = 0.0,
) -> None:
    """Draw the points of a method; without a style as one of the others, in grey."""
    shares = [100 * point.share + shift for point in line]
    scores = [points * point.score for point in line]
    if style is None:
        axes.plot(shares, scores, color=REST, lw=0.9, marker=".", markersize=3, zorder=1)
        return
    axes.plot(shares, scores, label=name, markersize=5, **style)
    for share, point in zip(shares, line, strict=True):
        if not math.isnan(point.low):
            # a point estimate such as F1 may lie outside the interval of the mean
            below, above = max(point.score - point.low, 0), max(point.high - point.score, 0)
            axes.errorbar(share, points * point.score, [[points * below], [points * above]],
                          color=style["color"], alpha=0.35, lw=1)  # fmt: skip


def _add_legend(figure: matplotlib.figure.Figure, panels: Sequence[Axes], rest: int) -> None:
    handles, texts = canvas.collect_handles(panels)
    if rest:
        handles.append(matplotlib.lines.Line2D([], [], color=REST, marker=".", lw=0.9))
        texts.append(canvas.name_rest(rest))
    canvas.add_legend(figure, handles, texts)


def draw_budgets(cells: Sequence[Cell]) -> matplotlib.figure.Figure | None:
    """Draw the curves; None without budgets."""
    groups = [group for group in dict.fromkeys(cell.group for cell in cells) if group != ALL]
    groups += [ALL]
    pruned = [cell for cell in cells if cell.label != _DENSE]
    if not pruned:
        return None
    names = list(dict.fromkeys(cell.label for cell in pruned))
    overall = {
        name: [c.score for c in pruned if (c.label, c.group) == (name, ALL)] for name in names
    }
    shown = choose_highlighted({name: float(np.mean(each)) for name, each in overall.items()})
    styles = dict.fromkeys(names) | choose_styles(shown)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(5.6 * columns, 3.8 * lines), squeeze=False,
        sharey=True, layout="constrained",
    )  # fmt: skip
    for axes, group in zip(grid.flat, groups, strict=False):
        _draw_budget_panel(axes, [cell for cell in cells if cell.group == group], styles)
        axes.set(title=group, xlabel=_X_LABEL, xlim=(0, None))
    for axes in grid[:, 0]:
        axes.set(ylabel="score (%)")
    canvas.hide_unused(grid.flat[len(groups) :])
    _add_legend(figure, grid.flat[: len(groups)], len(names) - len(shown))
    return figure


def _draw_budget_panel(
    axes: Axes, cells: Sequence[Cell], styles: Mapping[str, Style | None]
) -> None:
    for name, style in styles.items():
        line = sorted((c for c in cells if c.label == name), key=lambda cell: cell.cached_share)
        points = [Point(cell.cached_share, cell.score) for cell in line]
        if name == REFERENCE:
            points = [Point(c.cached_share, c.score, c.low, c.high) for c in line]
        _draw_line(axes, points, PERCENT, name, style)
    for cell in cells:
        if cell.label == _DENSE:
            canvas.draw_dense(axes, PERCENT * cell.score)
    axes.grid(alpha=0.25)
