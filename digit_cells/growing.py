"""Begin a larger model where a smaller one ended: more blocks, a larger grid.

A token's place is its number, so that what a decoder does in the top left corner of a larger grid
is what it did before; only its words for borders change. Blocks behind the last add nothing until
they have learnt to. Grown, a model answers about its first corner as the small one answered.
"""

import re

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from digit_cells import tokenizer
from digit_cells.questions import to_word
from digit_cells.setting import Setting
from digit_scenes.loop import Params

# A number without bracket or comma is a count or a digit.
_COORDINATE = re.compile(r"(?<=\()\d+|(?<=,)\d+(?=\))")


def pair_words(
    small: Tokenizer, small_grid: int, large: Tokenizer, large_grid: int
) -> tuple[np.ndarray, np.ndarray]:
    """List the ids of words of the larger grid, and those of the same words of the smaller one.

    A coordinate is the same word if it names the same border between cells, counted from the first.
    """
    named = {
        str(to_word(border, large_grid)): str(to_word(border, small_grid))
        for border in range(small_grid + 1)
    }
    known, pairs = small.get_vocab(), []
    for word, number in sorted(large.get_vocab().items()):
        if coordinate := _COORDINATE.search(word):
            if coordinate[0] not in named:
                continue  # a border that the smaller grid does not have
            word = word.replace(coordinate[0], named[coordinate[0]])
        if word in known:
            pairs.append((number, known[word]))
    ids = np.array(pairs, np.int32)
    return ids[:, 0], ids[:, 1]


def grow(setting: Setting, small: Params, large: Params, words: Tokenizer) -> Params:
    """Put the parameters of a smaller decoder into those of a larger one, drawn anew.

    Args:
        setting: of the larger one; its `start` is the setting of the smaller one.
        small: as `answering.init_decoder` returns, trained.
        large: as `answering.init_decoder` returns; its further blocks are silent.
        words: the tokenizer of the larger one.
    """
    least = setting.start.grid
    to, come = pair_words(tokenizer.build(least), least, words, setting.grid)
    tables = {
        name: {
            leaf: jnp.asarray(large[name][leaf]).at[to].set(small[name][leaf][come])
            for leaf in large[name]
        }
        for name in ("embed_tokens", "lm_head")
    }
    layers = (*small["layers"], *large["layers"][len(small["layers"]) :])
    return {**small, **tables, "layers": layers}
