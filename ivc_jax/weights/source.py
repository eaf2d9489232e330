"""Reading a checkpoint directory: its `config.json` and its safetensors files.

Nothing but headers is read until a tensor, or a slice of one, is asked for. Files are mapped into
memory, so that a slice is a view of its file until it is copied to where it stays.
"""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ivc_jax.weights.keymap import Transform

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# names in the files -> ours; others are refused
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# what else a head may be stored in, to be compared with an embedding
_COMPARED = {"F64": np.dtype(np.float64)}
_ROWS = 4096  # of a matrix at a time
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file or tensors and the remedy."""


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """What a safetensors header says about one tensor; `dtype` is the format's own name."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0  # of its first byte in the file


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


class TensorFiles:
    """The tensors of a Hugging Face directory, by name, in one file or in indexed shards."""

    def __init__(self, folder: Path) -> None:
        """Read all headers.

        Raises:
            CheckpointError: no safetensors file, a missing shard, a truncated or corrupt file, or
                a name held by two shards.
        """
        self.headers: dict[str, TensorHeader] = {}
        self._bytes: dict[Path, np.memmap] = {}  # whole files, mapped into memory
        for file in _find_files(folder):
            for name, header in _read_headers(file).items():
                if name in self.headers:
                    raise CheckpointError(
                        f"tensor {name} is in both {self.headers[name].file.name} and {file.name}"
                    )
                self.headers[name] = header
            self._bytes[file] = np.memmap(file, np.uint8, mode="r")

    def dtype_name(self, name: str) -> str | None:
        """Return the name of a tensor's dtype in `DTYPES`, None if it is not among them."""
        return _STORED.get(self.headers[name].dtype)

    def _dtype(self, name: str) -> np.dtype:
        stored = self.headers[name].dtype
        dtype = DTYPES.get(_STORED.get(stored), _COMPARED.get(stored))
        if dtype is None:
            raise CheckpointError(f"unsupported dtype: {name} is {stored}")
        return dtype

    def main_dtype(self) -> str:
        """Return the name of the dtype in `DTYPES` that most of the numbers are stored in."""
        counts = dict.fromkeys(DTYPES, 0)
        for name, header in self.headers.items():
            if (dtype := self.dtype_name(name)) is not None:
                # numbers, not tensors: norms are many and small
                counts[dtype] += math.prod(header.shape)
        return max(counts, key=counts.__getitem__)

    def equal(self, first: str, second: str) -> bool:
        """Tell whether two matrices hold the same numbers, a few rows of each in memory."""
        rows, *rest = self.headers[first].shape
        if self.headers[second].shape != (rows, *rest):
            return False
        starts = range(0, rows, _ROWS)
        index = [(slice(row, min(row + _ROWS, rows)), slice(None)) for row in starts]
        return all(
            np.array_equal(*(self.read(name, Transform.SAME, part) for name in (first, second)))
            for part in index
        )

    def load(
        self,
        name: str,
        transform: Transform,
        index: tuple[slice, ...],
        rows: np.ndarray | None = None,
        dtype: np.dtype | None = None,
    ) -> np.ndarray:
        """Read as `read` does, into memory that a CPU device takes as it is.

        Args:
            name: as for `read`, and so all but the last.
            transform: as there.
            index: as there.
            rows: as there.
            dtype: what to turn values into; None keeps what is stored.

        Raises:
            CheckpointError: the file broke after its header was read.
        """
        header = self.headers[name]
        sizes = zip(index, header.shape, strict=False)
        whole = tuple(len(range(*part.indices(size))) for part, size in sizes) == header.shape
        same = transform is Transform.SAME and dtype in (None, self._dtype(name))
        if whole and same and rows is None:
            return self._read_whole(header, self._dtype(name))
        return copy_aligned(self.read(name, transform, index, rows), dtype)

    def _read_whole(self, header: TensorHeader, dtype: np.dtype) -> np.ndarray:
        """Read a tensor without its mapping, whose pages would be looked up one by one."""
        values = allocate(header.shape, dtype)
        target, done = memoryview(values.reshape(-1).view(np.uint8)), 0
        with header.file.open("rb", buffering=0) as stream:
            while done < len(target):
                count = os.preadv(stream.fileno(), [target[done:]], header.offset + done)
                if not count:
                    raise CheckpointError(f"{header.file} ends before its tensors do")
                done += count
        return values

    def read(
        self,
        name: str,
        transform: Transform,
        index: tuple[slice, ...],
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Read our layout's `index` out of a tensor, or out of some rows of it.

        Args:
            name: of the tensor.
            transform: from its layout to ours.
            index: one slice an axis of ours.
            rows: those of the stored tensor (its first axis) that are ours, in our order.

        Returns:
            The values in the stored dtype: a view of the file unless `rows` picks.

        Raises:
            CheckpointError: a dtype that is not read.
        """
        header = self.headers[name]
        # A convolution [D, ...] is cut along D alone: only that much is read.
        stored = index[:1] if transform.mixes_columns else index
        stored = (*(slice(None),) * transform.leading, *stored)
        picked = slice(None)
        if rows is not None:
            # ours 0 1 2 3 are rows 4 5 12 13 of the tensor: read 4..13, then pick 0 1 8 9
            wanted = rows[stored[0]]
            first = int(wanted.min())
            stored = (slice(first, int(wanted.max()) + 1), *stored[1:])
            picked = wanted - first
        dtype = self._dtype(name)
        stop = header.offset + math.prod(header.shape) * dtype.itemsize
        tensor = self._bytes[header.file][header.offset : stop].view(dtype).reshape(header.shape)
        values = transform.to_ours(tensor[stored][picked])
        # [D, values]: now the cut of the second axis
        return values[:, index[1]] if transform.mixes_columns else values


def has_weights(folder: Path) -> bool:
    """Tell whether a directory holds safetensors files, not whether they are whole."""
    return any((folder / name).is_file() for name in (_SINGLE, _INDEX))


def _find_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        raise CheckpointError(f"{folder} has neither {_SINGLE} nor {_INDEX}")
    shards = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{folder / _INDEX} has no weight_map")
    files = [folder / name for name in sorted(set(shards.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{folder} lacks shards that {_INDEX} names: {', '.join(missing)}")
    return files


def _read_headers(file: Path) -> dict[str, TensorHeader]:
    """Return what a safetensors file holds; the library checks that it is whole."""
    try:
        with safe_open(file, framework="np") as handle:
            views = {name: handle.get_slice(name) for name in handle.offset_keys()}
            found = {name: (tuple(v.get_shape()), v.get_dtype()) for name, v in views.items()}
        # The format: length of the header, header, then all tensors without a gap.
        with file.open("rb") as stream:
            offset = 8 + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(offset - 8))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is truncated or corrupt ({error}); fetch it again") from None
    return {
        name: TensorHeader(file, shape, dtype, offset + header[name]["data_offsets"][0])
        for name, (shape, dtype) in found.items()
    }


def copy_aligned(values: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """Copy values into memory of their own that a CPU device takes as it is.

    Args:
        values: of any layout.
        dtype: of the copy; None is that of the values.
    """
    dtype = values.dtype if dtype is None else dtype
    made = allocate(values.shape, dtype)
    if (values.dtype, dtype) == (DTYPES["bfloat16"], DTYPES["float32"]):
        # A bfloat16 is the upper half of a float32; NumPy's own cast holds up all other threads.
        bits = made.view(np.uint32)
        np.left_shift(values.view(np.uint16), 16, out=bits, dtype=np.uint32, casting="unsafe")
    else:
        made[...] = values
    return made


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array that begins where XLA wants it; one elsewhere would be copied again."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype).reshape(shape)
