"""What a chosen setting rests on: choice.json, the table, report.md and the figure."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ivc_jax.evals.running.records import write_atomically
from ivc_jax.reports import canvas, pages
from ivc_jax.reports.colours import CHOSEN, PALETTE
from ivc_jax.reports.rendering import make_environment
from ivc_jax.studies.calibration.pareto import DENSE, Calibration, Row, compare_layers, find_front

_FIGURE = "figures/pareto.png"
_MARKERS = "os^DvPX"  # one a fraction, from the smallest
_NAMED_LAYERS = 10  # more leave room for their numbers only
_CAPTION = (
    "A point is a setting: the number above is its layer, the marker its fraction by V and by U."
    " Bars are 95 % intervals of the paired difference to dense. x: decoder operations of a"
    " prefill, by formula. The line is the Pareto front: the most that any measured setting retains"
    " at a cost or less."
)


def collect(meta: dict[str, Any], calibration: Calibration, chosen: Row) -> dict[str, Any]:
    """Arrange what choice.json holds: meta, choice, and rows with dense first."""
    rivals, differ = compare_layers(calibration, meta["probe_fraction"], chosen.layer)
    front = find_front([(row.cost, row.retention) for row in calibration.rows])
    # dense has no "front", no "chosen" and no difference: readers use `get`
    rows = [dataclasses.asdict(calibration.dense)]
    for number, row in enumerate(calibration.rows):
        difference, low, high = calibration.difference(row.spec, chosen.spec)
        rows.append(
            dataclasses.asdict(row)
            | {
                "front": number in front,
                "chosen": row is chosen,
                "difference": difference,
                "difference_low": low,
                "difference_high": high,
            }
        )
    count = len({row.layer for row in calibration.rows})
    choice = dataclasses.asdict(chosen) | {
        "argument": f'--methods "{chosen.spec}"',
        "rivals": rivals,
        "layers_differ": differ,
        "verdict": write_verdict(chosen.layer, rivals, differ, count, meta["probe_fraction"]),
    }
    return {"meta": meta, "choice": choice, "rows": rows}


def write_verdict(
    layer: int, rivals: Sequence[int], layers_differ: bool, count: int, fraction: float
) -> str:
    """Say in a sentence whether the examples tell the chosen layer from the others.

    Args:
        rivals: layers whose paired difference to the chosen one has an interval that holds zero.
        layers_differ: whether any two of the `count` layers differ by more than that.
        fraction: at which the layers were compared.
    """
    if count < 2:
        return f"Layer {layer} alone was measured: there was no layer to choose."
    if not layers_differ:
        return (
            f"The choice of the layer is not significant: at fraction {fraction:g} the interval of "
            "every paired difference between two layers holds zero."
        )
    if rivals:
        return (
            f"These examples do not tell layer {layer} from layer{'s' * (len(rivals) > 1)} "
            f"{', '.join(map(str, rivals))}: at fraction {fraction:g} the interval of the paired "
            "difference holds zero."
        )
    return (
        f"These examples tell layer {layer} from every other layer: at fraction {fraction:g} no "
        "interval of a paired difference holds zero."
    )


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Print the table, the verdict, and the choice as an option for run.py."""
    table = Table(title="Score and retention in percent, 95 % paired interval of the difference")
    for name in ("layer", "fraction", "score", "retention", "to dense", "GFLOP", "of dense"):
        table.add_column(name, justify="right")
    for name in ("cached", "front", "choice"):
        table.add_column(name)
    for row in result["rows"]:
        dense = row["layer"] is None
        table.add_row(
            DENSE if dense else str(row["layer"]),
            "" if dense else f"{row['fraction']:g}",
            f"{100 * row['score']:.1f}",
            f"{100 * row['retention']:.1f}",
            "" if dense else f"{100 * row['change_low']:+.1f} to {100 * row['change_high']:+.1f}",
            f"{row['gflop']:.4g}",
            f"{100 * row['cost']:.1f} %",
            f"{row['cached_share']:.3f}",
            "yes" if row.get("front") else "",
            "chosen" if row.get("chosen") else "",
        )
    console.print(table)
    console.print(result["choice"]["verdict"], markup=False)
    # one line, however long: it is there to be copied
    console.print(result["choice"]["argument"], markup=False, highlight=False, soft_wrap=True)


def write(
    folder: pathlib.Path, result: Mapping[str, Any], calibration: Calibration, chosen: Row
) -> None:
    """Write choice.json, the figure, report.md and report.html."""
    write_atomically(folder / "choice.json", json.dumps(result, indent=1) + "\n")
    save_figure(folder, calibration.dense, calibration.rows, chosen)
    templates = make_environment(__file__)
    dense, *rows = result["rows"]
    text = templates.get_template("choice.md.jinja").render(
        meta=result["meta"],
        choice=result["choice"],
        dense=dense,
        rows=rows,
        figure=_FIGURE,
        caption=_CAPTION,
    )
    pages.write(folder, text)


def save_figure(folder: pathlib.Path, dense: Row, rows: Sequence[Row], chosen: Row) -> None:
    """Write the figure of a choice into its result folder.

    Raises:
        OSError: the file cannot be written.
    """
    (folder / _FIGURE).parent.mkdir(exist_ok=True)
    (folder / _FIGURE).write_bytes(canvas.render(draw(dense, rows, chosen)))


def draw(dense: Row, rows: Sequence[Row], chosen: Row) -> Figure:
    """Draw retention against relative cost, the front and the chosen setting."""
    figure, axes = pyplot.subplots(figsize=(8.0, 4.8), layout="constrained")
    for number, fraction in enumerate(sorted({row.fraction for row in rows})):
        here = [row for row in rows if row.fraction == fraction]
        colour = PALETTE[1 + number % (len(PALETTE) - 1)]  # black is dense
        costs = [100 * row.cost for row in here]  # percent of dense
        low = [100 + 100 * row.change_low for row in here]  # the interval is of retention - 1
        high = [100 + 100 * row.change_high for row in here]
        axes.vlines(costs, low, high, color=colour, alpha=0.35, lw=1)
        axes.plot(
            costs,
            [100 * row.retention for row in here],
            _MARKERS[number % len(_MARKERS)],
            color=colour,
            # where points coincide, the larger ones show around the smaller
            markersize=max(9 - 1.5 * number, 3),
            label=f"fraction {fraction:g}",
        )
    front = [rows[i] for i in find_front([(row.cost, row.retention) for row in rows])]
    steps = [(100 * row.cost, 100 * row.retention) for row in front]
    steps.append((100 * dense.cost, steps[-1][1]))  # it holds for whatever costs more
    # "post": what is reached at a cost holds until the next point
    axes.step(*zip(*steps, strict=True), where="post", color="0.45", lw=1.3, zorder=1)
    ring = {"markerfacecolor": "none", "markeredgecolor": CHOSEN, "markeredgewidth": 1.8}
    place = 100 * chosen.cost, 100 * chosen.retention
    label = f"chosen: layer {chosen.layer}, fraction {chosen.fraction:g}"
    axes.plot(*place, "o", markersize=15, label=label, **ring)
    canvas.draw_dense(axes, 100 * dense.retention)
    axes.plot(100 * dense.cost, 100 * dense.retention, "kD", markersize=6)
    _name_layers(axes, rows)
    axes.set(xlabel="decoder operations of a prefill, relative to dense (%)")
    axes.set(ylabel="score retained (%)")
    axes.margins(x=0.08, y=0.12)
    axes.grid(alpha=0.25)
    canvas.add_legend(figure, *canvas.collect_handles([axes]))
    return figure


def _name_layers(axes: Axes, rows: Sequence[Row]) -> None:
    """Write each layer above its column of points."""
    layers = sorted({row.layer for row in rows})
    word = "layer " if len(layers) <= _NAMED_LAYERS else ""
    for layer in layers:
        here = [row for row in rows if row.layer == layer]
        cost = sum(row.cost for row in here) / len(here)
        top = max(max(row.change_high, row.retention - 1) for row in here)
        place = 100 * cost, 100 + 100 * top
        # 12 points above the highest interval of the layer
        axes.annotate(
            f"{word}{layer}", place, (0, 12), textcoords="offset points", ha="center", fontsize=8
        )
