"""Bounds on the pixels of videos, as the video processors of the Qwen families have them."""

import dataclasses

from ivc_jax.inputs.resize import SmartResize, smart_resize


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipResize(SmartResize):
    """A rule for videos whose bounds hold for the pixels of all frames together.

    The defaults are those of its video processor. With `cap_pixels_per_frame` a frame has at most
    `max_video_tokens` tokens as well.
    """

    patch_size: int = 16
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    min_pixels: int = 128 * 32 * 32
    max_pixels: int = 768 * 32 * 32
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 768

    def find_frame_size(self, frames: int, width: int, height: int) -> tuple[int, int]:
        """Return the (height, width) of each of so many frames."""
        if not self.do_resize:
            return self.find_size(width, height)
        factor, depth = self.patch_size * self.merge_size, self.temporal_patch_size
        if min(height, width) < factor:  # a side of one step at least
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        most = self.max_pixels
        if self.cap_pixels_per_frame:
            share = min(self.max_video_tokens * factor**2, most // frames)
            most = frames * max(share, int(1.05 * self.min_pixels))
        # Frames are counted in whole slices, halves to even: 5 frames count as 4.
        counted = max(1, round(frames / depth)) * depth
        return smart_resize(height, width, factor, self.min_pixels, most, frames, counted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameResize(SmartResize):
    """A rule for videos whose bounds hold for each frame: Qwen2-VL's and Qwen2.5-VL's.

    The defaults are those of its video processor. With `cap_pixels_per_frame` all frames together
    have at most nine tenths of `max_video_tokens` as well, as far as the least area allows.
    """

    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 128000

    def find_frame_size(self, frames: int, width: int, height: int) -> tuple[int, int]:
        """Return the (height, width) of each of so many frames."""
        if not (self.do_resize and self.cap_pixels_per_frame):
            return self.find_size(width, height)
        factor = self.patch_size * self.merge_size
        whole = int(self.max_video_tokens * factor**2 * 0.9)  # pixels of all slices
        share = min(self.max_pixels, whole * self.temporal_patch_size // frames)
        most = max(share, int(1.05 * self.min_pixels))
        return smart_resize(height, width, factor, self.min_pixels, most)
