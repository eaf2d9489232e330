"""Figures of kept tokens over an image: of an example of a run, and of one prompt."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.patches
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ivc_jax.evals.benchmarks.scorers.base import Reader
from ivc_jax.evals.benchmarks.scorers.grounding import GROUNDING_OF_SCENES
from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running.recording import Answer
from ivc_jax.evals.running.tsv import RowError, TsvError, TsvFile
from ivc_jax.evals.schema import Meta, Record
from ivc_jax.reports.colours import RIGHT, RIGHT_BOX, WRONG, WRONG_BOX
from ivc_jax.reports.labels import SEEDS, label_methods, read_size
from ivc_jax.reports.results import Results

CAPTION = (
    "Dropped cells are darkened. Below each panel the answer: a tick and blue if it scores, a cross"
    " and orange if not. Boxes: dashed white the reference, blue or orange the answer."
)
_DENSE = "dense"
_DARKENED = 0.25  # brightness of a dropped cell
_LONGEST = 28  # letters of an answer below a panel
_MOST_COLUMNS = 7  # of the figure of an example
_COLUMNS = 4  # of that of a prompt
_LETTERS = 34  # of a line of text above or below a panel of a prompt


def choose_tasks(tasks: Sequence[str]) -> list[str]:
    """Take one grounding task and one other."""
    grounding = [task for task in tasks if TASKS[task].group == "grounding"]
    others = [task for task in tasks if TASKS[task].group != "grounding"]
    return grounding[:1] + others[:1]


def draw_example(results: Results, task: str) -> Figure | None:
    """Draw one example: one panel a method, one line a budget; one budget if methods are many."""
    example = choose_example(results, task)
    if not example:
        return None
    first = next(iter(example.values()))
    pixels = _read_pixels(results.meta, first)
    if pixels is None or len(first.grids) != 1 or first.grids[0][0] != 1:
        return None  # drawn for a single image only
    sizes = _list_sizes(example)
    places, labels = arrange_panels(sizes)
    # lines and columns of panels; (0, 0) is dense
    count, columns = (1 + max((p[axis] for p in places.values()), default=0) for axis in (0, 1))
    figure, grid = pyplot.subplots(
        count, columns, squeeze=False, layout="constrained",
        figsize=(2.35 * columns, 2.85 * count + 0.6),
    )  # fmt: skip
    for axes in grid.flat:
        axes.axis("off")
    question = f"{first.question}    reference: {first.target}"
    figure.suptitle(question, fontsize=12, fontweight="bold")
    if _DENSE in example:
        _draw_example_panel(grid[0, 0], pixels, example[_DENSE], _DENSE)
    for method, place in places.items():
        title = f"{labels[method]}, {sizes[method][1]:g}"
        _draw_example_panel(grid[place], pixels, example[method], title)
    return figure


def choose_example(results: Results, task: str) -> dict[str, Record]:
    """Choose the records of a task that are drawn, by method; empty without a complete example.

    The first example that dense gets right and that methods disagree on, if there is one; of its
    methods those that have a panel.
    """
    records = [record for record in results.records if record.task == task]
    # of a run that was reported before, the records that were drawn may be all there is
    recorded = {record.method for record in results.records}
    methods = [method for method in results.meta.methods if method in recorded]
    example = _rank_examples(methods, records)
    places, _ = arrange_panels(_list_sizes(example))
    return {
        method: example[method]
        for method in methods
        if method in {_DENSE, *places} & example.keys()
    }


def _list_sizes(example: Mapping[str, Record]) -> dict[str, tuple[str, float]]:
    """List what each method but dense is compared at."""
    return {
        method: read_size(method, record.keep_ratio)
        for method, record in example.items()
        if method != _DENSE
    }


def arrange_panels(
    sizes: Mapping[str, tuple[str, float]],
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Give methods a place (line, column) behind the dense panel (0, 0), and their labels.

    One column a method and one line a budget; where methods are many, one budget is shown, and one
    seed of each, line after line.

    Args:
        sizes: budget or keep ratio of each method (`labels.read_size`).
    """
    labels = label_methods(list(sizes))
    names = list(dict.fromkeys(labels.values()))
    lines = sorted(set(sizes.values()), reverse=True)
    # few methods         many: the middle budget alone
    #   dense a b c         dense a b c d e f
    #         a b c         g     h i ...
    if len(names) < _MOST_COLUMNS:
        places = {
            method: (lines.index(size), 1 + names.index(labels[method]))
            for method, size in sizes.items()
        }
        return places, labels
    # the budget in the middle
    chosen = [method for method, size in sizes.items() if size == lines[len(lines) // 2]]
    # A field with one value among these tells nothing.
    labels = label_methods(chosen, without=SEEDS)
    first = {label: method for method, label in reversed(labels.items())}  # one seed of each
    shown = [method for method in chosen if first[labels[method]] == method]
    return {method: divmod(n, _MOST_COLUMNS) for n, method in enumerate(shown, 1)}, labels


def save_prompt(
    path: pathlib.Path,
    picture: Image.Image,
    question: str,
    answers: Mapping[str, Answer],
    reader: Reader,
) -> None:
    """Write the figure of a prompt with one image as PNG.

    Args:
        answers: by method; their grids have one image.
        reader: says how boxes in the answers are written.

    Raises:
        OSError: the file cannot be written.
    """
    columns = min(_COLUMNS, len(answers))
    lines = -(-len(answers) // columns)
    picture = reader.pictures.show(picture.convert("RGB"))
    shape = picture.height / picture.width
    figure, grid = pyplot.subplots(
        lines, columns, squeeze=False, layout="constrained",
        figsize=(3.2 * columns, lines * (3.2 * min(max(shape, 0.4), 2.5) + 0.8) + 0.5),
    )  # fmt: skip
    for axes in grid.flat:
        axes.axis("off")
    figure.suptitle(shorten(question, 40 * columns), fontweight="bold")
    pixels = np.asarray(picture)
    for axes, (spec, answer) in zip(grid.flat, answers.items(), strict=False):
        _draw_prompt_panel(axes, pixels, spec, answer, reader)
    try:
        figure.savefig(path, dpi=140, facecolor="white", format="png")
    finally:
        pyplot.close(figure)


def _rank_examples(methods: Sequence[str], records: Sequence[Record]) -> dict[str, Record]:
    """Take the first example that dense gets right and that methods disagree on, if any."""
    examples: dict[str, dict[str, Record]] = {}
    for record in records:
        examples.setdefault(record.example_id, {})[record.method] = record
    complete = [
        {method: by_method[method] for method in methods}
        for by_method in examples.values()
        if all(method in by_method for method in methods)
    ]
    # Python's max keeps the first of equals.
    return max(complete, key=_rate_example, default={})


def _rate_example(example: dict[str, Record]) -> tuple[bool, bool]:
    dense = example.get(_DENSE)
    # an example that dense fails shows nothing about pruning
    right = dense is not None and dense.score >= 1
    return right, len({record.score >= 1 for record in example.values()}) > 1


def _read_pixels(meta: Meta, record: Record) -> np.ndarray | None:
    """Read the image of a record from its benchmark file; None if the file is gone."""
    try:
        file = TsvFile(meta.files[record.task])
    except TsvError:
        return None
    try:
        return np.asarray(file.read(record.row - 1).images[0].convert("RGB"))
    except (RowError, IndexError):
        return None
    finally:
        file.close()


def _draw_example_panel(axes: Axes, pixels: np.ndarray, record: Record, title: str) -> None:
    height, width = pixels.shape[:2]
    axes.imshow(shade(pixels, record.grids[0], record.kept))
    axes.set_title(f"{title}: {record.kept_tokens} of {record.visual_tokens}", fontsize=9)
    right = record.score >= 1
    colour, text = RIGHT if right else WRONG, f"{'✓✗'[not right]} {shorten(record.prediction)}"
    axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top",
              fontsize=9, color=colour)  # fmt: skip
    if TASKS[record.task].group == "grounding":
        target = [float(word) for word in record.target.split()[:4]]
        _draw_box(axes, target, "white", "--")
        _draw_box(axes, record.parsed, RIGHT_BOX if right else WRONG_BOX, "-")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # boxes may stick out


def _draw_prompt_panel(
    axes: Axes, pixels: np.ndarray, spec: str, answer: Answer, reader: Reader
) -> None:
    axes.imshow(shade(pixels, answer.grids[0], answer.kept))
    kept = f"{len(answer.kept)} of {answer.visual_tokens} tokens"
    axes.set_title(f"{shorten(spec, _LETTERS)}\n{kept}", fontsize=9)
    text = shorten(answer.text, _LETTERS)
    axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=9)
    height, width = pixels.shape[:2]
    cells = {"width": str(width), "height": str(height)}
    _draw_box(axes, GROUNDING_OF_SCENES.parse(answer.text, cells, reader), RIGHT_BOX, "-")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # boxes may stick out


def shade(pixels: np.ndarray, grid: Sequence[int], kept: Sequence[int]) -> np.ndarray:
    """Darken the cells of an image [height, width, 3] whose tokens are not in `kept`.

    An image in tiles stays as it is: its tokens show a place more than once.

    Args:
        grid: (tiles, rows, columns) of tokens.
    """
    tiles, rows, columns = grid
    if tiles > 1:
        return pixels
    bright = np.full(rows * columns, _DARKENED)  # [cells]
    bright[kept] = 1.0
    height, width = pixels.shape[:2]
    # which row of cells a line of pixels belongs to [height], and so for columns [width]
    row_of = np.minimum(np.arange(height) * rows // height, rows - 1)
    column_of = np.minimum(np.arange(width) * columns // width, columns - 1)
    shade = bright.reshape(rows, columns)[row_of][:, column_of]  # [height, width]
    return (pixels * shade[..., None]).astype(np.uint8)


def shorten(text: str, longest: int = _LONGEST) -> str:
    """Shorten an answer to what fits below a panel and the font can show."""
    text = "".join(letter if 32 <= ord(letter) < 127 else "·" for letter in text.strip())
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return text.replace("$", r"\$") or "(nothing)"  # no mathematics


def _draw_box(axes: Axes, box: Sequence[float], colour: str, style: str) -> None:
    """Draw the outline of a box (x1, y1, x2, y2) unless it is empty."""
    x1, y1, x2, y2 = box
    if x2 > x1 and y2 > y1:
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, ls=style, lw=1.6
            )
        )
