"""Pictures of DeepSeek-VL2: a view of the whole, and a mosaic of tiles, both padded with grey.

The shape of the mosaic is the candidate that shows most of the picture's own pixels, and of those
the one with the least padding. A wide picture among candidates of 1 x 1, 2 x 1 and 1 x 2 tiles:

    whole   . . .        mosaic    p p p|p p p
            p p p                  p p p|p p p       .: grey
            . . .
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image, ImageOps

from ivc_jax.inputs.batch import InputError, Visual
from ivc_jax.inputs.patches import cut_patches
from ivc_jax.inputs.resize import PictureRule, normalize
from ivc_jax.inputs.tiles import cut_tiles

# (width, height) in tiles, of at most nine; the order breaks ties.
_SHAPES = (
    *((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2), (1, 5), (5, 1), (1, 6)),
    *((6, 1), (2, 3), (3, 2), (1, 7), (7, 1), (1, 8), (8, 1), (2, 4), (4, 2), (1, 9), (9, 1)),
    (3, 3),
)
_FEW_IMAGES = 2  # of more in a prompt none is cut into tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mosaic(PictureRule):
    """DeepSeek-VL2's `processor_config.json`.

    Attributes:
        view_size: side of the view of the whole and of a tile, in pixels.
        candidate_resolutions: (width, height) of the mosaics to choose from, in pixels; () has
            those of at most nine tiles.
    """

    pads: ClassVar[bool] = True

    view_size: int
    candidate_resolutions: tuple[tuple[int, int], ...] = ()
    temporal_patch_size: int = 1
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed `processor_config.json`.

        Raises:
            InputError: candidates that are no whole tiles.
        """
        names = {"merge_size": "downsample_ratio", "do_normalize": "normalize"}
        config = {**config, **{ours: config.get(theirs) for ours, theirs in names.items()}}
        side = config["view_size"]
        listed = config.get("candidate_resolutions")
        if not listed:
            listed = [(side * across, side * down) for across, down in _SHAPES]
        shapes = tuple((int(width), int(height)) for width, height in listed)
        if any(length % side or length < 1 for shape in shapes for length in shape):
            raise InputError(
                f"candidate_resolutions {list(shapes)} must be multiples of the tower's {side}"
                " pixels; use files of one checkpoint"
            )
        return super().from_hf({**config, "candidate_resolutions": shapes})

    def limit(self, max_tiles: int) -> Self:
        """Return the rule with the candidates of at most so many tiles.

        Raises:
            InputError: there is none.
        """
        tile = self.view_size**2
        shapes = tuple(
            shape for shape in self.candidate_resolutions if shape[0] * shape[1] <= max_tiles * tile
        )
        if not shapes:
            least = min(across * down for across, down in self.candidate_resolutions) // tile
            raise InputError(f"max_tiles must be at least {least}, got {max_tiles}")
        return dataclasses.replace(self, candidate_resolutions=shapes)

    def share(self, num_images: int) -> Self:
        """Return the rule for a prompt with so many images: of more than two none is cut."""
        if num_images <= _FEW_IMAGES:
            return self
        side = self.view_size
        return dataclasses.replace(self, candidate_resolutions=((side, side),))

    def find_tiles(self, width: int, height: int) -> tuple[int, int]:
        """Choose (columns, rows) of the mosaic."""

        def judge(shape: tuple[int, int]) -> tuple[int, int]:
            scale = min(shape[0] / width, shape[1] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return -shown, shape[0] * shape[1] - shown

        best = min(self.candidate_resolutions, key=judge)
        return best[0] // self.view_size, best[1] // self.view_size

    def find_grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Say what a picture becomes: a slice for the whole and one for every tile."""
        columns, rows = self.find_tiles(width, height)
        side = self.view_size // self.patch_size
        return 1 + columns * rows, side, side

    def cut(self, pictures: Sequence[Image.Image]) -> Visual:
        """Pad a picture to both shapes, cut tiles row by row, and all of them into patches."""
        (picture,) = pictures
        (width, height), side = picture.size, self.view_size
        columns, rows = self.find_tiles(width, height)
        whole, mosaic = (
            cut_tiles(np.asarray(self._pad(picture, shape)), side)
            for shape in ((side, side), (side * columns, side * rows))
        )
        pixels = normalize(self, np.concatenate([whole, mosaic]))  # [t, 3, side, side]
        patches, grid = cut_patches(
            pixels, self.patch_size, self.merge_size, self.temporal_patch_size
        )
        return Visual(patches, grid, tiles=(columns, rows), size=(height, width))

    def _pad(self, picture: Image.Image, shape: tuple[int, int]) -> Image.Image:
        grey = tuple(int(255 * mean) for mean in self.image_mean)
        return ImageOps.pad(picture, shape, method=self.resample, color=grey)
