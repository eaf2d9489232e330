"""Pictures stretched over a grid of square tiles and cut, as InternVL does it.

The grid has nearly the picture's own shape. A picture of several tiles is shown once more as a
whole, behind them:

    1 200 x 800     0 1 2    and    6        tiles of 448 x 448, each stretched from 400 x 400
                    3 4 5
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

from ivc_jax.config import VisionConfig
from ivc_jax.inputs.batch import InputError, Visual
from ivc_jax.inputs.resize import PictureRule

_TOTAL = 64  # tiles that the pictures of a prompt share
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles(PictureRule):
    """As many tiles of one size as fit the shape of a picture, and a thumbnail.

    Attributes:
        tile_size: side of a tile in pixels.
        min_patches: least tiles of a picture; the names are those of the files.
        max_patches: most of them, the thumbnail not counted.
    """

    temporal_patch_size: int = 1
    image_mean: tuple[float, ...] = _IMAGENET_MEAN
    image_std: tuple[float, ...] = _IMAGENET_STD
    tile_size: int = 448
    min_patches: int = 1
    max_patches: int = 12

    def __post_init__(self) -> None:
        if not 1 <= self.min_patches <= self.max_patches:
            raise InputError(
                f"min_patches {self.min_patches} must be in 1..max_patches = {self.max_patches};"
                " correct preprocessor_config.json"
            )

    @classmethod
    def from_model(cls, settings: Mapping[str, Any], vision: VisionConfig) -> Self:
        """Read a parsed `preprocessor_config.json`; the tower says what a tile is.

        Raises:
            InputError: settings that contradict each other or the tower.
        """
        side = vision.table_side * vision.patch_size
        size = settings.get("size") or side
        sizes = set(size.values()) if isinstance(size, Mapping) else {size}
        if sizes != {side}:
            raise InputError(
                f"size {size} of the preprocessor differs from the tile of the model, {side} x"
                f" {side}; use files of one checkpoint"
            )
        tower = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        return cls.from_hf({**settings, **tower, "temporal_patch_size": 1, "tile_size": side})

    def limit(self, max_tiles: int) -> Self:
        """Return the rule with at most so many tiles a picture, the thumbnail not counted."""
        if max_tiles < 1:
            raise InputError(f"max_tiles must be at least 1, got {max_tiles}")
        least = min(self.min_patches, max_tiles)
        return dataclasses.replace(self, min_patches=least, max_patches=max_tiles)

    def share(self, num_images: int) -> Self:
        """Return the rule for a prompt with so many images: 64 tiles in all, or one each."""
        return self.limit(max(1, min(self.max_patches, _TOTAL // max(num_images, 1))))

    def find_tiles(self, width: int, height: int) -> tuple[int, int]:
        """Choose the grid (columns, rows) whose shape is nearest to the picture's.

        Of equally near ones the larger is taken where the picture has more than half its pixels.
        """
        shape, best, nearest = width / height, (1, 1), float("inf")
        for columns, rows in _list_grids(self.min_patches, self.max_patches):
            distance = abs(shape - columns / rows)
            pixels = self.tile_size**2 * columns * rows
            if distance < nearest or (distance == nearest and width * height > 0.5 * pixels):
                best, nearest = (columns, rows), distance
        return best

    def find_grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Say what a picture becomes: a slice for each tile."""
        columns, rows = self.find_tiles(width, height)
        side = self.tile_size // self.patch_size
        return columns * rows + (columns * rows > 1), side, side

    def cut(self, pictures: Sequence[Image.Image]) -> Visual:
        """Stretch a picture and cut it into tiles; several, frames of a video, are a tile each."""
        size = self.tile_size
        columns, rows = (1, 1) if len(pictures) > 1 else self.find_tiles(*pictures[0].size)
        tiles = [cut_tiles(self._stretch(each, columns, rows), size) for each in pictures]
        if columns * rows > 1:
            tiles.append(cut_tiles(self._stretch(pictures[0], 1, 1), size))
        return Visual(*self.patchify(np.concatenate(tiles)), tiles=(columns, rows))

    def _stretch(self, picture: Image.Image, columns: int, rows: int) -> np.ndarray:
        size = columns * self.tile_size, rows * self.tile_size  # width, height
        return np.asarray(picture.resize(size, resample=self.resample))


def cut_tiles(pixels: np.ndarray, side: int) -> np.ndarray:
    """Cut pixels into tiles row by row: [tiles, side, side, channels]."""
    height, width, channels = pixels.shape  # whole tiles
    # [rows, y, columns, x, channels]
    blocks = pixels.reshape(height // side, side, width // side, side, channels)
    return blocks.swapaxes(1, 2).reshape(-1, side, side, channels)


@functools.cache
def _list_grids(least: int, most: int) -> list[tuple[int, int]]:
    """List the grids (columns, rows) of so many tiles, smaller ones first."""
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides]
    fitting = [grid for grid in grids if least <= grid[0] * grid[1] <= most]
    return sorted(fitting, key=lambda grid: grid[0] * grid[1])
