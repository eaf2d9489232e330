"""Find the words of sinks and dead tokens of a model, and the fast form of the same classes.

Section 3 of our specification, steps 6 to 8; the paper clusters tokens and publishes no thresholds.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ivc_jax.methods.word_table import WordTable


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What makes a word one of sinks or of dead tokens.

    Attributes:
        sink_similarity: mean cosine between pictures above which it is a sink's.
        cover: share of pictures with such a token, at least.
        dead_similarity: mean cosine between pictures, at least, of dead tokens.
        dead_share: dead words are taken until they hold more than this share of the tokens.
        tower_norm: of a ViT sink, the median length before the projector, in those of all tokens.
        pairs: tokens of different pictures that are compared for each word, at most.
        percentile: of the tokens of a class that the fast form gives up.
    """

    sink_similarity: float = 0.99
    cover: float = 0.9
    dead_similarity: float = 0.8
    dead_share: float = 0.35
    tower_norm: float = 2.0
    pairs: int = 2000
    percentile: float = 5.0

    def check(self) -> None:
        """Refuse what would fail, or mean nothing, after all pictures have been looked at.

        Raises:
            ValueError: names the first of them.
        """
        for name in ("sink_similarity", "dead_similarity"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a cosine, got {getattr(self, name)}")
        for name in ("cover", "dead_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {self.pairs}")
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile must be in [0, 100], got {self.percentile}")


@dataclasses.dataclass(frozen=True)
class Word:
    """What the tokens are like to which a word is nearest.

    Attributes:
        word: its id.
        freq: share of all tokens.
        cover: share of pictures with at least one.
        similarity: mean cosine between such tokens of different pictures; NaN with one picture.
        tower_norm: their median length before the projector, in that of all; None without.
    """

    word: int
    freq: float
    cover: float
    similarity: float
    tower_norm: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Prototype:
    """The fast form of a word of a class: a direction, and how near to it a token must be.

    Attributes:
        word: its id.
        kind: number of the class (`ivc_jax.methods.words`).
        direction: [D] of length 1.
        threshold: least cosine.
    """

    word: int
    kind: int
    direction: np.ndarray
    threshold: float


def measure_words(
    units: np.ndarray,
    nearest: np.ndarray,
    image: np.ndarray,
    tower: np.ndarray | None = None,
    pairs: int = Thresholds.pairs,
) -> list[Word]:
    """Describe every word that is nearest to some token, most frequent first.

    Args:
        units: [n, D], tokens of length 1.
        nearest: [n], the nearest word of each.
        image: [n], the picture that it is of.
        tower: [n], lengths before the projector.
        pairs: compared of each word, drawn if there are more.
    """
    random, usual = np.random.default_rng(0), None if tower is None else np.median(tower)
    found, num_images = [], len(np.unique(image))
    for word in np.unique(nearest):
        (tokens,) = np.nonzero(nearest == word)
        found.append(
            Word(
                int(word),
                len(tokens) / len(nearest),
                len(np.unique(image[tokens])) / num_images,
                _compare_images(units, tokens, image, pairs, random),
                None if tower is None else float(np.median(tower[tokens]) / usual),
            )
        )
    return sorted(found, key=lambda each: (-each.freq, each.word))


def _compare_images(
    units: np.ndarray,
    tokens: np.ndarray,
    image: np.ndarray,
    pairs: int,
    random: np.random.Generator,
) -> float:
    """Average the cosine over pairs of these tokens that are of different pictures."""
    if len(tokens) ** 2 <= 4 * pairs:
        first, second = (side.ravel() for side in np.meshgrid(tokens, tokens))
        apart = (image[first] != image[second]) & (first < second)
    else:
        # Most pairs are of different pictures unless a few hold nearly all: draw with a reserve.
        first, second = random.choice(tokens, (2, 8 * pairs))
        apart = image[first] != image[second]
    first, second = first[apart][:pairs], second[apart][:pairs]
    if not len(first):
        return float("nan")
    return float(np.einsum("pd,pd->p", units[first], units[second]).mean())


def choose_words(found: Sequence[Word], limits: Thresholds) -> WordTable:
    """Say which words are those of sinks and of dead tokens."""
    sinks = [
        each
        for each in found
        if each.similarity > limits.sink_similarity and each.cover >= limits.cover
    ]
    dead: list[Word] = []
    for each in sorted(found, key=lambda word: (-word.freq, word.word)):
        if sum(word.freq for word in dead) > limits.dead_share:
            break
        alike = each.similarity >= limits.dead_similarity and each.cover >= limits.cover
        if alike and each not in sinks:
            dead.append(each)
    from_tower = [each for each in sinks if (each.tower_norm or 0) > limits.tower_norm]
    return WordTable(
        tuple(sorted(each.word for each in from_tower)),
        tuple(sorted(each.word for each in sinks if each not in from_tower)),
        tuple(sorted(each.word for each in dead)),
    )


def find_prototypes(
    units: np.ndarray, ids: np.ndarray, table: WordTable, percentile: float
) -> list[Prototype]:
    """Average the tokens of each word of a class.

    Args:
        units: [n, D], tokens of length 1.
        ids: [n, 3], their nearest words.
        percentile: of a word's tokens that lie below its threshold.
    """
    found = []
    for kind, words in enumerate(table.classes, 1):
        for word in words:
            mine = units[(ids == word).any(axis=1)]  # [m, D]
            direction = mine.mean(axis=0)
            direction /= np.linalg.norm(direction)
            threshold = float(np.percentile(mine @ direction, percentile))
            found.append(Prototype(word, kind, direction, threshold))
    return found


def classify_fast(units: np.ndarray, prototypes: Sequence[Prototype]) -> np.ndarray:
    """Say what tokens [n, D] are by prototypes alone, in the order of `words.classify`: [n]."""
    kind = np.zeros(len(units), np.int8)
    for each in sorted(prototypes, key=lambda each: -each.kind):
        kind[units @ each.direction >= each.threshold] = each.kind
    return kind
