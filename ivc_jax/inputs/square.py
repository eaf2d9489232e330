"""Pictures of one square size, as CLIP's processors make them.

cut (the processor's)                pad (the original code's)
the shorter side becomes S,          the picture is laid on a square of the mean colour,
of the longer the middle stays       whose side becomes S

    +--+-----+--+                        +-----------+
    |  |     |  |                        |...........|
    |  |     |  |                        |  picture  |
    +--+-----+--+                        |...........|
       `--S--'                           +-----------+
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

from ivc_jax.config import VisionConfig
from ivc_jax.inputs.batch import InputError, Visual
from ivc_jax.inputs.resize import PictureRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(PictureRule):
    """Every picture becomes a square of `side` pixels, one slice.

    Attributes:
        side: in pixels, that of the tower.
        do_pad: pad to a square with the mean colour first, as LLaVA's original code does
            (image_aspect_ratio "pad"); otherwise the middle of the picture is cut out.
    """

    side: int
    do_pad: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], vision: VisionConfig) -> Self:
        """Read a parsed `preprocessor_config.json`.

        Raises:
            InputError: pictures of another size than the tower's, or neither resized nor cut.
        """
        side = vision.table_side * vision.patch_size
        stated = {
            "size": _read_side(config.get("size") or side, "shortest_edge"),
            "crop_size": _read_side(config.get("crop_size") or side, "height", "width"),
        }
        for name, found in stated.items():
            if found != side:
                raise InputError(
                    f"{name} of the preprocessor is {config[name]}, the tower takes {side} x"
                    f" {side} pixels; use files of one checkpoint"
                )
        for name in ("do_resize", "do_center_crop"):
            if config.get(name) is False:
                raise InputError(f"{name}=false leaves pictures unequal; set it to true")
        own = {"patch_size": vision.patch_size, "merge_size": 1, "temporal_patch_size": 1}
        return super().from_hf({**config, **own, "side": side})

    def pad(self, pad: bool) -> Self:
        """Return the rule with or without padding."""
        return dataclasses.replace(self, do_pad=pad)

    def find_grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Say what a picture becomes: the same whatever its size."""
        del width, height
        return 1, self.side // self.patch_size, self.side // self.patch_size

    def cut(self, pictures: Sequence[Image.Image]) -> Visual:
        """Bring pictures to the square and cut it into patches."""
        return Visual(*self.patchify(np.stack([np.asarray(self.show(each)) for each in pictures])))

    def show(self, picture: Image.Image) -> Image.Image:
        """Return the square that the model sees."""
        return self._fit(self._pad(picture) if self.do_pad else picture)

    def _pad(self, picture: Image.Image) -> Image.Image:
        side, (width, height) = max(picture.size), picture.size
        colour = tuple(int(255 * mean) for mean in self.image_mean)
        square = Image.new(picture.mode, (side, side), colour)
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        return square

    def _fit(self, picture: Image.Image) -> Image.Image:
        """Resize the shorter side and cut the middle of the longer out."""
        shorter = min(picture.size)
        # of the longer side the fraction of a pixel is dropped
        size = [self.side * length // shorter for length in picture.size]
        left, top = ((length - self.side) // 2 for length in size)
        resized = picture.resize(size, resample=self.resample)
        return resized.crop((left, top, left + self.side, top + self.side))


def _read_side(size: Any, *names: str) -> int | None:
    """Return the side that a size states, in either of its spellings; None if sides differ."""
    if not isinstance(size, Mapping):
        return int(size)
    sides = {size.get(name) for name in (names if names[0] in size else ("height", "width"))}
    return sides.pop() if len(sides) == 1 else None
