"""Figures of the rotary planes: how far each turns within an image, and which make the set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ivc_jax.reports.colours import AXES as AXIS_COLOURS
from ivc_jax.reports.colours import FRAME, IMAGINARY, REAL, SOFT
from ivc_jax.studies.sets import measures
from ivc_jax.studies.sets.measures import AXES, Preset

_PARTS = {"union": "set", "cos": "V", "sin": "U"}  # lines of the tables of overlaps, from above
_TURNS = (1e-5, 2e3)  # radians


def draw_turns(presets: Sequence[Preset]) -> Figure:
    """Draw cosine and sine of every plane over the positions, and each plane's largest turn."""
    figure, grid = pyplot.subplots(
        3, len(presets), squeeze=False, sharex="col", layout="constrained",
        figsize=(2.3 * len(presets) + 0.7, 8.2), height_ratios=(1, 1, 1.15),
    )  # fmt: skip
    for column, preset in zip(grid.T, presets, strict=True):
        # [positions, F]: position times the frequency of the plane
        angle = np.outer(np.arange(preset.prefix, preset.last + 1), preset.rope.frequencies)
        for axes, wave in zip(column, (np.cos(angle), np.sin(angle)), strict=False):
            # cells are centred on their numbers
            extent = (-0.5, preset.planes - 0.5, preset.last + 0.5, preset.prefix - 0.5)
            shown = axes.imshow(wave, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto", extent=extent)
            _draw_sections(axes, preset, "black")
        _draw_largest_turns(column[2], preset)
        column[0].set_title(preset.title, loc="left", fontweight="bold", pad=18)
        _name_sections(column[0], preset)
        column[2].set_xlabel("plane (0 turns fastest)")
    for axes, text in zip(
        grid[:, 0],
        ("cos mθ\nposition m", "sin mθ\nposition m", "largest turn across\nthe grid (rad)"),
        strict=True,
    ):
        axes.set_ylabel(text)
    for axes in grid[2, 1:]:
        axes.tick_params(labelleft=False)
    panels = grid[:2].ravel().tolist()
    figure.colorbar(shown, ax=panels, shrink=0.6, aspect=35, fraction=0.02, pad=0.01,
                    ticks=(-1, 0, 1))  # fmt: skip
    return figure


def _draw_sections(axes: Axes, preset: Preset, colour: str) -> None:
    # between the last plane of a section and the next
    side_by_side = () if preset.interleaved else preset.sections or ()
    for border in np.cumsum(side_by_side)[:-1]:
        axes.axvline(border - 0.5, color=colour, lw=1)


def _name_sections(axes: Axes, preset: Preset) -> None:
    """Write above a panel which planes turn with which axis."""
    if preset.sections is None:
        named = [(preset.planes / 2, "all planes, one axis")]
    elif preset.interleaved:
        named = [(preset.planes / 2, "time, height, width in turns")]
    else:
        ends = np.cumsum(preset.sections)  # sections lie side by side: time, height, width
        middle = ends - np.asarray(preset.sections) / 2
        named = list(zip(middle, ("time", "height", "width"), strict=True))
    for place, text in named:
        axes.annotate(text, (place - 0.5, 1), (0, 4), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha="center", fontsize=9, color=SOFT)  # fmt: skip


def _draw_largest_turns(axes: Axes, preset: Preset) -> None:
    """Draw each plane's turn across the grid: thin for all planes, thick for those of the axis."""
    _draw_sections(axes, preset, FRAME)
    # past a quarter turn the cosine of a plane has changed its sign
    for turn, text, side in ((1.0, "1", "top"), (np.pi / 2, "π/2", "bottom")):
        axes.axhline(turn, color=SOFT, lw=0.8, ls=":")
        axes.annotate(text, (preset.planes - 1, turn), color=SOFT, fontsize=8.5, ha="right",
                      va=side)  # fmt: skip
    steps = measures.count_axis_steps(preset)
    for axis in AXES:
        # [F] radians, and the planes that attention turns with the axis
        turned, own = steps[axis] * preset.rope.frequencies, measures.list_own_planes(preset, axis)
        axes.plot(turned, color=AXIS_COLOURS[axis], lw=0.9)
        axes.plot(own, turned[own], color=AXIS_COLOURS[axis], lw=3.2, solid_capstyle="round")
        text = f"{axis}: {steps[axis]} steps"
        axes.text(0.04, 0.05 + 0.09 * (axis == "height"), text, transform=axes.transAxes,
                  color=AXIS_COLOURS[axis], fontsize=9,
                  bbox={"color": "white", "pad": 1})  # fmt: skip
    axes.set(yscale="log", ylim=_TURNS, xlim=(-0.5, preset.planes - 0.5))


def draw_selection(presets: Sequence[Preset], tables: dict[str, Any]) -> Figure:
    """Draw the overlap of sets scored by some planes with the set of all planes."""
    figure, grid = pyplot.subplots(
        len(presets), 2, squeeze=False, layout="constrained",
        figsize=(12, 1.62 * len(presets) + 0.9), width_ratios=(1.55, 1),
    )  # fmt: skip
    # Only M-RoPE has sections: the longest list names all columns.
    names = list(max((tables[preset.name]["bands"] for preset in presets), key=len))
    for (left, right), preset in zip(grid, presets, strict=True):
        _draw_bands(left, tables[preset.name]["bands"], names)
        left.set_title(preset.title, loc="left", fontweight="bold")
        single = tables[preset.name]["planes"]  # overlaps by plane, [F] for each part
        for part, colour in (("cos", REAL), ("sin", IMAGINARY)):
            right.step(np.arange(preset.planes), single[part], color=colour, where="mid", lw=1.4)
        for share in set(preset.fractions):
            right.axhline(measures.compare_by_chance(share), color=SOFT, lw=0.8, ls=":")
        right.set(ylim=(0, 1), xlim=(-0.5, preset.planes - 0.5), yticks=(0, 0.5, 1))
        _draw_sections(right, preset, FRAME)
    grid[0, 0].set_title(
        "overlap with the set of all planes", loc="right", fontsize=9.5, color=SOFT
    )
    grid[0, 1].set_title("one plane at a time", loc="right", fontsize=9.5, color=SOFT)
    for place, text, colour in ((0.94, "V", REAL), (0.98, "U", IMAGINARY)):
        grid[0, 1].text(place, 0.93, text, color=colour, transform=grid[0, 1].transAxes,
                        ha="right", va="top", fontweight="bold")  # fmt: skip
    grid[-1, 1].set_xlabel("plane (0 turns fastest)")
    for axes in grid[:-1, 0]:
        axes.tick_params(labelbottom=False)
    return figure


def _draw_bands(axes: Axes, bands: dict[str, dict[str, float]], names: Sequence[str]) -> None:
    """Draw overlaps as numbers on grey: one column a subset, one line a part of the set."""
    values = np.array(  # [set V U, subsets of planes]
        [[bands.get(name, {}).get(part, np.nan) for name in names] for part in _PARTS]
    )
    # vmax above 1: full overlap is no black
    axes.imshow(values, cmap="Greys", vmin=0, vmax=1.4, aspect="auto")
    for (line, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        axes.text(column, line, text, ha="center", va="center", fontsize=8.5,
                  color="white" if value > 0.85 else "black")  # fmt: skip
    axes.set_yticks(range(len(_PARTS)), _PARTS.values())
    axes.set_xticks(range(len(names)), [name.replace("without ", "without\n") for name in names])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set(visible=False)
