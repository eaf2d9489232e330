"""What a cell of a row says: values that are missing, and lists as programs print them."""

import ast
import json
import re
from collections.abc import Mapping

from ivc_jax.evals.benchmarks.parsers import Box

# As pandas writes a missing value into a text. "None" and "N/A" may be options.
_MISSING = {"nan", "NaN", "<NA>"}
_UNTYPED = {*_MISSING, "None", "null"}  # no item of a list without quotes
_ARRAY = re.compile(r"array\((\[.*\])\s*(?:,\s*dtype=[^\]]*)?\)", re.DOTALL)
_ITEM = re.compile(
    r"""
    (?P<text> '[^'\\]*(?:\\.[^'\\]*)*' | "[^"\\]*(?:\\.[^"\\]*)*" )  # quoted, with escapes
    | (?P<bare> [^\s,'"\[\]]+ )
    """,
    re.DOTALL | re.VERBOSE,
)
_GAP = re.compile(r"\s*(?P<comma>,?)\s*")


class CellError(ValueError):
    """A cell that cannot be read; the message says why."""


def is_missing(text: str) -> bool:
    """Say whether a cell holds nothing: blanks, or a missing value as pandas writes it."""
    return not text.strip() or text.strip() in _MISSING


def read_text(cells: Mapping[str, str], name: str) -> str:
    """Return a cell as it is, blanks included; "" if it is missing."""
    text = cells.get(name, "")
    return "" if is_missing(text) else text


def read_list(text: str) -> list[str] | None:
    """Return the items of a list as Python, JSON or NumPy prints it; None for any other text.

        ['a', 'b']   ["a", "b"]   ['a' 'b']   array(['a', 'b'], dtype='<U1')   [1, 2]

    "[sic]" and "[]" are other texts: a list has a quote at one of its ends, or numbers only.

    Raises:
        CellError: the text begins or ends like a list and is none, or an item is missing.
    """
    body = text.strip()
    if found := _ARRAY.fullmatch(body):
        body = found[1]
    if not (body.startswith("[") and body.endswith("]")):  # a text that merely mentions a list
        return None
    inner = body[1:-1].strip()
    if not inner:
        return None
    try:
        items = json.loads(body)  # ["a", "b"] and [1, 2]; single quotes and blanks go on below
    except ValueError:
        items = _split_items(inner)
    quoted = inner[0] in "'\"" or inner[-1] in "'\""  # "[sic]" has none: it is a text
    if items is None:
        if quoted:
            raise CellError('it looks like a list and is none; write ["a", "b"]')
        return None
    for number, item in enumerate(items, 1):
        # NaN alone differs from itself
        if item is None or item != item or isinstance(item, list | dict):
            raise CellError(f"item {number} of the list is no text; leave it out or quote it")
    return [str(item) for item in items]


def read_objects(text: str, num_pictures: int) -> list[list[Box]]:
    """Return the boxes of the objects of each picture; "" has none.

    Args:
        text: "x1 y1 x2 y2;x1 y1 x2 y2", or a list of such texts, one a picture.
        num_pictures: of the row.

    Raises:
        CellError: a box without four numbers, or texts for another number of pictures.
    """
    texts = read_list(text)
    if texts is None:
        texts = [text] if num_pictures == 1 or text.strip() else [""] * num_pictures
    if len(texts) != num_pictures:
        raise CellError(f"objects has {len(texts)} texts for {num_pictures} pictures")
    found = []
    for boxes in texts:
        found.append([])
        for box in filter(str.strip, boxes.split(";")):
            try:
                x1, y1, x2, y2 = map(float, box.split())
            except ValueError:
                raise CellError(f"objects: expected 'x1 y1 x2 y2;...', found {box!r}") from None
            found[-1].append((x1, y1, x2, y2))
    return found


def _split_items(inner: str) -> list | None:
    """Split what is between brackets at commas, or at blanks throughout; None where that fails.

    A missing item is None.
    """
    items, commas, place = [], set(), 0
    while place < len(inner):
        found = _ITEM.match(inner, place)
        if found is None:
            return None
        try:
            item = None if found["bare"] in _UNTYPED else ast.literal_eval(found[0])
        except (ValueError, SyntaxError):
            return None
        if item is ...:  # NumPy leaves out the middle of long arrays
            return None
        items.append(item)
        # what lies between two items: a comma, blanks, or nothing
        gap = _GAP.match(inner, found.end())
        place = gap.end()
        if place < len(inner):
            commas.add(gap["comma"] if gap[0] else "touching")
    # commas throughout or nowhere
    return items if len(commas) < 2 and "touching" not in commas else None
