"""Benchmark files: tab-separated rows with base64 images, read one row at a time.

Files reach gigabytes, so only the byte offset and the index of each row stay in memory. The
offsets also serve rows whose image cell is the index of another row. Videos are the matter of
`video_cells`.
"""

import base64
import binascii
import collections
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import PIL.Image

from ivc_jax.evals.benchmarks.cells import CellError, is_missing, read_list, read_text
from ivc_jax.evals.running.video_cells import VIDEO, check_library, is_path, open_videos
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.video import VideoFile

_LONGEST_CELL = 1 << 28  # characters; a stray quote must not swallow a whole file
_LONGEST_REFERENCE = 64  # a shorter image cell is the index of another row
_MOST_REFERENCES = 8
_RECENT = 4  # rows whose images stay open: questions about one picture follow each other
_NOT_UTF8 = "not UTF-8, save it as UTF-8"


class TsvError(ValueError):
    """A file that cannot be used at all; the message names file and remedy."""


class RowError(ValueError):
    """One broken row; the message names file, row number and column."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One example: its cells by column name, its decoded images, and its video files.

    `holder` is the position of the row that holds these, of this one or another.
    """

    number: int
    example_id: str
    cells: dict[str, str]
    images: tuple[PIL.Image.Image, ...]
    holder: int
    videos: tuple[VideoFile, ...] = ()

    @functools.cached_property
    def picture(self) -> str:
        """A short hash of the images and videos: rows that share them share it."""
        digest = hashlib.blake2b(digest_size=6)
        for image in self.images:
            digest.update(image.tobytes())
        for video in self.videos:
            digest.update(video.describe().encode())
        return digest.hexdigest()


class TsvFile:
    """A benchmark file, opened once and read by row position, by several threads if need be.

    Args:
        path: the file.
        columns: names that the header must hold and no row may leave empty; a column of images or
            videos is always needed.
        optional: names that the header must hold and a row may leave empty.

    Raises:
        TsvError: the file cannot be opened, is empty, lacks a column or names one twice, or nothing
            is installed that reads its videos. So does `list_ids` where a row is not UTF-8.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        columns: Sequence[str] = (),
        optional: Sequence[str] = (),
    ) -> None:
        self.path = pathlib.Path(path)
        csv.field_size_limit(_LONGEST_CELL)
        self._lock = threading.RLock()  # the file has one place to read from
        try:
            self._file: BinaryIO = self.path.open("rb")
        except OSError as error:
            raise TsvError(f"cannot open {self.path}: {error.strerror}") from None
        first = next(self._scan_rows(0), None)  # the header; the next scan skips it
        if first is None:
            raise TsvError(f"{self.path} is empty: expected a header line")
        self.header = [name.strip().removeprefix("\ufeff") for name in first[1]]
        self._columns = tuple(columns)
        missing = [name for name in (*columns, *optional) if name not in self.header]
        # the kinds of visuals that rows hold; of several each row may leave out some
        self._kinds = [
            kind for kind in ("image", VIDEO) if {kind, f"{kind}_path"} & set(self.header)
        ]
        if not self._kinds:
            missing.append("image")
        if missing:
            raise TsvError(
                f"{self.path} lacks the column{'s' * (len(missing) > 1)} "
                f"{', '.join(map(repr, missing))}; it has {', '.join(map(repr, self.header))}"
            )
        counts = collections.Counter(filter(None, self.header))
        if doubled := [name for name, count in counts.items() if count > 1]:
            raise TsvError(
                f"{self.path} has the column{'s' * (len(doubled) > 1)}"
                f" {', '.join(map(repr, doubled))} twice; leave one"
            )
        if VIDEO in self._kinds and (reason := check_library()):
            raise TsvError(f"{self.path} has videos, and {reason}")
        self._scan = itertools.islice(self._scan_rows(0), 1, None)
        self._offsets: list[int] = []  # byte at which each row starts
        self._ids: list[str] = []  # id of each row
        self._position: dict[str, int] = {}  # id -> position
        # (kind, position of the row that holds them, decoded?) -> visuals, the latest ones
        self._recent: dict[tuple[str, int, bool], tuple] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def list_ids(self, limit: int | None = None) -> list[str]:
        """Return the example ids of the first `limit` rows, unique and in file order."""
        with self._lock:
            while (limit is None or len(self._ids) < limit) and self._advance():
                pass
            return self._ids[:limit]

    def find_id(self, position: int) -> str:
        """Return the example id of a row that `list_ids` has listed."""
        return self._ids[position]

    def read(self, position: int, decode: bool = True) -> Row:
        """Read the row at `position`, counted from 0, and decode its images.

        Rows that share a picture may get the same one: it is not to be changed.

        Args:
            position: of the row.
            decode: without it images know their size, and are decoded when a pixel is asked for.

        Raises:
            RowError: a cell of the row is broken; what only decoding finds is not looked for
                without it.
        """
        with self._lock:
            while position >= len(self._offsets):
                if not self._advance():
                    raise IndexError(f"{self.path} has {len(self._offsets)} rows")
        try:
            with self._lock:
                cells = self._read_cells(position)
                for name in self._columns:
                    if is_missing(cells[name]):
                        found = f" ({cells[name].strip()})" if cells[name].strip() else ""
                        raise RowError(f"the {name} cell is empty{found}")
            held = [
                (kind, *self._find_visuals(position, cells, kind, decode))
                for kind in self._choose_kinds(cells)
            ]
            visuals = {kind: found for kind, _, found in held}
            # Rows that take two kinds from two rows are like no other.
            holders = {holder for _, holder, _ in held}
            holder = holders.pop() if len(holders) == 1 else position
            images, videos = visuals.get("image", ()), visuals.get(VIDEO, ())
            return Row(position + 1, self._ids[position], cells, images, holder, videos)
        except RowError as error:
            raise RowError(
                f"{self.path.name} row {position + 1} (index {self._ids[position]}): {error}"
            ) from None

    def fingerprint(self) -> str:
        """Return the SHA-256 of the whole file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _scan_rows(self, offset: int) -> Iterator[tuple[int, list[str]]]:
        """Yield (offset, cells) from `offset` on; quoted cells may span lines."""
        end = offset

        def lines() -> Iterator[str]:
            nonlocal end
            while True:
                # seek each time: the scan and the reads share one file
                self._file.seek(end)
                line = self._file.readline()
                if not line:
                    return
                end += len(line)  # bytes, not characters
                yield line.decode("utf-8")

        start, count = offset, 0
        try:
            for cells in csv.reader(lines(), delimiter="\t"):
                if any(cells):
                    if not count and "\0" in cells[0]:  # UTF-16 without a mark
                        raise TsvError(f"{self.path} the header: {_NOT_UTF8}")
                    yield start, cells
                    count += 1
                start = end  # the csv reader has asked for exactly the lines of this row
        except UnicodeDecodeError:
            # Only the scan from the header on meets a row for the first time.
            place = f"row {count}" if count else "the header"
            raise TsvError(f"{self.path} {place}: {_NOT_UTF8}") from None
        except csv.Error as error:
            raise TsvError(f"{self.path}: unreadable after byte {start}: {error}") from None

    def _advance(self) -> bool:
        """Take the next row into the index; False at the end of the file."""
        found = next(self._scan, None)
        if found is None:
            return False
        offset, cells = found
        column = self.header.index("index") if "index" in self.header else len(cells)
        index = cells[column].strip() if column < len(cells) else ""
        number = len(self._offsets) + 1
        name = f"row{number}" if is_missing(index) else index
        if name in self._position:
            name = f"{name}#{number}"  # resuming needs unique ids
        self._position[name] = len(self._offsets)
        self._offsets.append(offset)
        self._ids.append(name)
        return True

    def _read_cells(self, position: int) -> dict[str, str]:
        _, cells = next(self._scan_rows(self._offsets[position]))
        if len(cells) != len(self.header):
            raise RowError(f"{len(cells)} cells where the header has {len(self.header)}")
        return dict(zip(self.header, cells, strict=True))

    def _choose_kinds(self, cells: dict[str, str]) -> list[str]:
        """Return the kinds of visuals that a row has."""
        if len(self._kinds) == 1:
            return self._kinds  # an empty cell is a fault of the row
        named = [
            kind
            for kind in self._kinds
            if read_text(cells, kind).strip() or read_text(cells, f"{kind}_path")
        ]
        return named or self._kinds

    def _find_visuals(
        self, position: int, cells: dict[str, str], kind: str, decode: bool
    ) -> tuple[int, tuple]:
        """Return the visuals of a row, and the position of the row that holds them."""
        with self._lock:
            # the row that has them: this one, or another
            holder, there = self._follow(position, cells, kind, decode)
            found = self._recent.get((kind, holder, decode))
        if found is None:  # outside of the lock: decoding takes time
            opened = self._open_images if kind == "image" else self._open_videos
            found = opened(there, decode)
            with self._lock:
                self._recent[kind, holder, decode] = found
                while len(self._recent) > _RECENT:
                    del self._recent[next(iter(self._recent))]  # the oldest
        return holder, found

    def _follow(
        self, position: int, cells: dict[str, str], kind: str, decode: bool
    ) -> tuple[int, dict[str, str]]:
        """Follow references to the row that holds the visuals of a kind.

        Returns:
            Its position, and its cells, which are not read if its visuals are there already.
        """
        for _ in range(_MOST_REFERENCES):
            cell = read_text(cells, kind).strip()
            if not cell and not read_text(cells, f"{kind}_path"):
                raise RowError(f"the {kind} cell is empty")
            # a picture, or a list of them
            if not cell or len(cell) > _LONGEST_REFERENCE or cell.startswith("["):
                return position, cells
            if kind == VIDEO and is_path(cell):
                return position, cells
            while cell not in self._position:  # the row may be further down
                if not self._advance():
                    raise RowError(f"the {kind} cell names the row {cell!r}, which does not exist")
            position = self._position[cell]
            if (kind, position, decode) in self._recent:
                return position, {}
            cells = self._read_cells(position)
        raise RowError(f"the {kind} cell leads through more than {_MOST_REFERENCES} references")

    def _open_images(self, cells: dict[str, str], decode: bool) -> tuple[PIL.Image.Image, ...]:
        cell = read_text(cells, "image").strip()
        if not cell:
            folder = self.path.parent
            return tuple(_open(folder / name, decode) for name in _split(cells["image_path"]))
        return tuple(_open(io.BytesIO(_decode(item)), decode) for item in _split(cell))

    def _open_videos(self, cells: dict[str, str], decode: bool) -> tuple[VideoFile, ...]:
        del decode  # frames are decoded where it is known which
        try:
            return open_videos(cells, self.path.parent, _split, _decode)
        except InputError as error:
            raise RowError(str(error)) from None


def _split(cell: str, kind: str = "image") -> list[str]:
    """Split a cell that may be a list."""
    if not cell.lstrip().startswith("["):
        return [cell.strip()]
    try:
        items = read_list(cell)
    except CellError as error:
        raise RowError(f"the {kind} cell is not a valid list: {error}") from None
    if not items:
        raise RowError(f"the {kind} cell is not a valid list of strings")
    return items


def _decode(text: str, kind: str = "image") -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise RowError(f"the {kind} cell is not valid base64 ({error})") from None


def _open(source: pathlib.Path | io.BytesIO, decode: bool) -> PIL.Image.Image:
    try:
        image = PIL.Image.open(source)
        if not decode:
            return image
        with image:
            image.load()  # a truncated file fails here, not in the middle of a batch
            return image.copy()
    # the decoders of the many formats raise whatever they like on broken files
    except Exception as error:
        raise RowError(f"the image cannot be read ({error})") from None
