"""Boxes of annotated objects -> which visual tokens hold a part of one.

Boxes go the way of their picture: they are drawn white on black, resized, padded and cut as it is,
whatever the rule, and a token holds an object if any of its pixels is not black.

    box in the picture     cells      tokens
    +-----------+          . # .      0 1 0 0 1 0
    |    +--+   |          . # .
    |    |  |   |
    +----+--+---+
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.footprint import measure_visual
from ivc_jax.inputs.picture import Picture, load_picture
from ivc_jax.inputs.resize import PictureRule

Box = Sequence[float]  # x1, y1, x2, y2 in pixels of the original picture

_LEAST = 1  # grey level of a resized pixel, of 255, from which a box covers a part of it


def mark_samples(
    objects: Any,
    pictures: Sequence[Sequence[Picture]],
    videos: Sequence[Sequence[Any]],
    rule: PictureRule,
    config: ModelConfig,
) -> tuple[np.ndarray | None, ...]:
    """Mark the visual tokens of samples: `Batch.objects`.

    Args:
        objects: for each sample the boxes of each of its images, or None where nobody knows; None
            says nothing of any.
        pictures: images of each sample.
        videos: of each sample, of which no object may be told.
        rule: for images.
        config: of the model.

    Raises:
        InputError: names the sample, the image and the remedy.
    """
    if objects is None:
        return ()
    remedy = "pass objects=[[boxes of image 0 of sample 0, ...], ...]"
    if not isinstance(objects, list | tuple) or len(objects) != len(pictures):
        raise InputError(f"objects must be a list with an entry for each prompt; {remedy}")
    marked = []
    for sample, (own, images) in enumerate(zip(objects, pictures, strict=True)):
        if own is None:
            marked.append(None)
            continue
        if videos[sample]:
            raise InputError(f"sample {sample}: objects are of images, and it has a video")
        if not isinstance(own, list | tuple) or len(own) != len(images):
            raise InputError(
                f"sample {sample}: its objects must be a list of boxes for each of its"
                f" {len(images)} images; {remedy}"
            )
        parts = [np.zeros(0, bool)]
        for index, (boxes, image) in enumerate(zip(own, images, strict=True)):
            name = f"sample {sample}, image {index}"
            size = load_picture(image, name, rule.do_convert_rgb).size
            parts.append(mark_objects(boxes, size, rule.share(len(images)), config, name))
        marked.append(np.concatenate(parts))
    return tuple(marked)


def mark_objects(
    boxes: Sequence[Box],
    size: tuple[int, int],
    rule: PictureRule,
    config: ModelConfig,
    name: str = "image",
) -> np.ndarray:
    """Mark the visual tokens of a picture that hold a part of an object: bool [v].

    A box covers every pixel of the picture that it meets, and a token is marked if any part of it
    is covered, however small, as far as eight bits tell after resizing. Learned tokens hold none.

    Args:
        boxes: of its objects; none marks nothing.
        size: (width, height) of the picture, turned upright.
        rule: that cuts it.
        config: of the model.
        name: what errors call it.

    Raises:
        InputError: a box without area, or outside the picture.
    """
    picture = Image.new("RGB", size)
    for box in boxes:
        ImageDraw.Draw(picture).rectangle(_find_pixels(box, size, name), fill="white")
    plain = dataclasses.replace(
        rule,
        image_mean=(0.0, 0.0, 0.0),  # what pads is black
        resample=int(Image.Resampling.BOX),  # means over pixels: nothing swings over an edge
        do_rescale=False,
        do_normalize=False,
    )
    visual = plain.cut([picture])
    footprint = measure_visual(visual, "image", config)
    covered = (visual.patches >= _LEAST).any(axis=1).reshape(footprint.rows, -1)  # [rows, p]
    row = np.zeros((footprint.rows, footprint.patches), bool)
    row[:, footprint.slots] = covered
    cells = row.reshape(-1, config.vision.merge_area).any(axis=1)  # merged cells of all rows
    source = footprint.source  # [v]
    return cells[np.maximum(source, 0)] & (source >= 0)


def _find_pixels(box: Box, size: tuple[int, int], name: str) -> tuple[int, int, int, int]:
    """Return the first and the last pixel of a box on both axes."""
    try:
        x1, y1, x2, y2 = map(float, box)
    except (TypeError, ValueError):
        raise InputError(f"{name}: a box of an object is x1, y1, x2, y2, got {box!r}") from None
    width, height = size
    if not (x1 < x2 and y1 < y2 and x1 < width and y1 < height and x2 > 0 and y2 > 0):
        raise InputError(
            f"{name}: the box {x1:g} {y1:g} {x2:g} {y2:g} of an object has no area in a picture of"
            f" {width} x {height} pixels; write x1 y1 x2 y2 in pixels of the original picture"
        )
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    return math.floor(x1), math.floor(y1), math.ceil(x2) - 1, math.ceil(y2) - 1
