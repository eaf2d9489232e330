"""Video files to frames, through PyAV, which is imported when the first file is opened.

A file is opened once to see what it holds, without decoding more than its first frame; which frames
are shown is the matter of `inputs.sampling`. Times are those of transformers' video processors:
the number of a frame in its file over the frames a second that the file states.
"""

import collections
import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.picture import Picture

if TYPE_CHECKING:
    from ivc_jax.inputs.sampling import FrameSampling

EXTRA = "reading video files needs PyAV: pip install 'ivc_jax[video]'"
_REMEDY = "save it again, or leave it out"


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video, and where in it they are.

    Attributes:
        frames: uint8 [frames, height, width, 3], or pictures of one size.
        index: the number in the video of each of them, ascending.
        rate: frames a second of the video.
        total: frames of the video.
    """

    frames: np.ndarray | Sequence[Picture]
    index: tuple[int, ...]
    rate: float
    total: int

    def __post_init__(self) -> None:
        if len(self.index) != len(self.frames):
            raise InputError(
                f"a clip of {len(self.frames)} frames has {len(self.index)} numbers; give one each"
            )
        if not 0 < self.rate < float("inf"):
            raise InputError(f"a clip has {self.rate} frames a second; give a positive number")

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Clip({len(self)} of {self.total} frames, {self.rate:g} a second)"

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds from the start of the video to each frame."""
        return tuple(number / self.rate for number in self.index)

    @property
    def shown_rate(self) -> float:
        """Frames that are shown of each second."""
        return len(self) / self.total * self.rate

    def time_slices(self, depth: int) -> tuple[float, ...]:
        """Say when each slice of `depth` frames is: halfway from its first to its last, in seconds.

        Five frames at 2 a second, two a slice, the last of them repeated:

            frames  0.0 0.5 | 1.0 1.5 | 2.0 2.0        slices  0.25 1.25 2.0
        """
        at = [*self.times]
        at += at[-1:] * (-len(at) % depth)
        return tuple((at[i] + at[i + depth - 1]) / 2 for i in range(0, len(at), depth))

    def take(self, index: Sequence[int]) -> "Clip":
        """Return these of its frames, counted from 0, as a clip of the same video."""
        chosen = [self.frames[i] for i in index]
        frames = np.stack(chosen) if isinstance(self.frames, np.ndarray) else chosen
        return dataclasses.replace(self, frames=frames, index=tuple(self.index[i] for i in index))


@dataclasses.dataclass(frozen=True, eq=False)
class VideoFile:
    """A video file that was looked into: its size and its length.

    Attributes:
        source: path, or the bytes of the file.
        name: what errors call it.
        total: frames.
        rate: frames a second.
        width: of a frame in pixels, turned upright.
        height: likewise.
    """

    source: Path | bytes
    name: str
    total: int
    rate: float
    width: int
    height: int

    def read(self, index: Sequence[int]) -> Clip:
        """Decode frames.

        Args:
            index: their numbers, ascending; one may come twice.

        Raises:
            InputError: damage, named by the file.
        """
        wanted, found = set(index), {}
        with _Reader(self.source, self.name) as reader:
            for number, frame in enumerate(reader.decode()):
                if number in wanted:
                    found[number] = frame
                if len(found) == len(wanted):
                    break
        if len(found) < len(wanted):
            raise InputError(
                f"{self.name}: frame {min(wanted - found.keys())} of {self.total} cannot be"
                f" decoded, the file is damaged; {_REMEDY}"
            )
        frames = np.stack([found[number] for number in index])  # [frames, height, width, 3]
        return Clip(frames, tuple(index), self.rate, self.total)

    def sample(self, sampling: "FrameSampling") -> Clip:
        """Decode the frames that a rule chooses; raises as `read` and the rule."""
        return self.read(self.outline(sampling).index)

    def outline(self, sampling: "FrameSampling") -> Clip:
        """Return the frames that a rule chooses as black ones, which take no memory.

        Raises:
            InputError: the rule asks for more than there are.
        """
        try:
            index = sampling.choose(self.total, self.rate)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        black = np.broadcast_to(np.uint8(0), (len(index), self.height, self.width, 3))
        return Clip(black, index, self.rate, self.total)

    def check(self) -> None:
        """Decode all frames and keep none; raises as `read`."""
        self.read((self.total - 1,))  # which comes last

    def describe(self) -> str:
        """Return what tells files apart: a hash of the bytes, or name and size of the file."""
        if isinstance(self.source, bytes):
            return hashlib.blake2b(self.source, digest_size=6).hexdigest()
        return f"{self.source.name}:{self.source.stat().st_size}"


def is_file(source: Any) -> bool:
    """Say whether a video is a file: a path or bytes, not frames."""
    return isinstance(source, str | Path | bytes | VideoFile)


def open_video(source: str | Path | bytes | VideoFile, name: str = "video") -> VideoFile:
    """Look into a video file.

    Args:
        source: path, or the bytes of a file; one that is open already comes back.
        name: what errors call it.

    Raises:
        InputError: no such file, an empty or a damaged one, one without a video stream or without a
            frame; or PyAV is not installed.
    """
    if isinstance(source, VideoFile):
        return source
    if not isinstance(source, bytes):
        source = Path(source).expanduser()
        name = f"{name} ({source.name})"
        if not source.exists():
            raise InputError(f"{name}: there is no file {source}; correct the path")
        if source.is_dir():
            raise InputError(f"{name}: {source} is a folder; give a file")
    if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        raise InputError(f"{name} is an empty file; {_REMEDY}")
    with _Reader(source, name) as reader:
        total = reader.count_frames()
        first = next(reader.decode(), None) if total else None  # [height, width, 3]
        if first is None:
            raise InputError(f"{name} has no frames; leave it out")
        return VideoFile(source, name, total, reader.find_rate(total), first.shape[1], len(first))


def check_reader() -> None:
    """Import what reads video files.

    Raises:
        InputError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        raise InputError(EXTRA) from None


class _Reader:
    """An open file and its first video stream; what is wrong with it is an InputError."""

    def __init__(self, source: Path | bytes, name: str) -> None:
        check_reader()
        self._source, self._name = source, name

    def __enter__(self) -> "_Reader":
        import av

        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else str(self._source)
        # Titles may be of any encoding; PyAV 19 reads those without being asked.
        old = int(av.__version__.partition(".")[0]) < 19
        options = {"metadata_errors": "ignore"} if old else {}
        try:
            self._container = av.open(source, **options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._explain(error) from None
        cover = av.stream.Disposition.attached_pic  # of a piece of music
        streams = [s for s in self._container.streams.video if not s.disposition & cover]
        if not streams:
            self._container.close()
            raise InputError(f"{self._name} has no video stream; leave it out")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"  # the same frames, several at a time
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def count_frames(self) -> int:
        """Count the frames that are shown: edits may leave out some that the file holds."""
        import av

        try:
            packets = [p.is_discard for p in self._container.demux(self._stream) if p.size]
            self._container.seek(0)
        except (av.FFmpegError, OSError) as error:
            raise self._explain(error) from None
        if len(packets) < self._stream.frames:
            raise InputError(
                f"{self._name} holds {len(packets)} of the {self._stream.frames} frames that it"
                f" lists, it is damaged; {_REMEDY}"
            )
        return collections.Counter(packets)[False]

    def find_rate(self, total: int) -> float:
        """Return the frames a second: what the file states, else what its length says."""
        rate = self._stream.average_rate
        if not rate and self._stream.duration and self._stream.time_base:
            rate = Fraction(total) / (self._stream.duration * self._stream.time_base)
        rate = rate or self._stream.guessed_rate
        if not rate:
            raise InputError(f"{self._name} does not state its frames a second; {_REMEDY}")
        return float(rate)

    def decode(self) -> Iterator[np.ndarray]:
        """Yield the frames, uint8 [height, width, 3], turned upright."""
        import av

        try:
            for frame in self._container.decode(self._stream):
                if frame.is_corrupt:
                    raise InputError(f"{self._name} is damaged; {_REMEDY}")
                pixels = frame.to_ndarray(format="rgb24")
                yield np.rot90(pixels, frame.rotation // 90 % 4)  # counted against the clock
        except (av.FFmpegError, OSError) as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or error
        return InputError(f"{self._name} cannot be read as a video ({reason}); {_REMEDY}")
