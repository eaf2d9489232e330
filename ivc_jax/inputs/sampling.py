"""Which frames of a video file are shown, as transformers' video processors choose them.

Ten frames, four of them shown:

    file           0 1 2 3 4 5 6 7 8 9
    SampleStarts   0   2     5   7           the first frame of each of four equal parts
    SampleMiddles    1   3     6   8         the middle frame
    SampleEnds     0     3     6     9       from the first frame of all to the last
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ivc_jax.inputs.batch import InputError

_USUAL = 8  # frames of a video of InternVL


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What is shown of video files, instead of what a checkpoint says; None leaves that.

    Attributes:
        fps: frames a second.
        num_frames: frames of every video; not together with `fps`.
        min_frames: least frames of a video, by `fps`, as far as it has them.
        max_frames: most frames, likewise.
        min_pixels: least area of a resized frame, or of all frames together where the checkpoint
            counts them so (Qwen3-VL); frames that are given as such are bound too.
        max_pixels: largest area, likewise.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def list_given(self) -> dict[str, float]:
        """Return what is not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __post_init__(self) -> None:
        for name, value in self.list_given().items():
            if not 0 < value < float("inf"):
                raise InputError(f"{name} of videos must be positive, got {value}")
        if self.fps is not None and self.num_frames is not None:
            raise InputError("fps and num_frames exclude each other; leave out one")
        least, most = self.min_frames or 1, self.max_frames or float("inf")
        if self.num_frames is not None and (self.min_frames or self.max_frames):
            raise InputError("min_frames and max_frames bound fps; leave them out with num_frames")
        if least > most:
            raise InputError(f"min_frames {least} exceeds max_frames {most}; give bounds that fit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSampling(abc.ABC):
    """How many frames of a file are shown, and which.

    Attributes:
        fps: frames a second.
        num_frames: frames of every video, instead.
        min_frames: least frames by `fps`, as far as a video has them.
        max_frames: most frames by `fps`; None is no bound.
        depth: frames of a temporal slice.
    """

    fps: float | None = 2.0  # transformers leaves it to the caller; this is what the papers do
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int | None = 768
    depth: int = 2

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any], depth: int) -> Self:
        """Read the settings of a video processor; what they lack has the defaults.

        Raises:
            InputError: settings that contradict each other.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"depth"}
        found = {name: value for name in names if (value := settings.get(name)) is not None}
        if {"fps", "num_frames"} <= found.keys():
            raise InputError("video settings state fps and num_frames; leave one")
        if "num_frames" in found:
            found["fps"] = None
        return cls(**found, depth=depth)

    def change(self, options: VideoOptions) -> Self:
        """Return the rule with the numbers that are given; a bound moves the other along."""
        if options.num_frames is not None:
            return dataclasses.replace(self, fps=None, num_frames=options.num_frames)
        fps, low, high = options.fps, options.min_frames, options.max_frames
        if (fps, low, high) == (None, None, None):
            return self
        least = self.min_frames if low is None else low
        most = self.max_frames if high is None else high
        if most is not None and least > most:
            least, most = (least, least) if high is None else (most, most)
        fps = fps or self.fps or FrameSampling.fps  # bounds are those of a rate
        return dataclasses.replace(
            self, fps=fps, num_frames=None, min_frames=least, max_frames=most
        )

    def choose(self, total: int, rate: float) -> tuple[int, ...]:
        """Choose frames of a video: their numbers, ascending.

        Args:
            total: its frames.
            rate: frames a second.

        Raises:
            InputError: more frames are asked for than there are.
        """
        if self.num_frames is not None:
            return self._spread(self._round(self.num_frames), total)
        wanted = total / rate * (self.fps or rate)
        return self._spread(self._bound(wanted, total), total)

    def _round(self, num_frames: int) -> int:
        return num_frames

    def _bound(self, wanted: float, total: int) -> int:
        """Return how many frames are shown where so many are wanted by the rate."""
        return min(max(int(wanted), self.min_frames), self.max_frames or total, total)

    @abc.abstractmethod
    def _spread(self, count: int, total: int) -> tuple[int, ...]:
        """Spread frames over the video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleStarts(FrameSampling):
    """The first frame of equal parts, whole slices of them: Qwen2-VL and Qwen2.5-VL."""

    def _round(self, num_frames: int) -> int:
        return max(1, round(num_frames / self.depth)) * self.depth

    def _bound(self, wanted: float, total: int) -> int:
        most = min(self.max_frames or total, total) // self.depth * self.depth
        slices = int(min(max(wanted, self.min_frames), most) // self.depth)
        # a file of one frame has no whole slice
        return max(1, slices) * self.depth if total >= self.depth else total

    def _spread(self, count: int, total: int) -> tuple[int, ...]:
        _refuse_more(count, total)
        return _step(0.0, count, total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleEnds(FrameSampling):
    """From the first frame to the last: Qwen3-VL."""

    def _spread(self, count: int, total: int) -> tuple[int, ...]:
        return tuple(np.linspace(0, total - 1, count).round().astype(int).tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleMiddles(FrameSampling):
    """The middle frame of equal parts: InternVL.

    Where nobody says how many there are eight, as in its documentation, or all of a shorter file.

    Attributes:
        initial_shift: number of the first; True is the middle of the first part.
    """

    fps: float | None = None
    min_frames: int = 1
    max_frames: int | None = None
    initial_shift: bool | float = True

    def choose(self, total: int, rate: float) -> tuple[int, ...]:
        """Choose frames of a video; see `FrameSampling.choose`."""
        if self.fps is None and self.num_frames is None:
            return self._spread(min(_USUAL, total), total)
        return super().choose(total, rate)

    def _spread(self, count: int, total: int) -> tuple[int, ...]:
        _refuse_more(count, total)
        shift = total / count / 2 if self.initial_shift is True else float(self.initial_shift)
        return _step(shift, count, total)


def _step(start: float, count: int, total: int) -> tuple[int, ...]:
    """List `count` frames from `start` on, a step of total / count each.

    They are float32 before they are cut off, as in `torch.arange`: what is a hair below a whole
    number in float64 is that number there. (There the step's own error may add a frame behind the
    last one of the file, which no file has: it is left out.)
    """
    at = start + total / count * np.arange(count)
    found = at.astype(np.float32).astype(int)
    return tuple(found[found < total].tolist())


def _refuse_more(count: int, total: int) -> None:
    if count > total:
        raise InputError(f"{count} frames are asked for of a video that has {total}; ask for fewer")
