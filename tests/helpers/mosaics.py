"""Prompts of the tiny DeepSeek-VL2 checkpoints as the arrays that a processor returns."""

import numpy as np
from families.deepseek import CELLS, IMAGE, SIDE
from helpers.prompts import pad_rows

# Text lengths, and (columns, rows, (height, width)) of pictures.
CASES = {
    "one picture": [(4, (1, 1, (20, 31)), 5)],
    "two unequal pictures": [(2, (2, 1, (15, 60)), 3, (1, 2, (50, 20)), 6)],
    "ragged batch": [
        (3, (3, 1, (10, 60)), 5),
        (11,),
        (1, (1, 1, (30, 30)), 2, (2, 2, (40, 44)), 9),
    ],
}


def count_tokens(columns, rows):
    """Count the visual tokens of a picture of these tiles."""
    return CELLS * (CELLS + 1) + 1 + rows * CELLS * (columns * CELLS + 1)


def write_prompts(prompts, seed=0):
    """Return ids and pictures of each prompt: lists, and (tiles, columns, rows, size)."""
    draw, made = np.random.default_rng(seed), []
    for parts in prompts:
        ids, pictures = [], []
        for part in parts:
            if isinstance(part, int):
                ids += draw.integers(0, 255, part).tolist()
                continue
            columns, rows, size = part
            ids += [IMAGE] * count_tokens(columns, rows)
            shape = (1 + columns * rows, 3, SIDE, SIDE)
            pictures.append((draw.standard_normal(shape).astype(np.float32), columns, rows, size))
        made.append((ids, pictures))
    return made


def to_arrays(made, released=False):
    """Return what processors return: one slice behind the other, or as the released one does."""
    arrays = pad_rows([ids for ids, _ in made])
    pictures = [picture for _, own in made for picture in own]
    if pictures:
        arrays["image_sizes"] = np.array([size for *_, size in pictures])
    if released:
        return arrays | _pad_tiles(made) | {"images_seq_mask": arrays["input_ids"] == IMAGE}
    if pictures:
        arrays["pixel_values"] = np.concatenate([picture[0] for picture in pictures])
        arrays["images_spatial_crop"] = np.array([picture[1:3] for picture in pictures])
    return arrays


def _pad_tiles(made):
    """Stack the tiles of every sample, zeros behind them."""
    tiles = max(1, *(sum(len(picture[0]) for picture in own) for _, own in made))
    images = np.zeros((len(made), tiles, 3, SIDE, SIDE), np.float32)
    crops = np.zeros((len(made), max(1, *(len(own) for _, own in made)), 2), np.int64)
    for row, (_, own) in enumerate(made):
        for index, (_, *shape, _) in enumerate(own):
            crops[row, index] = shape
        if own:
            stacked = np.concatenate([picture[0] for picture in own])
            images[row, : len(stacked)] = stacked
    return {"images": images, "images_spatial_crop": crops}
