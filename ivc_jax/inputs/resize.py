"""From a picture to patches, bit for bit what Hugging Face's PIL processors make.

A rule says what a picture of some size is resized to, and cuts it. `SmartResize` is Qwen2-VL's:
both sides become multiples of patch_size * merge_size and the area lies between min_pixels and
max_pixels. Patches of one merged token are neighbours (merge 2, 4 x 4):

    patch index    0  1 | 4  5
                   2  3 | 6  7
                  ------+------
                   8  9 | 12 13
                  10 11 | 14 15

EXIF orientation is the matter of `inputs.picture`; nothing is turned here.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ivc_jax.inputs.batch import InputError, Visual
from ivc_jax.inputs.picture import Picture, load_picture

MAX_ASPECT_RATIO = 200  # of Hugging Face's smart_resize
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureRule(abc.ABC):
    """What of a `preprocessor_config.json` every rule reads; the defaults are those of CLIP.

    Sizes are in pixels. `resample` is PIL's number of the filter (3 is bicubic). A rule that `pads`
    pictures to a shape notes their sizes (`Visual.size`).
    """

    pads: ClassVar[bool] = False

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    image_mean: tuple[float, ...] = _CLIP_MEAN
    image_std: tuple[float, ...] = _CLIP_STD
    resample: int = int(Image.Resampling.BICUBIC)
    rescale_factor: float = 1 / 255
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    do_convert_rgb: bool = True

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the fields of this class from a parsed `preprocessor_config.json`.

        Raises:
            InputError: settings that contradict each other.
        """
        found = {field.name: config.get(field.name) for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in found.items() if value is not None}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    def bound(self, min_pixels: int | None, max_pixels: int | None) -> Self:
        """Return the rule with other bounds on the area of a picture; None leaves one as it is.

        Raises:
            InputError: bounds that are impossible, or that the rule does not have.
        """
        if min_pixels is not None or max_pixels is not None:
            raise InputError(
                "this checkpoint does not resize pictures within bounds; leave out min_pixels and"
                " max_pixels"
            )
        return self

    def pad(self, pad: bool) -> Self:
        """Return the rule that pads pictures to its square, or cuts their middle out.

        Raises:
            InputError: a rule that does neither.
        """
        del pad
        raise InputError("this checkpoint does not make pictures square; leave out pad")

    @abc.abstractmethod
    def find_grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Say what a picture of this size in pixels becomes: (t, h, w) in patches, t its slices.

        Raises:
            InputError: a size that the rule cannot use.
        """

    def find_frame_size(self, frames: int, width: int, height: int) -> tuple[int, int]:
        """Return the (height, width) of each of so many frames: that of a picture."""
        del frames
        _, rows, columns = self.find_grid(width, height)
        return rows * self.patch_size, columns * self.patch_size

    def find_tiles(self, width: int, height: int) -> tuple[int, int]:
        """Say how many tiles (columns, rows) a picture of this size in pixels is cut into."""
        del width, height
        return 1, 1

    def limit(self, max_tiles: int) -> Self:
        """Return the rule with at most so many tiles a picture.

        Raises:
            InputError: a number that is impossible, or a rule that cuts none.
        """
        del max_tiles
        raise InputError("this checkpoint does not cut pictures into tiles; leave out max_tiles")

    def share(self, num_images: int) -> Self:
        """Return the rule for a prompt with so many images."""
        del num_images
        return self

    def show(self, picture: Image.Image) -> Image.Image:
        """Return what of a picture the model sees, at any size: the whole, unless it is cut off."""
        return picture

    @abc.abstractmethod
    def cut(self, pictures: Sequence[Image.Image]) -> Visual:
        """Cut a picture, or the frames of a video, all of one size, into patches.

        Raises:
            InputError: as `find_grid`.
        """

    def patchify(self, frames: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Normalise frames and cut them into flat patches.

        The last frame is repeated up to a multiple of temporal_patch_size.

        Args:
            frames: uint8 [frames, height, width, channels], sides multiples of patch * merge.

        Returns:
            float32 [t * h * w, channels * temporal_patch * patch * patch] and the grid (t, h, w).
        """
        patch, merge, depth = self.patch_size, self.merge_size, self.temporal_patch_size
        count, height, width, channels = frames.shape
        t, h, w = -(-count // depth), height // patch, width // patch  # in slices and patches
        cells = h // merge, w // merge  # h', w'
        # [t, h', w', merge, merge, channel, depth, y, x]
        values = np.empty((t, *cells, merge, merge, channels, depth, patch, patch), np.float32)
        # Pixels have 256 values, so normalising is a table. They are looked up in the order of the
        # picture, and once: of an image both frames of its slice are the same (0.43 ms for 192 x
        # 192 pixels, 0.73 looked up patch by patch).
        for channel, table in enumerate(_tabulate(self, channels)):
            for frame in range(t * depth):
                if frame < count:
                    plane = table.take(frames[frame, :, :, channel])  # [height, width]
                    # [h', merge, y, w', merge, x] -> [h', w', merge, merge, y, x]
                    blocks = plane.reshape(cells[0], merge, patch, cells[1], merge, patch)
                    blocks = blocks.transpose(0, 3, 1, 4, 2, 5)
                values[frame // depth, ..., channel, frame % depth, :, :] = blocks
        return values.reshape(t * h * w, channels * depth * patch * patch), (t, h, w)


def normalize(rule: PictureRule, pixels: np.ndarray) -> np.ndarray:
    """Normalise pixels uint8 [t, height, width, 3]: float32 [t, 3, height, width]."""
    tables = _tabulate(rule, pixels.shape[3])
    return np.stack([table.take(pixels[..., i]) for i, table in enumerate(tables)], axis=1)


@functools.lru_cache(maxsize=16)
def _tabulate(rule: PictureRule, channels: int) -> np.ndarray:
    """Map (channel, pixel value) to the normalised float32, with HF's order of roundings."""
    values = np.arange(256, dtype=np.float64)  # in float64 first, as there
    if rule.do_rescale:
        values = values * rule.rescale_factor
    table = np.tile(values.astype(np.float32), (channels, 1))  # [channels, 256]
    if rule.do_normalize:
        mean = np.array(rule.image_mean, np.float32)[:, None]
        # [channels, 256]
        table = (table - mean) / np.array(rule.image_std, np.float32)[:, None]
    return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmartResize(PictureRule):
    """One slice a picture, of nearly its own shape, its area within bounds."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise InputError(
                f"min_pixels {self.min_pixels} must be in 1..max_pixels = {self.max_pixels};"
                " correct preprocessor_config.json"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed `preprocessor_config.json`.

        Bounds may be `min_pixels` / `max_pixels`, at the top or in `size`, or `size`'s
        `shortest_edge` / `longest_edge` (areas too, despite the names); the top level wins.

        Raises:
            InputError: impossible bounds.
        """
        size = config.get("size") or {}
        bounds = {
            "min_pixels": size.get("shortest_edge", size.get("min_pixels")),
            "max_pixels": size.get("longest_edge", size.get("max_pixels")),
        }
        stated = {name: value for name, value in config.items() if value is not None}
        return super().from_hf(bounds | stated)

    def bound(self, min_pixels: int | None, max_pixels: int | None) -> Self:
        """Return the rule with other bounds on the area of a picture; None leaves one as it is."""
        low = self.min_pixels if min_pixels is None else min_pixels
        high = self.max_pixels if max_pixels is None else max_pixels
        if (low, high) == (self.min_pixels, self.max_pixels):
            return self
        if not self.do_resize:
            return super().bound(min_pixels, max_pixels)
        if not 1 <= low <= high:
            raise InputError(
                f"min_pixels {low} must be in 1..max_pixels = {high}; give bounds that fit"
            )
        return dataclasses.replace(self, min_pixels=low, max_pixels=high)

    def find_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (height, width) in pixels at which a picture is cut into patches.

        Raises:
            InputError: an aspect ratio above 200, or sides that do not fit and may not be changed.
        """
        factor = self.patch_size * self.merge_size
        if self.do_resize:
            return smart_resize(height, width, factor, self.min_pixels, self.max_pixels)
        if height % factor or width % factor:
            raise InputError(
                f"it is {height} x {width}, not multiples of {factor}; resize it or set do_resize"
            )
        return height, width

    def find_grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Say what a picture becomes: one slice."""
        rows, columns = self.find_size(width, height)
        return 1, rows // self.patch_size, columns // self.patch_size

    def cut(self, pictures: Sequence[Image.Image]) -> Visual:
        """Resize pictures of one size and cut them into patches."""
        height, width = self.find_frame_size(len(pictures), *pictures[0].size)
        if self.do_resize:
            pictures = [each.resize((width, height), resample=self.resample) for each in pictures]
        return Visual(*self.patchify(np.stack([np.asarray(picture) for picture in pictures])))


def smart_resize(
    height: int,
    width: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    frames: int = 1,
    counted: int = 1,
) -> tuple[int, int]:
    """Choose the size that an image is resized to: (height, width), multiples of `factor`.

    The area ends in min_pixels..max_pixels and the aspect ratio is kept as closely as the steps
    allow (a strip thinner than one step may leave the upper bound). Python rounds halves to even.

    Args:
        height: of the image.
        width: of the image.
        factor: of both sides.
        min_pixels: least area, of all frames together.
        max_pixels: largest area, likewise.
        frames: of a video.
        counted: as how many they are held against the bounds.

    Raises:
        InputError: the aspect ratio exceeds 200.
    """
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InputError(
            f"aspect ratio {ratio:.0f} exceeds {MAX_ASPECT_RATIO}; crop or pad the image"
        )
    rows, columns = round(height / factor), round(width / factor)  # in steps of `factor`
    area = counted * rows * columns * factor * factor
    if area > max_pixels:
        # of each side, so that the area is max_pixels
        shrink = math.sqrt((frames * height * width) / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))  # floor: not above the bound again
        columns = max(1, math.floor(width / shrink / factor))
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows = math.ceil(height * grow / factor)  # ceil: nor below it
        columns = math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def process_image(source: Picture, rule: PictureRule, name: str = "image") -> Visual:
    """Turn one picture into patches.

    Raises:
        InputError: see `load_picture` and the rule; the message starts with `name`.
    """
    return _cut([load_picture(source, name, rule.do_convert_rgb)], rule, name)


def process_video(
    frames: Sequence[Picture] | np.ndarray, rule: PictureRule, name: str = "video"
) -> Visual:
    """Turn the frames of one video into patches, grid (t, h, w).

    Frames are resized by PIL too; Hugging Face resizes videos with torchvision, which rounds a
    little differently.

    Args:
        frames: pictures of one size, or a uint8 array [frames, height, width, 3].
        rule: of the video processor.
        name: what errors call it.

    Raises:
        InputError: no frame, frames of several sizes, or an unreadable frame.
    """
    is_array = isinstance(frames, np.ndarray)
    if not isinstance(frames, Sequence | np.ndarray) or isinstance(frames, str):
        raise InputError(f"{name} is no video; pass a list of frames or [frames, height, width, 3]")
    if is_array and frames.ndim != 4:
        raise InputError(f"{name} has shape {frames.shape}; pass [frames, height, width, 3]")
    pictures = [
        load_picture(frame, f"{name}, frame {index}", rule.do_convert_rgb)
        for index, frame in enumerate(frames)
    ]
    if not pictures:
        raise InputError(f"{name} has no frames; leave it out")
    sizes = {picture.size for picture in pictures}  # (width, height), as PIL has it
    if len(sizes) > 1:
        raise InputError(f"{name} has frames of sizes {sorted(sizes)}; resize them to one size")
    return _cut(pictures, rule, name)


def _cut(pictures: Sequence[Image.Image], rule: PictureRule, name: str) -> Visual:
    try:
        return rule.cut(pictures)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
