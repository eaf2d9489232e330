"""Small copies of a run's pictures, each made once, which its pages show."""

import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Sequence

from PIL import Image

from ivc_jax.evals.running.records import write_atomically
from ivc_jax.evals.running.tsv import RowError, TsvError, TsvFile
from ivc_jax.evals.schema import Meta, Record
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.picture import load_picture

FOLDER = "thumbnails"
MOST = 20_000  # pictures of a run; what is beyond them is shown without one
_INDEX = "index.json"
_SIDE = 224  # pixels of the longer side
_QUALITY = 72  # of WebP: about 6 KB a photograph


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One small picture.

    Attributes:
        size: width and height of the picture that it was made from.
        content: a WebP file.
    """

    size: tuple[int, int]
    content: bytes


Thumbnails = dict[str, tuple[Thumbnail, ...]]


def name_picture(record: Record) -> str:
    """Return what examples about the same pictures share; a file can be called so."""
    if record.picture:
        return record.picture
    # of an earlier version: every row has its own
    row = f"{record.task}/{record.row}"
    return hashlib.blake2b(row.encode(), digest_size=6).hexdigest()


def collect(folder: pathlib.Path, meta: Meta, records: Iterable[Record]) -> Thumbnails:
    """Return the thumbnails of records by `name_picture`, and make those that are missing.

    They lie in `thumbnails/` of the result folder. A picture whose benchmark file is gone, or has
    changed since, is left out: the page is then without it.

    Args:
        folder: result folder.
        meta: knows the benchmark files.
        records: of any methods; one of each picture is read.
    """
    wanted = {name_picture(record): record for record in records}
    wanted = dict(list(wanted.items())[:MOST])
    found = _read(folder / FOLDER)
    missing = [record for name, record in wanted.items() if name not in found]
    made = _make(meta, missing)
    if made:
        _write(folder / FOLDER, made, found | made)
    return {name: pictures for name, pictures in (found | made).items() if name in wanted}


def shrink(image: Image.Image) -> Thumbnail:
    """Make the thumbnail of a picture, turned and flattened as models see it."""
    picture = load_picture(image).copy()  # shrinking changes it
    size = picture.size
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY)
    return Thumbnail(size, file.getvalue())


def _make(meta: Meta, records: Sequence[Record]) -> Thumbnails:
    """Make thumbnails from the rows of the benchmark files."""
    made: Thumbnails = {}
    for task in dict.fromkeys(record.task for record in records):
        try:
            file = TsvFile(meta.files[task])
        except (TsvError, KeyError):
            continue  # records outlive their benchmark files
        try:
            for record in records:
                if record.task == task and (pictures := _shrink_row(file, record)):
                    made[name_picture(record)] = pictures
        finally:
            file.close()
    return made


def _shrink_row(file: TsvFile, record: Record) -> tuple[Thumbnail, ...]:
    try:
        row = file.read(record.row - 1)
        # a file that was written anew may hold other pictures
        if record.picture not in ("", row.picture):
            return ()
        return tuple(map(shrink, row.images))
    except (RowError, IndexError, InputError, OSError, ValueError):
        return ()


def _read(folder: pathlib.Path) -> Thumbnails:
    """Read what the folder has; a damaged index is as none."""
    try:
        sizes = json.loads((folder / _INDEX).read_text())
        return {
            name: tuple(
                Thumbnail((width, height), _place(folder, name, number).read_bytes())
                for number, (width, height) in enumerate(each)
            )
            for name, each in sizes.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(folder: pathlib.Path, made: Thumbnails, all_: Thumbnails) -> None:
    folder.mkdir(exist_ok=True)
    for name, pictures in made.items():
        for number, picture in enumerate(pictures):
            _place(folder, name, number).write_bytes(picture.content)
    # last: what the index names is there
    sizes = {name: [picture.size for picture in each] for name, each in all_.items()}
    write_atomically(folder / _INDEX, json.dumps(sizes) + "\n")


def _place(folder: pathlib.Path, name: str, number: int) -> pathlib.Path:
    return folder / f"{name}-{number}.webp"
