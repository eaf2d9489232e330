"""What all figures have in common: legends that are never cut, and how they are written."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

DPI = 140
_MARGIN = 0.08  # inches of white around everything
_MOST_COLUMNS = 10  # of a legend
_LETTERS = 11  # of a legend an inch, at its size


def add_legend(figure: Figure, handles: Sequence[Any], texts: Sequence[str]) -> Legend:
    """Put a legend below the panels of a figure with constrained layout.

    It has as many columns as fit beside each other, long names go on in another line, and the
    figure grows by its height.
    """
    letters = max(int(_LETTERS * (figure.get_figwidth() - 0.9)), 12)
    texts = [wrap(text, letters) for text in texts]
    room = figure.bbox.width - 2 * _MARGIN * figure.dpi
    for most in range(min(_MOST_COLUMNS, len(texts)), 0, -1):
        lines = -(-len(texts) // most)
        columns = -(-len(texts) // lines)  # no more than it takes: lines are of one length
        legend = figure.legend(
            handles, texts, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
        size = legend.get_window_extent(figure.canvas.get_renderer())
        if size.width <= room or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)
    return legend


def collect_handles(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """List what the panels of a figure name, each name once, in their order."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    return list(found.values()), list(found)


def wrap(text: str, letters: int) -> str:
    """Break a name at its commas, and within a word where that does not help."""
    if len(text) <= letters:
        return text
    spaced = text.replace(",", ", ").replace(",  ", ", ")
    return "\n".join(textwrap.wrap(spaced, letters))


def name_rest(count: int) -> str:
    """Name the grey lines in a legend."""
    return f"{count} others, in the table"


def draw_dense(axes: Axes, score: float) -> None:
    """Draw what the unpruned model scores."""
    axes.axhline(score, color="black", ls="--", lw=1, zorder=2, label="dense")


def hide_unused(panels: Sequence[Axes]) -> None:
    """Leave the place of panels empty that have nothing to show."""
    for axes in panels:
        axes.axis("off")


def render(figure: Figure) -> bytes:
    """Write a figure as PNG with a white margin, and let go of it."""
    buffer = io.BytesIO()
    engine = figure.get_layout_engine()
    if engine is not None:  # constrained layout; others keep the margin that they have
        engine.set(w_pad=_MARGIN, h_pad=_MARGIN)
    try:
        figure.savefig(buffer, dpi=DPI, facecolor="white", format="png")
    finally:
        pyplot.close(figure)
    return buffer.getvalue()
