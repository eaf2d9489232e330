"""RefCOCO benchmark files from the published annotations and the pictures of COCO.

    ivc-jax refcoco --annotations JSON_DIR --images train2014 --out TSVS
    ivc-jax refcoco --annotations JSON_DIR --images train2014 --out TSVS --qwen25

JSON_DIR holds finetune_refcoco_val.json, finetune_refcoco+_testA.json, finetune_refcocog_test.json
and so on, in the format of COCO, one entry of "images" an expression. With --qwen25 the boxes are
those of the images as Qwen2.5-VL resizes them, and the files end in _for_qwen25vl. With other pixel
bounds than the released ones, two more columns name the size that the boxes refer to.
"""

import base64
import contextlib
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TextIO

from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.inputs.resize import SmartResize

# columns of the published files, in their order
_HEADER = ("index", "image", "question", "height", "width", "answer")

Boxes = Mapping[Any, list[list[float]]]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Make the TSV files of RefCOCO, RefCOCO+ and RefCOCOg.

    Rows whose picture or box is missing are left out and counted. A file appears when it is
    complete; one of an earlier run is replaced.

    Attributes:
        annotations: folder of the finetune_refcoco*.json files.
        images: folder of the pictures of COCO train2014.
        out: folder of the TSV files.
        qwen25: boxes in the resized images of Qwen2.5-VL instead of the original ones.
        min_pixels: least area of a resized image, with --qwen25.
        max_pixels: largest area, likewise.
        splits: such as RefCOCO_testA or RefCOCOg_val.
        traceback: show where an error came from.
    """

    annotations: Annotated[str, option("DIR")]
    images: Annotated[str, option("DIR")]
    out: Annotated[str, option("DIR")]
    qwen25: bool = False
    min_pixels: Annotated[int | None, option("N", "the released 4 * 28 * 28")] = None
    max_pixels: Annotated[int | None, option("N", "the released 16384 * 28 * 28")] = None
    splits: Annotated[tuple[str, ...] | None, option("NAME ...", "all with annotations")] = None
    traceback: bool = False


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the expressions of one set."""

    rows: int
    without_picture: int
    without_box: int


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} refcoco") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program)


def _run(arguments: Arguments, _command: str, _console: Console) -> None:
    """Check names and folders, then make one file after the other."""
    # Imported late, so that a wrong option or --help does not wait for JAX.
    from ivc_jax.evals.benchmarks.released import QWEN2_5_PICTURES
    from ivc_jax.evals.benchmarks.tasks import RESIZED_SUFFIX, TASKS

    annotations, images, out = map(
        pathlib.Path, (arguments.annotations, arguments.images, arguments.out)
    )
    for field, folder in (("annotations", annotations), ("images", images)):
        if not folder.is_dir():
            raise ValueError(f"--{field} {folder} is not a folder")
    bounds = arguments.min_pixels, arguments.max_pixels
    if bounds != (None, None) and not arguments.qwen25:
        raise ValueError("--min-pixels and --max-pixels bound the resized images of --qwen25")
    pictures = QWEN2_5_PICTURES.bound(*bounds) if arguments.qwen25 else None
    sources = _find_sources(annotations, arguments.splits or ())
    out.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        task = TASKS[f"{name}{RESIZED_SUFFIX}" if arguments.qwen25 else name]
        path = out / task.file_name
        counts = convert(source, images, path, pictures)
        skipped = f"{counts.without_picture} without picture, {counts.without_box} without box"
        print(f"{path}: {counts.rows} rows; left out: {skipped}", flush=True)
        if remark := task.remark_on_rows(counts.rows):
            print(f"note: {remark}", flush=True)


def _find_sources(folder: pathlib.Path, splits: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Find the annotation file of each wanted set; without a wish, of every set that has one."""
    from ivc_jax.evals.benchmarks.tasks import REFCOCO

    known = {name.lower(): name for name in REFCOCO}
    if unknown := [name for name in splits if name.lower() not in known]:
        raise ValueError(f"unknown split {unknown[0]!r}; known: {', '.join(REFCOCO)}")
    wanted = [known[name.lower()] for name in splits] or REFCOCO
    paths = {name: folder / name_annotations(name) for name in wanted}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing and (splits or len(missing) == len(paths)):
        raise ValueError(f"--annotations {folder} lacks {', '.join(missing)}")
    return {name: path for name, path in paths.items() if path.is_file()}


def name_annotations(name: str) -> str:
    """Return the name of the annotation file of a set, such as finetune_refcoco+_testA.json."""
    data_set, split = name.split("_")
    return f"finetune_{data_set.lower()}_{split}.json"


def convert(
    source: pathlib.Path,
    images: pathlib.Path,
    target: pathlib.Path,
    pictures: SmartResize | None = None,
) -> Counts:
    """Write the TSV file of one set.

    Pictures are copied as they are, one at a time. Boxes "x y width height" become "x1 y1 x2 y2",
    several of one expression in a row; `height` and `width` are those of the original picture.

    Args:
        pictures: boxes of the image as this resizes it, in whole pixels, and not as it is.

    Raises:
        ValueError: the annotations cannot be used, or no expression has its picture.
    """
    from ivc_jax.evals.benchmarks.released import QWEN2_5_PICTURES
    from ivc_jax.evals.benchmarks.scorers.grounding import FRAME_COLUMNS

    # the released frame has no name: files are then as others make them
    named = pictures not in (None, QWEN2_5_PICTURES)
    header = (*_HEADER, *FRAME_COLUMNS) if named else _HEADER
    entries, boxes = _read_annotations(source)
    written = without_picture = without_box = 0
    with _open_draft(target) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        for number, entry in enumerate(entries, 1):
            try:
                row = _make_row(entry, boxes, pictures)
                path = images / entry["file_name"]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{source} images entry {number}: {_explain(error)}") from None
            if not path.is_file():
                without_picture += 1
            elif not row["answer"]:
                without_box += 1
            else:
                row["image"] = base64.b64encode(path.read_bytes()).decode("ascii")
                writer.writerow([row[name] for name in header])
                written += 1
        if not written:
            raise ValueError(
                f"no row of {source}: {without_picture} of {len(entries)} pictures are not in"
                f" {images}, the folder of COCO train2014, and {without_box} have no box"
            )
    return Counts(written, without_picture, without_box)


def _read_annotations(source: pathlib.Path) -> tuple[list[dict[str, Any]], Boxes]:
    """Read a file in the format of COCO: its expressions, and boxes by expression."""
    try:
        content = json.loads(source.read_bytes())
        boxes: dict[Any, list[list[float]]] = {}
        for annotation in content["annotations"]:
            # by expression: "image_id" is the id of its entry
            boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
        return content["images"], boxes
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is no annotation file of COCO: {_explain(error)}") from None


def _make_row(
    entry: Mapping[str, Any], boxes: Boxes, pictures: SmartResize | None
) -> dict[str, Any]:
    from ivc_jax.evals.benchmarks import parsers

    width, height = entry["width"], entry["height"]
    # (height, width) of the frame
    rows, columns = pictures.find_size(width, height) if pictures else (height, width)
    # in pixels of the original picture
    corners = [(x, y, x + across, y + down) for x, y, across, down in boxes.get(entry["id"], ())]
    if pictures:
        moved = [parsers.rescale_box(box, (width, height), (columns, rows)) for box in corners]
        # whole pixels, as the released files have them
        corners = [tuple(round(value) for value in box) for box in moved]
    return {
        "index": entry["id"],
        "question": entry["caption"],
        "height": height,
        "width": width,
        "answer": " ".join(str(value) for box in corners for value in box),
        "frame_height": rows,
        "frame_width": columns,
    }


def _explain(error: Exception) -> str:
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error)


@contextlib.contextmanager
def _open_draft(path: pathlib.Path) -> Iterator[TextIO]:
    """Open a draft that replaces the file when the block ends well, and goes when it does not."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the place of the old file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
