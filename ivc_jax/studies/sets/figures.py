"""Figures of `run.py sets`: scores over positions, maps, moving prefixes, other grids."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ivc_jax import ivc
from ivc_jax.reports import canvas
from ivc_jax.reports.colours import BOTH, FIELD, FRAME, IMAGINARY, REAL, SOFT
from ivc_jax.reports.ivc_map import paint
from ivc_jax.studies.sets import bands, measures
from ivc_jax.studies.sets.measures import Preset

NAMES = ("curves", "maps", "frequency_bands", "prefix", "grids", "selection")
_STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FRAME,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}


def draw(
    folder: pathlib.Path,
    presets: Sequence[Preset],
    tables: dict[str, Any],
    names: Sequence[str] | None = None,
) -> None:
    """Write the named figures into folder/figures as PNG.

    Args:
        tables: as `measures.measure` gives them for these presets.
        names: some of NAMES; default all.

    Raises:
        OSError: a file cannot be written.
    """
    made = {
        "curves": lambda: _draw_curves(presets, tables),
        "maps": lambda: _draw_maps(presets, tables),
        "frequency_bands": lambda: bands.draw_turns(presets),
        "prefix": lambda: _draw_prefix(presets, tables),
        "grids": lambda: _draw_grids(presets[0], tables["grids"]),
        "selection": lambda: bands.draw_selection(presets, tables["selection"]),
    }
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(_STYLE):
        for name in names or NAMES:
            (folder / "figures" / f"{name}.png").write_bytes(canvas.render(made[name]()))


def _draw_curves(presets: Sequence[Preset], tables: dict[str, Any]) -> Figure:
    """Draw V and U over positions: M-RoPE presets above, 1-D presets below."""
    kinds = [
        [preset for preset in presets if (preset.sections is None) == flat]
        for flat in (False, True)
    ]
    lines = [line for line in kinds if line]
    # as many columns as every line can share out evenly
    columns = int(np.lcm.reduce([len(line) for line in lines]))
    figure = pyplot.figure(figsize=(12, 3.1 * len(lines) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(lines), columns)
    for place, line in enumerate(lines):
        width = columns // len(line)
        for number, preset in enumerate(line):
            axes = figure.add_subplot(grid[place, number * width : (number + 1) * width])
            _draw_curve(axes, preset, tables["presets"][preset.name])
            axes.tick_params(labelleft=number == 0)
            axes.set_ylabel("" if number else "mean over planes")
    note = "Grey: positions of the image. Dots: position ids of chosen cells, area by their number."
    figure.supxlabel(note, fontsize=9.5, color=SOFT)
    return figure


def _draw_curve(axes: Axes, preset: Preset, table: dict[str, Any]) -> None:
    """Draw one preset; ids of M-RoPE cells are those of their rows and columns."""
    span = preset.last - preset.prefix + 1
    end = preset.last + max(6, span // 4)  # the curves go on a little behind the image
    # float64 [end + 1], mean over planes
    waves = [wave / preset.planes for wave in ivc.scores(preset.head_dim, preset.theta, end + 1)]
    axes.axvspan(preset.prefix - 0.5, preset.last + 0.5, color=FIELD, zorder=0)
    axes.axhline(0, color=FRAME, lw=0.7, zorder=1)
    ids = preset.positions().reshape(-1, preset.cells)[-2:]  # [1, n], or [2, n]: rows and columns
    flat = preset.sections is None  # one curve value a cell: thin lines and many dots
    named = (("V", "cos", REAL, waves[0]), ("U", "sin", IMAGINARY, waves[1]))
    for letter, part, colour, wave in named:
        axes.plot(wave, color=colour, lw=1.1 if flat else 1.8, zorder=2)
        # [ids], and how many chosen cells have each
        used, count = np.unique(ids[:, table[part]], return_counts=True)
        area = 18 + 110 * (count - 1) / max(0.1 * preset.cells, 1)  # square points
        axes.scatter(used, wave[used], s=area, color=colour, edgecolor="white", lw=0.7, zorder=3)
        axes.annotate(letter, (end, wave[end]), (5, 0), textcoords="offset points", color=colour,
                      fontweight="bold", va="center", annotation_clip=False)  # fmt: skip
    axes.set(xlim=(0, end), ylim=(-0.09, 1.03), xlabel="position id")
    _, rows, columns = preset.grid
    if flat:
        axes.text((preset.prefix + preset.last) / 2, 0.96, f"{preset.cells} tokens", color=SOFT,
                  fontsize=9, ha="center", va="center")  # fmt: skip
    else:
        _name_waves(axes, preset, waves)
        for height, length, text in ((0.46, rows, "rows"), (0.37, columns, "columns")):
            ends = (preset.prefix, preset.prefix + length - 1)
            axes.plot(ends, (height, height), color=SOFT, lw=1, marker="|", ms=6, zorder=1)
            axes.annotate(f"{length} {text}", (ends[1], height), (6, 0), color=SOFT, fontsize=9,
                          textcoords="offset points", va="center")  # fmt: skip
    kind = "1-D" if flat else "M-RoPE"
    axes.set_title(preset.title, loc="left", fontweight="bold")
    axes.set_title(f"{kind}, {rows} x {columns}, from {preset.prefix}", loc="right", fontsize=9.5,
                   color=SOFT)  # fmt: skip


def _name_waves(axes: Axes, preset: Preset, waves: Sequence[np.ndarray]) -> None:
    """Write V and U out between the two curves, which M-RoPE leaves far apart."""
    middle = (preset.prefix + preset.last) / 2
    inside = slice(preset.prefix, preset.last + 1)
    low, high = waves[0][inside].min() - 0.04, waves[1][inside].max() + 0.04
    axes.text(middle, low, "V: mean of cos mθ", color=REAL, ha="center", va="top")
    axes.text(middle, high, "U: mean of sin mθ", color=IMAGINARY, ha="center", va="bottom")


def _draw_maps(presets: Sequence[Preset], tables: dict[str, Any]) -> Figure:
    """Draw the chosen cells of each preset, and below V and U of its cells."""
    shapes = [preset.grid[2] / preset.grid[1] for preset in presets]  # width / height
    height = min(11.5 / sum(shapes), 3.0)  # inches of a map: all fit beside each other on a page
    figure, grid = pyplot.subplots(
        3, len(presets), squeeze=False, layout="constrained",
        figsize=(height * sum(shapes) + 0.5, 3 * height + 1.1), width_ratios=shapes,
    )  # fmt: skip
    for column, preset in zip(grid.T, presets, strict=True):
        table = tables["presets"][preset.name]
        _, rows, columns = preset.grid
        paint(column[0], table["cos"], table["sin"], rows, columns)
        column[0].set_title(preset.title, fontweight="bold", fontsize=11)
        column[0].set_xlabel(f"{len(table['union'])} of {preset.cells} cells", color=SOFT)
        waves = ivc.scores(preset.head_dim, preset.theta, preset.last + 1)  # V and U, [last + 1]
        ids = preset.positions().reshape(-1, preset.cells)  # [3, n] or [1, n]
        for axes, wave, part, colours in zip(
            column[1:], waves, ("cos", "sin"), ("Oranges", "Blues"), strict=True
        ):
            cells = (wave / preset.planes)[ids].mean(axis=0)  # [n]
            axes.imshow(cells.reshape(rows, columns), cmap=colours)
            row, place = np.divmod(table[part], columns)  # of the chosen cells
            axes.plot(place, row, "o", color="black", ms=2.3, mec="white", mew=0.4)
            # + 0.0: no "-0.00"
            low, high = (round(float(bound), 2) + 0.0 for bound in (cells.min(), cells.max()))
            axes.set_xlabel(f"{low:.2f} to {high:.2f}", color=SOFT)
        for axes in column:
            _draw_frame(axes)
    for axes, text, colour in zip(
        grid[:, 0], ("IVC set", "V", "U"), ("black", REAL, IMAGINARY), strict=True
    ):
        axes.set_ylabel(text, color=colour, fontweight="bold", fontsize=12)
    return figure


def _draw_frame(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=FRAME)


def _draw_prefix(presets: Sequence[Preset], tables: dict[str, Any]) -> Figure:
    """Draw overlaps as the prefix grows, above maps of the first preset at six prefixes."""
    strip = tables["prefix"][presets[0].name]["strip"]
    _, rows, columns = presets[0].grid
    height = 11.8 / len(strip) * rows / columns + 0.55
    figure = pyplot.figure(figsize=(12, 5.2 + height), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(5.2, height))
    grid = upper.subplots(3, len(presets), squeeze=False, sharey=True, sharex=True)
    parts = {"union": ("set", "black"), "cos": ("V", REAL), "sin": ("U", IMAGINARY)}
    for column, preset in zip(grid.T, presets, strict=True):
        table = tables["prefix"][preset.name]
        for axes, (part, (_, colour)) in zip(column, parts.items(), strict=True):
            axes.plot(table["prefixes"], table[part], color=colour, lw=0.9)
            axes.axhline(table[f"{part}_chance"], color="black", lw=0.9, ls=":")
            axes.set(xlim=(0, measures.LAST_PREFIX), ylim=(0, 1.05), xticks=(0, 200, 400))
        column[0].set_title(preset.title, loc="left", fontweight="bold")
        column[2].set_xlabel("tokens before the image")
    for axes, (text, colour) in zip(grid[:, 0], parts.values(), strict=True):
        axes.set_ylabel(f"overlap, {text}", color=colour)
    for axes, shown in zip(lower.subplots(1, len(strip)), strip, strict=True):
        paint(axes, shown["cos"], shown["sin"], rows, columns)
        axes.set_title(f"from {shown['prefix']}", fontsize=10)
        _draw_frame(axes)
    lower.suptitle(f"{presets[0].title}: the set by the position of its first cell", fontsize=11,
                   fontweight="bold", x=0.005, ha="left")  # fmt: skip
    return figure


def _draw_grids(preset: Preset, table: dict[str, Any]) -> Figure:
    """Draw the set on grids of other aspects and sizes, and where its cells lie."""
    sizes = [entry for entry in table["sizes"] if entry["rows"] in measures.MAPPED_SIZES]
    figure = pyplot.figure(figsize=_GRIDS_SIZE)
    figure.text(0.008, 0.985, f"{preset.title}, from {preset.prefix}", fontweight="bold",
                fontsize=11.5, va="top")  # fmt: skip
    for entry, (left, top) in zip(table["aspects"], _ASPECT_PLACES, strict=True):
        _draw_grid(figure, entry, left, top, _CELL)
    for number, entry in enumerate(sizes):
        # equal widths: larger grids, smaller cells
        _draw_grid(figure, entry, 0.1 + 1.55 * number, 4.35, 1.45 / entry["rows"])
    width, height = _GRIDS_SIZE
    above, middle, below = figure.subplots(
        3, 1, sharex=True,
        gridspec_kw={"left": 8.4 / width, "right": 11.4 / width, "top": 1 - 0.4 / height,
                     "bottom": 0.55 / height, "hspace": 0.33},
    )  # fmt: skip
    _draw_lines(above, table, {f"{part}_{{}}s_touched": part for part in _COLOURS})
    _draw_lines(middle, table, {f"{part}_mean_{{}}": part for part in ("cos", "sin")})
    _draw_lines(below, table, {"overlap": "union"})
    above.set_title("share of rows and columns touched", loc="left")
    middle.set_title("mean row and column", loc="left")
    below.set_title("overlap of V and U", loc="left")
    below.set_xlabel("rows = columns")
    return figure


# Inches: the figure, a cell of the aspects, and where each of these begins (left, top). The grid
# of 14 x 28 lies below that of 10 x 40; cells are equal, so that shapes compare.
_GRIDS_SIZE = (12, 5.95)
_CELL = 0.08
_ASPECT_PLACES = ((0.1, 0.65), (0.1, 1.8), (3.5, 0.65), (5.3, 0.65), (6.62, 0.65))


def _draw_grid(figure: Figure, entry: dict[str, Any], left: float, top: float, cell: float) -> None:
    """Draw a grid with its upper left corner at a place of the figure, in inches."""
    width, height = _GRIDS_SIZE
    rows, columns = entry["rows"], entry["columns"]
    # matplotlib counts from below, in shares of the figure
    box = (left / width, 1 - (top + rows * cell) / height)
    axes = figure.add_axes((*box, columns * cell / width, rows * cell / height))
    paint(axes, entry["cos"], entry["sin"], rows, columns)
    axes.set_title(f"{rows} x {columns}", fontsize=9.5, color=SOFT)
    _draw_frame(axes)


_COLOURS = {"union": ("either", BOTH), "cos": ("V", REAL), "sin": ("U", IMAGINARY)}


def _draw_lines(axes: Axes, table: dict[str, Any], keys: dict[str, str]) -> None:
    """Draw numbers of the square grids: solid for rows, dashed for columns."""
    sizes = [entry["rows"] for entry in table["sizes"]]
    for key, part in keys.items():
        text, colour = _COLOURS[part]
        for axis, style in (("row", "-"), ("column", (0, (3, 2)))):
            values = [entry[key.format(axis)] for entry in table["sizes"]]
            axes.plot(sizes, values, color=colour, ls=style, lw=1.4)
        if len(keys) > 1:
            shift = {"U": 4, "V": -4}.get(text, 0)  # the two may end side by side
            axes.annotate(text, (sizes[-1], values[-1]), (5, shift), textcoords="offset points",
                          color=colour, va="center", fontweight="bold")  # fmt: skip
    axes.set_ylim(0, 1)
