"""Patches of pixels that are normalised already."""

import numpy as np

from ivc_jax.inputs.footprint import sort_patches


def cut_patches(
    pixels: np.ndarray, patch: int, merge: int, depth: int
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut pixels [t, channels, height, width] into patches; what is no whole patch is left out.

    Cells at the right and lower borders may lack patches.

    Args:
        pixels: of pictures, or tiles, of one size.
        patch: side of a patch in pixels.
        merge: of a cell in patches.
        depth: a patch holds the same frame so often.

    Returns:
        float32 [t * h * w, channels * depth * patch * patch] and the grid (t, h, w).
    """
    t, channels, height, width = pixels.shape
    h, w = height // patch, width // patch
    blocks = pixels[:, :, : h * patch, : w * patch].reshape(t, channels, h, patch, w, patch)
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5)  # [t, h, w, channels, y, x]
    blocks = np.repeat(blocks[:, :, :, :, None], depth, axis=4)
    patches = blocks.reshape(t, h * w, -1)[:, sort_patches(h, w, merge)]
    return patches.reshape(t * h * w, -1), (t, h, w)
