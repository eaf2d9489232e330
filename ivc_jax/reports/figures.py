"""Figures of a run: accuracy against tokens kept, kept tokens on an image, the IVC map."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.patches
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running.tsv import RowError, TsvError, TsvFile
from ivc_jax.reports import comparison, curves, ivc_map
from ivc_jax.reports.labels import short_labels, short_task, size_of
from ivc_jax.reports.points import PERCENT, points_of
from ivc_jax.studies import figure as study_figure
from ivc_jax.studies.study import Study
from ivc_jax.studies.table import Row

_DENSE = "dense"
_DARKENED = 0.25  # brightness of a dropped cell
_LONGEST = 28  # letters of an answer below a panel
_MOST_COLUMNS = 7

Record = dict[str, Any]


_ACCURACY_CAPTION = (
    "Every point is one keep ratio or budget; bars are 95 % bootstrap intervals. x: mean over"
    " layers of the share of visual tokens in the cache; points are set apart a little."
)
_KEPT_CAPTION = (
    "Dropped cells are darkened. Green answers score, red ones do not. Dashed: reference box;"
    " solid: answered box."
)
_IVC_CAPTION = (
    "V sums the cosines and U the sines of the rotary angles at a position. The top"
    f" {ivc_map.FRACTION:.0%} of the cells by each, taken as means over the position axes, are the"
    " IVC tokens. They depend on positions alone."
)


def draw(
    folder: pathlib.Path,
    results: dict[str, Any],
    records: list[Record],
    cells: Sequence[comparison.Cell] = (),
    studies: Sequence[tuple[Study, Sequence[Row]]] = (),
) -> list[dict]:
    """Draw all figures of a run; return path, title and caption of each, and whose it is.

    A run of studies has dozens of variants of one method: its figures are those of the studies.
    """
    (folder / "figures").mkdir(exist_ok=True)
    meta = results["meta"]
    if studies:
        return [
            _saved(folder, study.name, study.title, study_figure.CAPTIONS[study.figure], drawn)
            | {"of_study": True}
            for study, rows in studies
            if (drawn := study_figure.draw(study, rows)) is not None
        ]
    title = "Score against visual tokens in the cache"
    pictures = [("accuracy", title, _ACCURACY_CAPTION, _accuracy(results))]
    if cells:
        pictures.append(("budgets", "Equal budgets", curves.CAPTION, curves.draw(cells)))
    for task in _pictured_tasks(meta["tasks"]):
        name = short_task(task)
        picture = _kept_tokens(meta, [record for record in records if record["task"] == task])
        pictures.append((f"kept_{name}", f"Kept tokens: {name}", _KEPT_CAPTION, picture))
    title = "Implicit visual coordinates of this model"
    pictures.append(("ivc_map", title, _IVC_CAPTION, ivc_map.draw(meta, records)))
    return [
        _saved(folder, *picture) | {"of_study": False}
        for picture in pictures
        if picture[-1] is not None
    ]


def _saved(
    folder: pathlib.Path, name: str, title: str, caption: str, figure: Figure
) -> dict[str, str]:
    path = f"figures/{name}.png"
    figure.savefig(folder / path, dpi=140, facecolor="white")
    pyplot.close(figure)
    return {"path": path, "title": title, "caption": caption}


def _accuracy(results: dict[str, Any]) -> Figure:
    """Draw one panel a task, one line a method."""
    rows = results["rows"]
    tasks = [task for task in dict.fromkeys(row["task"] for row in rows) if "/" not in task]
    labels = short_labels(results["meta"]["methods"])
    names = list(dict.fromkeys(labels.values()))
    styles = curves.styles([name for name in names if name != _DENSE])
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(3.3 * columns + 0.4, 3.0 * lines + 0.9), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, task in zip(grid.flat, tasks, strict=False):
        here, points = [row for row in rows if row["task"] == task], points_of(task)
        for number, (name, style) in enumerate(styles.items()):
            # set apart a little: methods with equal budgets would hide each other
            shift = 5.5 * (number / max(len(styles) - 1, 1) - 0.5)
            chosen = [row for row in here if labels[row["method"]] == name]
            _line(axes, chosen, name, style, shift, points)
        for row in here:
            if row["method"] == _DENSE:
                axes.axhline(points * row["score"], color="black", ls="--", lw=1, label=_DENSE)
        unit = "%" if points == PERCENT else f"points of {points:g}"
        axes.set(title=short_task(task), xlabel="visual tokens in the cache (%)")
        axes.set(ylabel=f"score ({unit})", xlim=(0, 100), ylim=(-0.03 * points, 1.03 * points))
        axes.grid(alpha=0.25)
    for axes in grid.flat[len(tasks) :]:
        axes.axis("off")
    handles, texts = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=8, frameon=False)
    return figure


def _line(
    axes: Axes,
    rows: list[dict[str, Any]],
    name: str,
    style: dict[str, Any],
    shift: float,
    points: float,
) -> None:
    rows = sorted(rows, key=lambda row: row["metrics"]["cached_share"])
    shares = [100 * row["metrics"]["cached_share"] + shift for row in rows]
    scores = np.array([points * row["score"] for row in rows])
    axes.plot(shares, scores, label=name, markersize=5, **style)
    for share, score, row in zip(shares, scores, rows, strict=True):
        if "low" in row["metrics"]:
            low, high = (points * row["metrics"][end] for end in ("low", "high"))
            # a point estimate such as F1 may lie outside the interval of the mean
            below, above = max(score - low, 0), max(high - score, 0)
            axes.errorbar(share, score, [[below], [above]], color=style["color"], alpha=0.35, lw=1)


def _pictured_tasks(tasks: Sequence[str]) -> list[str]:
    """Take one grounding task and one other."""
    grounding = [task for task in tasks if TASKS[task].group == "grounding"]
    others = [task for task in tasks if TASKS[task].group != "grounding"]
    return grounding[:1] + others[:1]


def _kept_tokens(meta: dict[str, Any], records: list[Record]) -> Figure | None:
    """Draw one example: one panel a method, one line a budget; one budget if methods are many."""
    example = _chosen_example(meta, records)
    if not example:
        return None
    first = next(iter(example.values()))
    pixels = _pixels(meta, first)
    if pixels is None or len(first["grids"]) != 1 or first["grids"][0][0] != 1:
        return None  # drawn for a single image only
    pruned = {
        method: size_of(method, record["keep_ratio"])
        for method, record in example.items()
        if method != _DENSE
    }
    places, labels = arrange_panels(pruned)
    count, columns = (1 + max((p[axis] for p in places.values()), default=0) for axis in (0, 1))
    figure, grid = pyplot.subplots(
        count, columns, squeeze=False, layout="constrained",
        figsize=(2.35 * columns, 2.85 * count + 0.6),
    )  # fmt: skip
    for axes in grid.flat:
        axes.axis("off")
    question = f"{first['question']}    reference: {first['target']}"
    figure.suptitle(question, fontsize=12, fontweight="bold")
    if _DENSE in example:
        _panel(grid[0, 0], pixels, example[_DENSE], _DENSE)
    for method, place in places.items():
        title = f"{labels[method]}, {pruned[method][1]:g}"
        _panel(grid[place], pixels, example[method], title)
    return figure


def arrange_panels(
    sizes: Mapping[str, tuple[str, float]],
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Give methods a place (line, column) behind the dense panel (0, 0), and their labels.

    One column a method and one line a budget; where methods are many, one budget is shown, and one
    seed of each, line after line.

    Args:
        sizes: budget or keep ratio of each method (`labels.size_of`).
    """
    labels = short_labels(list(sizes))
    names = list(dict.fromkeys(labels.values()))
    lines = sorted(set(sizes.values()), reverse=True)
    if len(names) < _MOST_COLUMNS:
        places = {
            method: (lines.index(size), 1 + names.index(labels[method]))
            for method, size in sizes.items()
        }
        return places, labels
    chosen = [method for method, size in sizes.items() if size == lines[len(lines) // 2]]
    # A field with one value among these tells nothing.
    labels = short_labels(chosen, without=("seed",))
    first = {label: method for method, label in reversed(labels.items())}
    shown = [method for method in chosen if first[labels[method]] == method]
    return {method: divmod(n, _MOST_COLUMNS) for n, method in enumerate(shown, 1)}, labels


def _chosen_example(meta: dict[str, Any], records: list[Record]) -> dict[str, Record]:
    """Take the first example that dense gets right and that methods disagree on, if any."""
    examples: dict[str, dict[str, Record]] = {}
    for record in records:
        examples.setdefault(record["example_id"], {})[record["method"]] = record
    complete = [
        {method: by_method[method] for method in meta["methods"]}
        for by_method in examples.values()
        if all(method in by_method for method in meta["methods"])
    ]
    # Python's max keeps the first of equals.
    return max(complete, key=_interest, default={})


def _interest(example: dict[str, Record]) -> tuple[bool, bool]:
    dense = example.get(_DENSE)
    right = dense is not None and dense["score"] >= 1
    return right, len({record["score"] >= 1 for record in example.values()}) > 1


def _pixels(meta: dict[str, Any], record: Record) -> np.ndarray | None:
    """Read the image of a record from its benchmark file; None if the file is gone."""
    try:
        file = TsvFile(meta["files"][record["task"]])
    except TsvError:
        return None
    try:
        return np.asarray(file.read(record["row"] - 1).images[0].convert("RGB"))
    except (RowError, IndexError):
        return None
    finally:
        file.close()


def shaded(pixels: np.ndarray, grid: Sequence[int], kept: Sequence[int]) -> np.ndarray:
    """Darken the cells of an image [height, width, 3] whose tokens are not in `kept`.

    Args:
        grid: (1, rows, columns) of tokens.
    """
    _, rows, columns = grid
    bright = np.full(rows * columns, _DARKENED)
    bright[kept] = 1.0
    height, width = pixels.shape[:2]
    row_of = np.minimum(np.arange(height) * rows // height, rows - 1)
    column_of = np.minimum(np.arange(width) * columns // width, columns - 1)
    shade = bright.reshape(rows, columns)[row_of][:, column_of]
    return (pixels * shade[..., None]).astype(np.uint8)


def _panel(axes: Axes, pixels: np.ndarray, record: Record, title: str) -> None:
    height, width = pixels.shape[:2]
    axes.imshow(shaded(pixels, record["grids"][0], record["kept"]))
    axes.set_title(f"{title}: {record['kept_tokens']} of {record['visual_tokens']}", fontsize=9)
    colour = "#0a7d4f" if record["score"] >= 1 else "#b3261e"
    text = printable(record["prediction"])
    axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top",
              fontsize=9, color=colour)  # fmt: skip
    if TASKS[record["task"]].group == "grounding":
        target = [float(word) for word in record["target"].split()[:4]]
        draw_box(axes, target, "white", "--")
        draw_box(axes, record["parsed"], "#39ff9f" if record["score"] >= 1 else "#ff5a4f", "-")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # boxes may stick out


def printable(text: str, longest: int = _LONGEST) -> str:
    """Shorten an answer to what fits below a panel and the font can show."""
    text = "".join(letter if 32 <= ord(letter) < 127 else "·" for letter in text.strip())
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return text.replace("$", r"\$") or "(nothing)"  # no mathematics


def draw_box(axes: Axes, box: Sequence[float], colour: str, style: str) -> None:
    """Draw the outline of a box (x1, y1, x2, y2) unless it is empty."""
    x1, y1, x2, y2 = box
    if x2 > x1 and y2 > y1:
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, ls=style, lw=1.6
            )
        )
