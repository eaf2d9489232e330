"""Answers as text -> values that can be scored (boxes, yes/no, words).

The rules are those of the public evaluation scripts of the methods, one function a rule.
"""

import math
import re

Box = tuple[float, float, float, float]

NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
UNKNOWN = "Unknown"
_LARGEST_FRACTION = 1.1  # above 1 because models overshoot the border
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # the colon is none in the scripts
_MOST_PERIODS = 32  # the reference script passes a flag in the count slot of `re.sub`
_ARTICLES = {"a", "an", "the"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
# Words that are also recognised with one of their apostrophes missing. The list of the scripts, as
# far as it matters after lower-casing: "i'm" and "she's" are not in it.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# each word by each of its spellings that lack one apostrophe: "couldn'tve" -> "couldn't've"
_REWRITTEN = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
# the scripts take an apostrophe out of this one instead of putting one in
_REWRITTEN["somebody'd"] = "somebodyd"


def read_qwen2_box(text: str) -> Box:
    """Read the first "(x1,y1),(x2,y2)" in thousandths, no blanks, as fractions.

    Text without one is all zeros.
    """
    found = re.search(r"\((\d+),(\d+)\),\((\d+),(\d+)\)", text)
    if found is None:
        return NO_BOX
    x1, y1, x2, y2 = (int(number) / 1000 for number in found.groups())
    return x1, y1, x2, y2


def read_qwen2_5_box(text: str) -> Box:
    """Read the first "bbox_2d": [x1, y1, x2, y2] of four integers, pixels of the resized image.

    Blanks may follow the colon and the commas and stand nowhere else. Text without one is all
    zeros.
    """
    found = re.search(r'"bbox_2d":\s*\[' + r",\s*".join([r"(\d+)"] * 4) + r"\]", text)
    if found is None:
        return NO_BOX
    x1, y1, x2, y2 = (float(value) for value in found.groups())
    return x1, y1, x2, y2


def read_qwen3_box(text: str) -> Box:
    """Read the box that Qwen2.5-VL would have written, but in thousandths, as fractions.

    Text without one is all zeros.
    """
    x1, y1, x2, y2 = (value / 1000 for value in read_qwen2_5_box(text))
    return x1, y1, x2, y2


def read_bracketed_box(text: str) -> Box:
    """Read the four numbers "[x1, y1, x2, y2]", in any number of brackets; none is all zeros.

    They start at the first "[" with three commas and a "]" behind it on its line, whatever stands
    in between: words there are no box, even if one follows. Four numbers that sum to 4 or more are
    thousandths, otherwise fractions.
    """
    found = re.search(r"\[+" + ",".join(["(.*?)"] * 4) + r"\]", text)
    try:
        values = [float(part) for part in found.groups()] if found else [math.nan]
    except ValueError:
        return NO_BOX
    if not all(map(math.isfinite, values)):  # "nan" and "inf" are floats too
        return NO_BOX
    # four fractions of an image sum to less than 4, unless the box is all of it and more
    scale = 1000 if sum(values) >= 4 else 1
    x1, y1, x2, y2 = (value / scale for value in values)
    return x1, y1, x2, y2


def read_target_box(cell: str) -> Box:
    """Read the reference box "x1 y1 x2 y2"; numbers after the fourth do not count.

    Raises:
        ValueError: fewer than four numbers, or something else.
    """
    try:
        x1, y1, x2, y2 = (float(word) for word in cell.split()[:4])
    except ValueError:
        raise ValueError(f"expected 'x1 y1 x2 y2', found {cell!r}") from None
    return x1, y1, x2, y2


def scale_to_pixels(box: Box, width: float, height: float) -> Box:
    """Turn fractions of the image into pixels; a value above 1.1 means that they are pixels."""
    if max(box) > _LARGEST_FRACTION:
        return box
    x1, y1, x2, y2 = box
    return x1 * width, y1 * height, x2 * width, y2 * height


def rescale_box(box: Box, source: tuple[float, float], target: tuple[float, float]) -> Box:
    """Move a box from an image of size `source` (width, height) to one of size `target`."""
    across, down = target[0] / source[0], target[1] / source[1]  # factors of x and of y
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def drop_punctuation(text: str) -> str:
    """Delete or blank out punctuation as the VQA scripts do.

    A mark that touches a blank somewhere in the text is deleted everywhere, and so are all marks
    if a comma sits between digits; other marks become blanks. Periods go unless a digit follows.
    """
    delete_all = re.search(r"\d,\d", text) is not None
    result = text
    for mark in _PUNCTUATION:
        # looked up in the text as it was, not as rewritten so far
        touches_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches_blank or delete_all else " ")
    return re.sub(r"\.(?!\d)", "", result, count=_MOST_PERIODS)  # "3.5" keeps its period


def read_yes_or_no(text: str) -> str:
    """Return "Yes" or "No" if exactly one of the two words occurs, otherwise "Unknown"."""
    words = drop_punctuation(text.lower()).split()
    if ("yes" in words) == ("no" in words):  # both or neither
        return UNKNOWN
    return "Yes" if "yes" in words else "No"


def simplify(text: str) -> str:
    """Lowercase, strip, and drop one trailing period."""
    return text.strip().lower().removesuffix(".").rstrip()


def normalize(text: str) -> str:
    """Rewrite an answer as the VQA scripts do before they compare it, on one line.

    Punctuation goes by `drop_punctuation`, number words up to ten become digits, articles go, and
    contractions get the apostrophe that they lack.
    """
    line = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in drop_punctuation(line).lower().split()]
    return " ".join(_REWRITTEN.get(word, word) for word in words if word not in _ARTICLES)
