"""What the IVC set looks like on the grids of real models: every number of `run.py sets`.

The set depends on position ids and on the rotary base alone, so no model is loaded. Sets come from
`ivc_jax.ivc`; sizes of public models are those of their released checkpoints.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ivc_jax import ivc
from ivc_jax.config import RopeConfig

LAST_PREFIX = 512  # tokens of text before the image, at most
STRIP = (30, 60, 120, 240, 480)  # prefixes of the maps beside that of the preset
ASPECTS = ((10, 40), (14, 28), (20, 20), (28, 14), (40, 10))  # 392 or 400 cells
SIZES = tuple(range(8, 41))  # sides of square grids
MAPPED_SIZES = (8, 12, 16, 24, 40)  # those of SIZES that are drawn
BANDS = 8  # pieces of the planes, left out one at a time
AXES = ("height", "width")

Frequencies = str | Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Preset:
    """The image of one model: its rotary embedding, its grid and where the grid begins.

    Attributes:
        name: as given on the command line.
        title: as shown.
        sections: planes that turn with time, height and width; None is 1-D rotary, where cells
            are numbered row by row.
        grid: (frames, rows, columns) of visual tokens.
        prefix: position id of the first visual token.
        fractions: shares of the tokens taken by V and by U.
        interleaved: the sections take turns instead of lying side by side.
    """

    name: str
    title: str
    head_dim: int
    theta: float
    sections: tuple[int, int, int] | None
    grid: tuple[int, int, int]
    prefix: int
    fractions: tuple[float, float] = (0.1, 0.1)
    interleaved: bool = False

    @property
    def rope(self) -> RopeConfig:
        """The rotary embedding."""
        return RopeConfig(self.head_dim, self.theta, self.sections, interleaved=self.interleaved)

    @property
    def planes(self) -> int:
        """Rotary planes F of a head."""
        return self.head_dim // 2

    @property
    def cells(self) -> int:
        """Visual tokens of the grid."""
        return int(np.prod(self.grid))

    @property
    def last(self) -> int:
        """The largest position id of the image."""
        return int(self.positions().max())

    def positions(self) -> np.ndarray:
        """Return the ids of the cells, int [n] (1-D) or [3, n] (time, height, width)."""
        if self.sections is None:
            return np.arange(self.cells) + self.prefix  # a line: row after row
        # the axes start together: (0, row, column) + prefix
        return np.indices(self.grid).reshape(3, -1) + self.prefix


# Qwen2.5-VL: the grid and the start of the published figure. LLaVA: the index behind the released
# wrapper's system sentence. InternVL (first tile) and DeepSeek (global view of 14 rows, each closed
# by a newline token): the start depends on the template; 50 (a system sentence) and 4 (a mark, a
# role and a colon) are assumptions, and prefix.png shows what they change. Qwen3-VL: a picture of
# 640 x 480 behind a role, without a system sentence.
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("qwen2.5-vl-7b", "Qwen2.5-VL-7B", 128, 1e6, (16, 24, 24), (1, 15, 23), 15),
        Preset("llava-1.5-7b", "LLaVA-1.5-7B", 128, 1e4, None, (1, 24, 24), 35, (0.05, 0.05)),
        Preset("internvl2.5-8b", "InternVL2.5-8B", 128, 1e6, None, (1, 16, 16), 50),
        Preset("deepseek-vl2", "DeepSeek-VL2", 64, 1e4, None, (1, 14, 15), 4),
        Preset("bundled", "bundled model", 48, 10.0, (6, 9, 9), (1, 16, 16), 1),
        Preset(
            *("qwen3-vl-8b", "Qwen3-VL-8B", 128, 5e6, (24, 20, 20), (1, 15, 20), 4),
            interleaved=True,
        ),
    )
}


def find(names: Sequence[str]) -> list[Preset]:
    """Return the named presets.

    Raises:
        ValueError: none given, or an unknown name.
    """
    unknown = [name for name in names if name not in PRESETS]
    if unknown or not names:
        what = f"unknown preset {unknown[0]!r}" if unknown else "presets is empty"
        raise ValueError(f"{what}; known: {', '.join(PRESETS)}")
    return [PRESETS[name] for name in dict.fromkeys(names)]


def pick(preset: Preset, frequencies: Frequencies = "all") -> dict[str, np.ndarray]:
    """Choose the cells by V ("cos"), by U ("sin") and by either ("union"), bool [n] each."""
    marks = {}
    by_cos, by_sin = preset.fractions
    for name, fractions in {"cos": (by_cos, 0.0), "sin": (0.0, by_sin)}.items():
        # [k] indices; the other fraction is 0, so that it is V alone or U alone
        index = ivc.select(
            preset.positions(), preset.head_dim, preset.theta, *fractions,
            frequencies=frequencies, sections=preset.sections, interleaved=preset.interleaved,
        )  # fmt: skip
        marks[name] = np.isin(np.arange(preset.cells), index)  # [n]
    return marks | {"union": marks["cos"] | marks["sin"]}


def pick_at(preset: Preset, prefixes: Sequence[int]) -> dict[str, np.ndarray]:
    """Choose as `pick` does with the image at each of P prefixes, bool [P, n] each."""
    start = np.asarray(prefixes, np.int32)[:, None]  # [P, 1]: prefixes are a batch
    shape = (len(start), preset.cells)
    slots = preset.positions() - preset.prefix  # [n] or [3, n]
    # [3, P, n]; with 1-D rotary all three axes are the same
    ids = np.broadcast_to(slots, (3, preset.cells))[:, None].astype(np.int32) + start
    tables = ivc.make_tables(preset.rope, "all", int(ids.max()) + 1)  # [A, positions] twice
    # [P, n]: one image a sample, no padding
    segment, valid = np.zeros(shape, np.int32), np.ones(shape, bool)
    none = np.zeros(shape, np.int32)
    taken = [np.full(shape, round(share * preset.cells), np.int32) for share in preset.fractions]
    # by V alone, then by U alone: the counts of the other are zero
    choose = jax.jit(ivc.tokens)
    cosine = np.asarray(choose(tables, ids, segment, valid, taken[0], none))  # [P, n] bool
    sine = np.asarray(choose(tables, ids, segment, valid, none, taken[1]))
    return {"cos": cosine, "sin": sine, "union": cosine | sine}


def compare(first: np.ndarray, second: np.ndarray) -> float:
    """Return |A and B| / |A or B| of two sets of cells, bool [n]; 1 if both are empty."""
    either = np.count_nonzero(first | second)
    return 1.0 if not either else round(int(np.count_nonzero(first & second)) / int(either), 4)


def compare_by_chance(share: float) -> float:
    """Return about what two random sets of the same share of the cells overlap."""
    # A and B hold share² of all, A or B 2 share - share².
    return round(float(share / (2 - share)), 4)


def measure(presets: Sequence[Preset]) -> dict[str, Any]:
    """Compute all tables; the strip of prefixes and the grids are those of the first preset."""
    return {
        "presets": {preset.name: summarize(preset) for preset in presets},
        "prefix": {preset.name: tabulate_prefix(preset) for preset in presets},
        "grids": tabulate_grids(presets[0]),
        "selection": {preset.name: tabulate_selection(preset) for preset in presets},
    }


def summarize(preset: Preset) -> dict[str, Any]:
    """Describe a preset: its set, the range of V and U over its positions, the turns."""
    steps = count_axis_steps(preset)
    # radians from one edge of the grid to the other, [F] an axis
    turns = {axis: steps[axis] * preset.rope.frequencies for axis in AXES}
    # Own planes are those that attention turns with the axis; V and U sum over all of them.
    own = {axis: list_own_planes(preset, axis) for axis in AXES}  # [F'] indices of planes
    return dataclasses.asdict(preset) | {
        "cells": preset.cells,
        "planes": preset.planes,
        "last": preset.last,
        **describe_set(preset),
        **_list_waves(preset),
        "largest_turn": {axis: round(float(turns[axis].max()), 4) for axis in AXES},
        "largest_own_turn": {axis: round(float(turns[axis][own[axis]].max()), 4) for axis in AXES},
        "own_planes": {axis: len(own[axis]) for axis in AXES},
        "own_planes_past_1_rad": {
            axis: int(np.count_nonzero(turns[axis][own[axis]] >= 1)) for axis in AXES
        },
    }


def _list_waves(preset: Preset) -> dict[str, Any]:
    """Describe V and U, as shares of their bound F, over the positions and cells of the image.

    The numbers of distinct values are those of float32 and of half precision as the released code
    rounds it; what falls together there is ranked by order alone.
    """
    # [3, 1, n]
    ids = np.broadcast_to(preset.positions(), (3, preset.cells))[:, None].astype(np.int32)
    # V and U, float64 [last + 1]
    exact = ivc.scores(preset.head_dim, preset.theta, preset.last + 1)
    waves = {}
    for place, letter in enumerate("VU"):
        share = exact[place][preset.prefix :] / preset.planes  # [positions of the image]
        low, high = float(share.min()), float(share.max())
        waves[letter] = wave = {"low": round(low, 4), "high": round(high, 4)}
        wave |= {"spread": round(high - low, 4), "positions": len(share)}
        for dtype in ivc.SCORE_DTYPES:
            tables = ivc.make_tables(preset.rope, "all", preset.last + 1, score_dtype=dtype)
            table = jax.numpy.asarray(tables[place])  # [A, last + 1]
            # Every axis has the same table.
            here = ivc.round_scores(table[0, preset.prefix :], dtype)  # [positions]
            cells = ivc.gather_scores(table, jax.numpy.asarray(ids), dtype)  # [1, n]
            wave[f"distinct_{dtype}"] = len(np.unique(here))
            wave[f"distinct_cells_{dtype}"] = len(np.unique(cells))
    return waves


def count_axis_steps(preset: Preset) -> dict[str, int]:
    """Return by how much the position id grows across the grid along each axis."""
    _, rows, columns = preset.grid
    # 1-D: reading order, a row down is as far as all its columns
    stride = columns if preset.sections is None else 1
    return {"height": (rows - 1) * stride, "width": columns - 1}


def list_own_planes(preset: Preset, axis: str) -> np.ndarray:
    """Return the planes that attention turns with an axis: its section, or all if 1-D."""
    if preset.sections is None:
        return np.arange(preset.planes)
    return np.flatnonzero(preset.rope.axis_of_plane == 1 + AXES.index(axis))  # axis 0 is time


def describe_set(preset: Preset) -> dict[str, Any]:
    """Describe the set on the grid: cells, rows and columns touched, centre, overlap."""
    marks = pick(preset)
    _, rows, columns = preset.grid
    shape: dict[str, Any] = {"cos": [], "sin": [], "union": []}
    for name, chosen in marks.items():
        index = np.flatnonzero(chosen)
        row, column = np.divmod(index, columns)  # [chosen] each
        shape[name] = index.tolist()
        shape[f"{name}_rows_touched"] = round(len(np.unique(row)) / rows, 4)
        shape[f"{name}_columns_touched"] = round(len(np.unique(column)) / columns, 4)
        shape[f"{name}_mean_row"] = round(float(row.mean()) / max(rows - 1, 1), 4)
        shape[f"{name}_mean_column"] = round(float(column.mean()) / max(columns - 1, 1), 4)
    shape["both"] = int(np.count_nonzero(marks["cos"] & marks["sin"]))
    shape["overlap"] = compare(marks["cos"], marks["sin"])
    return shape


def tabulate_prefix(preset: Preset) -> dict[str, Any]:
    """Measure the overlap of the set with itself as the text before the image grows."""
    prefixes = list(range(LAST_PREFIX + 1))
    moved, here = pick_at(preset, prefixes), pick(preset)  # bool [P, n] and [n] by part
    table: dict[str, Any] = {"prefixes": prefixes}
    for name, marks in moved.items():
        curve = [compare(marks[place], here[name]) for place in prefixes]
        # at its own prefix the set is itself
        others = [value for place, value in enumerate(curve) if place != preset.prefix]
        table[name] = curve
        table[f"{name}_mean"] = round(float(np.mean(others)), 4)
        table[f"{name}_chance"] = compare_by_chance(np.count_nonzero(here[name]) / preset.cells)
        # How many more text tokens leave less than half of the set where it was.
        later = [place for place in prefixes[preset.prefix :] if curve[place] < 0.5]
        table[f"{name}_half"] = later[0] - preset.prefix if later else None
    strip = sorted({preset.prefix, *STRIP})
    shown = pick_at(preset, strip)  # [len(strip), n]
    table["strip"] = [
        {"prefix": prefix} | {k: np.flatnonzero(v[n]).tolist() for k, v in shown.items()}
        for n, prefix in enumerate(strip)
    ]
    return table


def tabulate_grids(preset: Preset) -> dict[str, Any]:
    """Describe the set of one rotary embedding on grids of other aspects and sizes."""
    shapes = {"aspects": ASPECTS, "sizes": tuple((size, size) for size in SIZES)}
    table: dict[str, Any] = {"preset": preset.name, "mapped_sizes": MAPPED_SIZES}
    for name, grids in shapes.items():
        table[name] = [
            {"rows": rows, "columns": columns}
            | describe_set(dataclasses.replace(preset, grid=(1, rows, columns)))
            for rows, columns in grids
        ]
    return table


def split_planes(preset: Preset) -> Mapping[str, Frequencies]:
    """Name the subsets of planes; plane 0 turns fastest, so "high" is the first third."""
    thirds = np.array_split(np.arange(preset.planes), 3)
    bands: dict[str, Frequencies] = dict(zip(("high", "middle", "low"), thirds, strict=True))
    if preset.sections is not None:
        bands["section"] = "section"
    for number, band in enumerate(np.array_split(np.arange(preset.planes), BANDS), 1):
        # all planes but those of one band
        bands[f"without {number}"] = np.setdiff1d(np.arange(preset.planes), band)
    return bands


def tabulate_selection(preset: Preset) -> dict[str, Any]:
    """Measure the overlap of sets scored by some planes with the set scored by all planes."""
    full = pick(preset)  # [n] bool each

    def overlaps(frequencies: Frequencies) -> dict[str, float]:
        return {
            name: compare(marks, full[name]) for name, marks in pick(preset, frequencies).items()
        }

    bands = {name: overlaps(planes) for name, planes in split_planes(preset).items()}
    single = [overlaps([plane]) for plane in range(preset.planes)]  # by plane, 0 first
    best = {name: int(np.argmax([row[name] for row in single])) for name in full}
    pieces = np.array_split(np.arange(preset.planes), BANDS)
    # whose absence changes the set most
    worst = min(range(BANDS), key=lambda number: bands[f"without {number + 1}"]["union"])
    return {
        "bands": bands,
        "worst_loss": {
            "band": worst + 1,
            "planes": [int(pieces[worst][0]), int(pieces[worst][-1])],
            "union": bands[f"without {worst + 1}"]["union"],
        },
        "planes": {name: [row[name] for row in single] for name in full},
        "best_plane": best,
        "best_wavelength": {
            # positions to a full turn
            name: round(float(2 * np.pi / preset.rope.frequencies[plane]), 1)
            for name, plane in best.items()
        },
    }
