"""Cells that hold videos: the path of a file, seen from the TSV file, or the file itself in base64.

    video      clips/0001.mp4     or     AAAAIGZ0eXBpc29t...     or     ["a.mp4", "b.mp4"]

A path has a period, which base64 has not. A short cell without one is the index of another row.
"""

import pathlib
from collections.abc import Callable, Mapping

from ivc_jax.evals.benchmarks.cells import read_text
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.video import VideoFile, check_reader, open_video

VIDEO = "video"


def check_library() -> str | None:
    """Say what is missing for reading videos, if anything is."""
    try:
        check_reader()
    except InputError as error:
        return str(error)
    return None


def is_path(cell: str) -> bool:
    """Say whether a cell is the path of a video file."""
    return "." in cell


def open_videos(
    cells: Mapping[str, str],
    folder: pathlib.Path,
    split: Callable[[str, str], list[str]],
    decode: Callable[[str, str], bytes],
) -> tuple[VideoFile, ...]:
    """Look into the videos of a row.

    Args:
        cells: of the row that holds them.
        folder: of the TSV file.
        split: of a cell that may be a list.
        decode: of base64; both name the kind of cell in errors.

    Raises:
        InputError: a file that cannot be read as a video.
        ValueError: a cell that is neither.
    """
    cell = read_text(cells, VIDEO).strip()
    items = split(cell or cells[f"{VIDEO}_path"], VIDEO)
    sources = [
        folder / item if not cell or is_path(item) else decode(item, VIDEO) for item in items
    ]
    return tuple(open_video(source, f"video {number}") for number, source in enumerate(sources))
