"""What a misspelt name was meant to be."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that looks most like a word, whatever its case; None if none does."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def suggest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message, such as "; did you mean 'colour'?", or nothing."""
    found = nearest(word, known)
    return f"; did you mean {found!r}?" if found else ""
