"""Small video files, written by the tests that read them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


def draw_frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw smooth frames, uint8 [count, height, width, 3], no two alike."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]


def write_video(
    path: Path,
    frames: np.ndarray,
    rate: float = 10,
    codec: str = "libx264",
    turn: int = 0,
    title: str = "",
    **options: str,
) -> Path:
    """Write frames as a video file; `turn` is by how many degrees players turn it."""
    import av

    with av.open(str(path), mode="w", options=options) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        container.start_encoding()  # so that a file without frames is a file
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if len(frames):
            container.mux(stream.encode())
    return path


def decode(path: Any) -> np.ndarray:
    """Return all frames of a file."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
