"""The byte-level BPE tokenizer of a grid: every word of the corpus is one token.

A coordinate is a word with its bracket, so that it tells which of the four it is:
`(438` `,500)` `,(500` `,563)`.
"""

from tokenizers import Regex, Tokenizer, pre_tokenizers

from digit_cells.questions import list_texts
from digit_scenes.tokenizer import train

_WORDS = r"[ ,]?\(\d+|,\d+\)| ?[A-Za-z]+| ?\d+|[^\sA-Za-z\d]|\s"


def build(grid: int) -> Tokenizer:
    """Train the tokenizer; the corpus of a grid is fixed, so the result is too."""
    cut = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return train(list_texts(grid), pre_tokenizers.Sequence([cut, as_bytes]))
