"""Figures of a run: accuracy against tokens kept, kept tokens on an image, the IVC map."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.patches
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.labels import short_labels, short_task
from ivc_jax import ivc
from ivc_jax.evals.tasks import TASKS
from ivc_jax.evals.tsv import RowError, TsvError, TsvFile

_DENSE = "dense"
_DARKENED = 0.25  # brightness of a dropped cell
_LONGEST = 28  # letters of an answer below a panel
_FRACTION = 0.1  # of the tokens by V, and as many by U
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#333333")
_MARKERS = "osD^vPX"
_REAL, _IMAGINARY = "#d55e00", "#0072b2"

Record = dict[str, Any]


def draw(folder: pathlib.Path, results: dict[str, Any], records: list[Record]) -> list[dict]:
    """Draw all figures of a run; return path, title and caption of each."""
    (folder / "figures").mkdir(exist_ok=True)
    drawn = [
        _saved(folder, _accuracy(results), "accuracy", "Score against visual tokens kept",
               "Every point is one keep ratio; bars are 95 % bootstrap intervals. The x axis is "
               "the measured share, since +ivc adds tokens to the budget of its host."),
    ]  # fmt: skip
    for task in _pictured_tasks(results["meta"]["tasks"]):
        picture = _kept_tokens(results["meta"], [r for r in records if r["task"] == task])
        if picture is not None:
            name = short_task(task)
            drawn.append(
                _saved(folder, picture, f"kept_{name}", f"Kept tokens: {name}",
                       "Dropped cells are darkened. Green answers score, red ones do not. "
                       "Dashed: reference box; solid: answered box.")
            )  # fmt: skip
    if (picture := _ivc_map(results["meta"], records)) is not None:
        drawn.append(
            _saved(folder, picture, "ivc_map", "Implicit visual coordinates of this model",
                   "V sums the cosines and U the sines of the rotary angles at a position. The "
                   f"top {_FRACTION:.0%} of the cells by each, taken as means over the position "
                   "axes, are the IVC tokens. They depend on positions alone.")
        )  # fmt: skip
    return drawn


def _saved(
    folder: pathlib.Path, figure: Figure, name: str, title: str, caption: str
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
    styles = {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, name in enumerate(name for name in names if name != _DENSE)
    }
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(3.3 * columns + 0.4, 3.0 * lines + 0.9), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, task in zip(grid.flat, tasks, strict=False):
        here = [row for row in rows if row["task"] == task]
        for name, style in styles.items():
            _line(axes, [row for row in here if labels[row["method"]] == name], name, style)
        for row in here:
            if row["method"] == _DENSE:
                axes.axhline(100 * row["score"], color="black", ls="--", lw=1, label=_DENSE)
        axes.set(title=short_task(task), xlabel="visual tokens kept (%)", ylabel="score (%)")
        axes.set(xlim=(0, 100), ylim=(-3, 103))
        axes.grid(alpha=0.25)
    for axes in grid.flat[len(tasks) :]:
        axes.axis("off")
    handles, texts = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _line(axes: Axes, rows: list[dict[str, Any]], name: str, style: dict[str, str]) -> None:
    rows = sorted(rows, key=lambda row: row["kept_tokens"])
    shares = [100 * row["kept_tokens"] / max(row["visual_tokens"], 1) for row in rows]
    scores = np.array([100 * row["score"] for row in rows])
    axes.plot(shares, scores, label=name, markersize=5, lw=1.5, **style)
    for share, score, row in zip(shares, scores, rows, strict=True):
        if "low" in row["metrics"]:
            low, high = 100 * row["metrics"]["low"], 100 * row["metrics"]["high"]
            # a point estimate such as F1 may lie outside the interval of the mean
            below, above = max(score - low, 0), max(high - score, 0)
            axes.errorbar(share, score, [[below], [above]], color=style["color"], alpha=0.35, lw=1)


def _pictured_tasks(tasks: Sequence[str]) -> list[str]:
    """Take one grounding task and one other."""
    grounding = [task for task in tasks if TASKS[task].group == "grounding"]
    others = [task for task in tasks if TASKS[task].group != "grounding"]
    return grounding[:1] + others[:1]


def _kept_tokens(meta: dict[str, Any], records: list[Record]) -> Figure | None:
    """Draw one example, one panel a method, one line a keep ratio."""
    example = _chosen_example(meta, records)
    if not example:
        return None
    first = next(iter(example.values()))
    pixels = _pixels(meta, first)
    if pixels is None or len(first["grids"]) != 1 or first["grids"][0][0] != 1:
        return None  # drawn for a single image only
    labels = short_labels(meta["methods"])
    pruned = [record for record in example.values() if record["method"] != _DENSE]
    ratios = sorted({record["keep_ratio"] for record in pruned}, reverse=True)
    names = list(dict.fromkeys(labels[record["method"]] for record in pruned))
    figure, grid = pyplot.subplots(
        max(len(ratios), 1), len(names) + 1, squeeze=False, layout="constrained",
        figsize=(2.35 * (len(names) + 1), 2.85 * max(len(ratios), 1) + 0.6),
    )  # fmt: skip
    for axes in grid.flat:
        axes.axis("off")
    question = f"{first['question']}    reference: {first['target']}"
    figure.suptitle(question, fontsize=12, fontweight="bold")
    if _DENSE in example:
        _panel(grid[0, 0], pixels, example[_DENSE], _DENSE)
    for record in pruned:
        axes = grid[ratios.index(record["keep_ratio"]), 1 + names.index(labels[record["method"]])]
        _panel(axes, pixels, record, f"{labels[record['method']]}, {record['keep_ratio']:g}")
    return figure


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


def _panel(axes: Axes, pixels: np.ndarray, record: Record, title: str) -> None:
    _, rows, columns = record["grids"][0]
    bright = np.full(rows * columns, _DARKENED)
    bright[record["kept"]] = 1.0
    height, width = pixels.shape[:2]
    row_of = np.minimum(np.arange(height) * rows // height, rows - 1)
    column_of = np.minimum(np.arange(width) * columns // width, columns - 1)
    shade = bright.reshape(rows, columns)[row_of][:, column_of]
    axes.imshow((pixels * shade[..., None]).astype(np.uint8))
    axes.set_title(f"{title}: {record['kept_tokens']} of {record['visual_tokens']}", fontsize=9)
    colour = "#0a7d4f" if record["score"] >= 1 else "#b3261e"
    text = _printable(record["prediction"])
    axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top",
              fontsize=9, color=colour)  # fmt: skip
    if TASKS[record["task"]].group == "grounding":
        target = [float(word) for word in record["target"].split()[:4]]
        _box(axes, target, "white", "--")
        _box(axes, record["parsed"], "#39ff9f" if record["score"] >= 1 else "#ff5a4f", "-")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # boxes may stick out


def _printable(text: str) -> str:
    """Shorten an answer to what fits below a panel and the font can show."""
    text = "".join(letter if 32 <= ord(letter) < 127 else "·" for letter in text.strip())
    text = text.replace("$", r"\$")  # no mathematics
    return "(nothing)" if not text else text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _box(axes: Axes, box: Sequence[float], colour: str, style: str) -> None:
    x1, y1, x2, y2 = box
    if x2 > x1 and y2 > y1:
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, ls=style, lw=1.6
            )
        )


def _ivc_map(meta: dict[str, Any], records: list[Record]) -> Figure | None:
    """Draw V and U over positions, and both with the chosen cells on the grid of an image."""
    grids = next((record["grids"] for record in records if record["grids"]), None)
    if grids is None or meta["image_start"] is None:
        return None
    _, rows, columns = grids[0]
    start, rope = meta["image_start"], meta["rope"]
    # [3, n] position ids of the cells: time stays, rows and columns count up
    cells = np.indices((1, rows, columns)).reshape(3, -1) + start
    length = int(cells.max()) + 1
    shown = max(length + 16, 64)
    V, U = ivc.scores(rope["head_dim"], rope["theta"], shown)
    maps = [table[cells].mean(axis=0).reshape(rows, columns) for table in (V, U)]
    chosen = [
        ivc.select(cells, rope["head_dim"], rope["theta"], *fractions)
        for fractions in ((_FRACTION, 0.0), (0.0, _FRACTION))
    ]
    figure, (curves, real, imaginary, both) = pyplot.subplots(
        1, 4, figsize=(15, 4.1), layout="constrained", width_ratios=(1.5, 1, 1, 0.9)
    )
    _curves(curves, V, U, start, length, cells, chosen)
    for axes, values, picks, name, colour in zip(
        (real, imaginary), maps, chosen, "VU", (_REAL, _IMAGINARY), strict=True
    ):
        shown_map = axes.imshow(values, cmap="viridis")
        _outline(axes, picks, columns, colour)
        axes.set(title=f"mean {name} of a cell; top {_FRACTION:.0%} outlined",
                 xlabel="column (tokens)", ylabel="row (tokens)")  # fmt: skip
        figure.colorbar(shown_map, ax=axes, shrink=0.8, label=f"{name} (sum over planes)")
    canvas = np.ones((rows * columns, 3))
    for picks, colour in zip(chosen, (_REAL, _IMAGINARY), strict=True):
        canvas[picks] = matplotlib.colors.to_rgb(colour)
    canvas[np.intersect1d(*chosen)] = (0.45, 0.2, 0.5)
    both.imshow(canvas.reshape(rows, columns, 3))
    union = len(np.union1d(*chosen))
    both.set(title=f"IVC tokens: {union} of {rows * columns}\norange by V, blue by U, purple both",
             xlabel="column (tokens)")  # fmt: skip
    both.set_xticks(np.arange(-0.5, columns), minor=True)
    both.set_yticks(np.arange(-0.5, rows), minor=True)
    both.grid(which="minor", color="#cccccc", lw=0.5)
    both.tick_params(which="minor", length=0)
    return figure


def _curves(axes, V, U, start, length, cells, chosen) -> None:
    axes.plot(V, color=_REAL, label="V: sum of cosines")
    axes.plot(U, color=_IMAGINARY, label="U: sum of sines")
    axes.axvspan(start, length - 1, color="black", alpha=0.07, label="positions of the image")
    for table, picks, colour in zip((V, U), chosen, (_REAL, _IMAGINARY), strict=True):
        used = np.unique(cells[1:, picks])
        axes.plot(used, table[used], "o", color=colour, markersize=5)
    axes.set(title="IVC scores; dots: rows and columns of chosen cells",
             xlabel="position id", ylabel="score (sum over planes)")  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _outline(axes: Axes, picks: np.ndarray, columns: int, colour: str) -> None:
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
