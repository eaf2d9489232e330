"""Benchmark files: tab-separated rows with base64 images, read one row at a time.

Files reach gigabytes, so only the byte offset and the index of each row stay in memory. The
offsets also serve rows whose image cell is the index of another row.
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
    """One example: its cells by column name and its decoded images.

    `holder` is the position of the row that holds these images, of this one or another.
    """

    number: int
    example_id: str
    cells: dict[str, str]
    images: tuple[PIL.Image.Image, ...]
    holder: int

    @functools.cached_property
    def picture(self) -> str:
        """A short hash of the images: rows that share them share it."""
        digest = hashlib.blake2b(digest_size=6)
        for image in self.images:
            digest.update(image.tobytes())
        return digest.hexdigest()


class TsvFile:
    """A benchmark file, opened once and read by row position, by several threads if need be.

    Args:
        path: the file.
        columns: names that the header must hold and no row may leave empty; an image column is
            always needed.
        optional: names that the header must hold and a row may leave empty.

    Raises:
        TsvError: the file cannot be opened, is empty, lacks a column or names one twice. So does
            `list_ids` where a row is not UTF-8.
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
        if not {"image", "image_path"} & set(self.header):
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
        self._scan = itertools.islice(self._scan_rows(0), 1, None)
        self._offsets: list[int] = []  # byte at which each row starts
        self._ids: list[str] = []  # id of each row
        self._position: dict[str, int] = {}  # id -> position
        # (position of the row that holds them, decoded?) -> images, the latest ones
        self._recent: dict[tuple[int, bool], tuple[PIL.Image.Image, ...]] = {}

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
                # the row that has the image: this one, or another
                holder, there = self._follow(position, cells, decode)
                images = self._recent.get((holder, decode))
            if images is None:  # outside of the lock: decoding takes time
                images = self._open_images(there, decode)
                self._keep((holder, decode), images)
            return Row(position + 1, self._ids[position], cells, images, holder)
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

    def _keep(self, key: tuple[int, bool], images: tuple[PIL.Image.Image, ...]) -> None:
        with self._lock:
            self._recent[key] = images
            while len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]  # the oldest

    def _follow(
        self, position: int, cells: dict[str, str], decode: bool
    ) -> tuple[int, dict[str, str]]:
        """Follow references to the row that holds the images.

        Returns:
            Its position, and its cells, which are not read if its images are there already.
        """
        for _ in range(_MOST_REFERENCES):
            cell = read_text(cells, "image").strip()
            if not cell and not read_text(cells, "image_path"):
                raise RowError("the image cell is empty")
            # a picture, or a list of them
            if not cell or len(cell) > _LONGEST_REFERENCE or cell.startswith("["):
                return position, cells
            while cell not in self._position:  # the row may be further down
                if not self._advance():
                    raise RowError(f"the image cell names the row {cell!r}, which does not exist")
            position = self._position[cell]
            if (position, decode) in self._recent:
                return position, {}
            cells = self._read_cells(position)
        raise RowError(f"the image cell leads through more than {_MOST_REFERENCES} references")

    def _open_images(self, cells: dict[str, str], decode: bool) -> tuple[PIL.Image.Image, ...]:
        cell = read_text(cells, "image").strip()
        if not cell:
            folder = self.path.parent
            return tuple(_open(folder / name, decode) for name in _split(cells["image_path"]))
        return tuple(_open(io.BytesIO(_decode(item)), decode) for item in _split(cell))


def _split(cell: str) -> list[str]:
    """Split a cell that may be a list."""
    if not cell.lstrip().startswith("["):
        return [cell.strip()]
    try:
        items = read_list(cell)
    except CellError as error:
        raise RowError(f"the image cell is not a valid list: {error}") from None
    if not items:
        raise RowError("the image cell is not a valid list of strings")
    return items


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise RowError(f"the image cell is not valid base64 ({error})") from None


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
