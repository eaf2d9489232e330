"""The videos of a batch, files or frames, as clips that know when each frame is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.picture import Picture
from ivc_jax.inputs.sampling import FrameSampling, VideoOptions
from ivc_jax.inputs.video import Clip, VideoFile, is_file, open_video

Video = str | Path | bytes | VideoFile | Clip | Sequence[Picture] | np.ndarray

_USUAL_RATE = 2.0  # of frames that come without one: that at which Qwen2.5-VL samples


def load_clip(video: Video, rate: float | None, sampling: FrameSampling, name: str) -> Clip:
    """Return the frames of a video that are shown.

    Args:
        video: a file, a clip, which stays as it is, or frames, which are all shown.
        rate: frames a second: those that are shown of a file, those that there are of frames. None
            leaves it to `sampling`, or is 2.
        sampling: which frames of a file are shown.
        name: what errors call it.

    Raises:
        InputError: as `open_video` and `VideoFile.sample`, or no video at all.
    """
    if isinstance(video, Clip):
        return video
    if is_file(video):
        if rate is not None:
            sampling = sampling.change(VideoOptions(fps=rate))
        return open_video(video, name).sample(sampling)
    if not isinstance(video, Sequence | np.ndarray):
        raise InputError(
            f"{name} is no video; pass a file, a list of frames or [frames, height, width, 3]"
        )
    count = len(video)
    return Clip(video, tuple(range(count)), rate or _USUAL_RATE, count)


def list_rates(fps: Any, video_lists: Sequence[list]) -> list[list[float | None]]:
    """Return the frame rate of each video of each sample; None where nobody says.

    Args:
        fps: one number, for each sample a list with one a video, or None.
        video_lists: the videos of each sample.

    Raises:
        InputError: no positive number, or not one a video.
    """
    if fps is None:
        return [[None] * len(videos) for videos in video_lists]
    if isinstance(fps, int | float | np.number):
        fps = [[fps] * len(videos) for videos in video_lists]
    rates = list_per_sample(fps, len(video_lists), "frame rate")
    for sample, (row, videos) in enumerate(zip(rates, video_lists, strict=True)):
        if len(row) != len(videos) or not all(0 < rate < float("inf") for rate in row):
            raise InputError(
                f"sample {sample}: fps {row} must be a positive number for each of its"
                f" {len(videos)} videos; pass fps=2.0 or fps=[[rate of video 0, ...], ...]"
            )
    return rates


def list_per_sample(lists: Any, num_samples: int, kind: str) -> list[list]:
    """Return one list a sample.

    Args:
        lists: a list with a list, or None, for each sample; None has nothing.
        num_samples: how many there are.
        kind: what errors call the entries.

    Raises:
        InputError: another form.
    """
    if lists is None:
        return [[] for _ in range(num_samples)]
    remedy = f"pass {kind}s=[[first {kind} of sample 0, ...], ...]"
    if not isinstance(lists, list | tuple):
        raise InputError(f"{kind}s must be a list with a list for each sample; {remedy}")
    if len(lists) != num_samples:
        raise InputError(f"{len(lists)} lists of {kind}s for {num_samples} prompts; {remedy}")
    for sample, entry in enumerate(lists):
        if entry is not None and not isinstance(entry, list | tuple):
            raise InputError(
                f"sample {sample}: its {kind}s are a {type(entry).__name__}, not a list; {remedy}"
            )
    return [list(entry or ()) for entry in lists]
