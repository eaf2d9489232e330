"""Prompts of the tiny checkpoints as the arrays that a Hugging Face processor returns."""

import numpy as np

IMAGE, VIDEO, START, END = 262, 263, 259, 260  # ids of the tiny tokenizer's marks
PATCH_VALUES = 3 * 2 * 4 * 4

CASES = {
    "text only": [(9,)],
    "one image": [(4, ("image", (1, 4, 6)), 5)],
    "two unequal images": [(2, ("image", (1, 4, 6)), 3, ("image", (1, 8, 4)), 5)],
    "ragged batch": [
        (3, ("image", (1, 6, 4)), 5),
        (11,),
        (1, ("image", (1, 4, 4)), 2, ("image", (1, 2, 8)), 9),
    ],
    "video": [(3, ("video", (3, 4, 6)), 4)],
    "image and video": [(2, ("image", (1, 4, 4)), 2, ("video", (2, 4, 2)), 6), (5,)],
}


def prompt(draw, *parts, stamped=False):
    """Join text lengths (int) and visuals ("image" or "video", (t, h, w) in patches) into ids.

    `stamped` writes every temporal slice of a video by itself, with text in front of it.
    """
    ids = []
    for part in parts:
        if isinstance(part, int):
            ids += draw.integers(0, 255, part).tolist()
        else:
            mark = IMAGE if part[0] == "image" else VIDEO
            slices = part[1][0] if stamped and part[0] == "video" else 1
            for _ in range(slices):
                ids += draw.integers(0, 255, 3 if slices > 1 else 0).tolist()
                ids += [START, *[mark] * (np.prod(part[1]) // 4 // slices), END]
    return ids


def pad_rows(rows, side="left"):
    """Pad ids to one width; what they hold where the mask is 0 is nothing to look at."""
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), 7), np.zeros((len(rows), width), np.int64)
    for row, target, valid in zip(rows, ids, mask, strict=True):
        where = slice(width - len(row), None) if side == "left" else slice(len(row))
        target[where], valid[where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def hf_arrays(prompts, side="left", seed=0, seconds=None, stamped=False):
    """Build what an HF processor returns for prompts made of `prompt` parts.

    `seconds` lie between the slices of every video; None is a family without absolute time;
    `stamped` one with time stamps.
    """
    draw = np.random.default_rng(seed)
    rows = [prompt(draw, *parts, stamped=stamped) for parts in prompts]
    arrays = pad_rows(rows, side)
    visuals = [part for parts in prompts for part in parts if not isinstance(part, int)]
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        grids = [size for name, size in visuals if name == kind]
        if grids:
            arrays[grid] = np.array(grids)
            count = int(arrays[grid].prod(axis=1).sum())
            arrays[pixels] = draw.standard_normal((count, PATCH_VALUES)).astype(np.float32)
    if seconds is not None and "video_grid_thw" in arrays:
        arrays["second_per_grid_ts"] = np.full(len(arrays["video_grid_thw"]), seconds, np.float32)
    return arrays
