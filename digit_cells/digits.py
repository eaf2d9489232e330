"""The handwritten digits that scenes are made of, split into training and test images."""

import dataclasses
import functools
import pathlib

import numpy as np

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class DigitSet:
    """Digit images of one split.

    `tiles` [n, 8, 8] uint8 holds ink from 0 to 16, `labels` [n] the class, `source` [n] the row in
    the full set of 1,797.
    """

    tiles: np.ndarray
    labels: np.ndarray
    source: np.ndarray


@functools.cache
def load(split: str) -> DigitSet:
    """Load the digits of one split; every fifth image of the full set is a test image."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    with np.load(pathlib.Path(__file__).with_name("digits.npz")) as stored:
        tiles, labels = stored["tiles"], stored["labels"]
    source = np.arange(len(labels))
    source = source[(source % 5 == 0) == (split == "test")]
    return DigitSet(tiles[source], labels[source], source)
