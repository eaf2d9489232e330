"""Answers as text -> values that can be scored (boxes, yes/no, words).

The rules are those of the public evaluation scripts of the methods, one function a rule.
"""

import re

Box = tuple[float, float, float, float]

NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
UNKNOWN = "Unknown"
_LARGEST_FRACTION = 1.1  # above 1 because models overshoot the border
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!:'
_QWEN_STEP = 28  # patch size times merge size of Qwen2.5-VL
_MOST_PERIODS = 32  # the reference script passes a flag in the count slot of `re.sub`


def qwen2_box(text: str) -> Box:
    """Read the first "(x1,y1),(x2,y2)" in thousandths as fractions; none is all zeros."""
    pair = r"\(\s*(\d+)\s*,\s*(\d+)\s*\)"
    found = re.search(pair + r"\s*,\s*" + pair, text)
    if found is None:
        return NO_BOX
    x1, y1, x2, y2 = (int(number) / 1000 for number in found.groups())
    return x1, y1, x2, y2


def qwen2_5_box(text: str) -> Box:
    """Read the first "bbox_2d": [x1, y1, x2, y2] of four integers, pixels of the resized image.

    None is all zeros.
    """
    number = r"\s*(\d+)\s*"
    found = re.search(r'"bbox_2d"\s*:\s*\[' + ",".join([number] * 4) + r"\]", text)
    if found is None:
        return NO_BOX
    x1, y1, x2, y2 = (float(value) for value in found.groups())
    return x1, y1, x2, y2


def bracketed_box(text: str) -> Box:
    """Read the first "[x1, y1, x2, y2]" (one or two bracket levels); none is all zeros.

    Four numbers that sum to 4 or more are thousandths, otherwise fractions.
    """
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    found = re.search(r"\[" + ",".join([number] * 4) + r"\]", text)
    if found is None:
        return NO_BOX
    values = [float(value) for value in found.groups()]
    scale = 1000 if sum(values) >= 4 else 1
    x1, y1, x2, y2 = (value / scale for value in values)
    return x1, y1, x2, y2


def box_in_pixels(box: Box, width: float, height: float) -> Box:
    """Turn fractions of the image into pixels; a value above 1.1 means that they are pixels."""
    if max(box) > _LARGEST_FRACTION:
        return box
    x1, y1, x2, y2 = box
    return x1 * width, y1 * height, x2 * width, y2 * height


def resized_frame(width: float, height: float) -> tuple[int, int]:
    """Return the size to which Qwen2.5-VL's boxes refer: sides rounded to multiples of 28.

    It is that of the processor for every image between its pixel bounds.
    """
    return tuple(max(1, round(side / _QWEN_STEP)) * _QWEN_STEP for side in (width, height))


def rescaled_box(box: Box, source: tuple[float, float], target: tuple[float, float]) -> Box:
    """Move a box from an image of size `source` (width, height) to one of size `target`."""
    across, down = target[0] / source[0], target[1] / source[1]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def rounded_box(box: Box) -> Box:
    """Round coordinates to integers, half to even."""
    x1, y1, x2, y2 = (float(round(value)) for value in box)
    return x1, y1, x2, y2


def target_box(cell: str) -> Box:
    """Read the reference box "x1 y1 x2 y2"; numbers after the fourth do not count.

    Raises:
        ValueError: fewer than four numbers, or something else.
    """
    words = cell.split()[:4]
    if len(words) < 4:
        raise ValueError(f"expected 'x1 y1 x2 y2', found {cell!r}")
    x1, y1, x2, y2 = (float(word) for word in words)
    return x1, y1, x2, y2


def without_punctuation(text: str) -> str:
    """Delete or blank out punctuation as the VQA scripts do.

    A mark that touches a blank somewhere in the text is deleted everywhere, and so are all marks
    if a comma sits between digits; other marks become blanks. Periods go unless a digit follows.
    """
    delete_all = re.search(r"\d,\d", text) is not None
    result = text
    for mark in _PUNCTUATION:
        touches_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches_blank or delete_all else " ")
    return re.sub(r"\.(?!\d)", "", result, count=_MOST_PERIODS)


def yes_or_no(text: str) -> str:
    """Return "Yes" or "No" if exactly one of the two words occurs, otherwise "Unknown"."""
    words = without_punctuation(text.lower()).split()
    if ("yes" in words) == ("no" in words):
        return UNKNOWN
    return "Yes" if "yes" in words else "No"


def plain_answer(text: str) -> str:
    """Lowercase, strip, and drop one trailing period."""
    return text.strip().lower().removesuffix(".").rstrip()
