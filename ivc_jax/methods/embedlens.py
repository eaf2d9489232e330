"""EmbedLens (arXiv 2603.00510): drop the tokens whose nearest words say nothing of the image."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.cells import draw_cells
from ivc_jax.methods.fields import check_choice, check_seed
from ivc_jax.methods.requests import (
    Embeddings,
    Parameters,
    Request,
    Signals,
    Weights,
    WordEmbeddings,
)
from ivc_jax.methods.select import Segments, from_mask, keep_one, normalize
from ivc_jax.methods.upfront import Upfront
from ivc_jax.methods.word_table import read_table
from ivc_jax.methods.words import CLASSES, any_of, probe
from ivc_jax.types import Layout, Selection

# What `remove` may name: fields that hold the words.
_REMOVED = {
    "all": ("vit_sinks", "llm_sinks", "dead"),
    "sinks": ("vit_sinks", "llm_sinks"),
    "vit_sinks": ("vit_sinks",),
    "llm_sinks": ("llm_sinks",),
    "dead": ("dead",),
}
_FIELDS = dict(zip(CLASSES[1:], _REMOVED["all"], strict=True))
# Scores lie in [0, 6]: those that differ by no more than this part are a tie, 1e-6 of a cosine.
_NEAR = 2.0**-21


@dataclasses.dataclass(frozen=True)
class EmbedLens(Upfront):
    """Drop sinks and dead tokens, which certain words give away; the others are alive.

    A visual token, as it enters the decoder, is a sink or dead if a word of that class is among
    the words whose input embeddings are nearest to it by cosine. Which words these are hangs on the
    weights of a model: `ivc-jax lens` finds them once and writes a table. The released ids are
    those of LLaVA-1.5-7B (`embedlens@192`) and mean nothing elsewhere.

    The released rule drops as many tokens as there are: `keep_ratio=1,strict=true`. With less, an
    image keeps floor(keep_ratio * tokens), alive ones first, by how much nearer their nearest other
    word is than the nearest of the classes' (section 3, step 9 of our own specification; not
    published). That order says little among alive tokens. A whole video is one image to it.

    The search for the nearest words takes V W D products for a vocabulary of W words, in chunks.

    Attributes:
        table: what `ivc-jax lens` has written; read at once, into the three fields that follow.
        vit_sinks: ids of the words of sinks that come out of the tower.
        llm_sinks: of those that the decoder makes.
        dead: of tokens that look alike in most images.
        remove: which classes go: "all", "sinks", "vit_sinks", "llm_sinks" or "dead".
        words: nearest words that are looked at (released code 3).
        prototypes: the fast form, also written by `ivc-jax lens`, instead of words: a token is of a
            class if its cosine to one of a few directions reaches a threshold. It costs V D
            products a direction and no vocabulary; the table says how often the two agree.
        strict: drop all of these, even if fewer than keep_ratio are left; a last one of an image
            stays.
        control: "random" spares the tokens of the classes and drops as many others at random,
            "matching" keeps them alone; controls of the released code (-1 and -2).
        seed: of the random control.
    """

    name: ClassVar[str] = "embedlens"

    table: str | None = None
    vit_sinks: tuple[int, ...] | None = None
    llm_sinks: tuple[int, ...] | None = None
    dead: tuple[int, ...] | None = None
    remove: str = "all"
    words: int = 3
    prototypes: str | None = None
    strict: bool = False
    control: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table is not None:
            self._read()
        for name in _REMOVED["all"]:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _sort_words(name, getattr(self, name)))
        if self.prototypes is not None and any(getattr(self, name) for name in _REMOVED["all"]):
            raise MethodError("embedlens: prototypes stand for words; give one of the two")
        check_choice("remove", self.remove, tuple(_REMOVED))
        check_choice("control", self.control, ("none", "random", "matching"))
        check_seed(self.seed)
        if self.words < 1:
            raise MethodError(f"words must be at least 1, got {self.words}")

    def _read(self) -> None:
        """Take the words from the table: a method is what it says, not where it was written."""
        given = [name for name in _REMOVED["all"] if getattr(self, name) is not None]
        if given:
            raise MethodError(f"embedlens: table and {given[0]} exclude each other; give one")
        table = read_table(self.table)
        if not any(table.classes):
            raise MethodError(
                f"table={self.table} names no word: calibration has found neither sinks nor dead"
                " tokens in that model, so there is nothing to drop"
            )
        for name in _REMOVED["all"]:
            object.__setattr__(self, name, tuple(getattr(table, name)))
        object.__setattr__(self, "table", None)

    def resolve(self, config: ModelConfig) -> "EmbedLens":
        """Fill in keep_ratio and positions; check the words against the vocabulary."""
        size = config.decoder.vocab_size
        for name in _REMOVED["all"]:
            beyond = [word for word in getattr(self, name) or () if word >= size]
            if beyond:
                raise MethodError(
                    f"embedlens: {name}={beyond[0]} is no word of a vocabulary of {size}; the ids"
                    " belong to another model: calibrate with `ivc-jax lens`"
                )
        return super().resolve(config)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for all tokens as they enter the decoder, and for all words or the prototypes."""
        if self.prototypes is not None:
            return Embeddings(), Weights(self.prototypes)
        self.removed  # noqa: B018, complains in time
        return Embeddings(), WordEmbeddings()

    @property
    def removed(self) -> tuple[int, ...]:
        """The ids of all classes that go, ascending.

        Raises:
            MethodError: nobody has said which they are.
        """
        known = {name: getattr(self, name) or () for name in _REMOVED["all"]}
        if not any(known.values()):
            raise MethodError(
                "embedlens: the words of sinks and dead tokens differ from model to model; find"
                " them with `ivc-jax lens --model DIR` and give table=FILE"
            )
        words = {word for name in _REMOVED[self.remove] for word in known[name]}
        if not words:
            raise MethodError(f"embedlens: there are no words of what remove={self.remove} names")
        return tuple(sorted(words))

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Look up the nearest words and rank, alive tokens first."""
        within = Segments.by_image(layout)
        if not layout.visual_valid.shape[1]:
            return from_mask(layout.visual_valid, num_keep)
        look = self._look_up if self.prototypes is None else self._compare
        goes, margin = look(signals)  # [B, V] both
        known = layout.visual_valid & ~jnp.isnan(margin)  # NaN is alive to nobody
        goes &= known
        if self.control != "none":
            goes = self._swap(goes, known, within, layout)
        alive = known & ~goes
        rank = rank_alive(margin, alive, within)
        counts = within.look_up(keep_one(self._count(stage, layout.visual_slots)))  # [B, V]
        if self.strict:
            counts = jnp.minimum(counts, jnp.maximum(within.sum(alive.astype(jnp.int32)), 1))
        return from_mask(rank < counts, num_keep)

    def _look_up(self, signals: Signals) -> tuple[jax.Array, jax.Array]:
        """Mark what is of the classes by its nearest words, and return the margin."""
        hidden, table = signals[Embeddings()].visual, signals[WordEmbeddings()]
        nearest = probe(hidden, table, self.words, self.removed)
        return any_of(nearest.ids, self.removed), nearest.outside - nearest.inside

    def _compare(self, signals: Signals) -> tuple[jax.Array, jax.Array]:
        """Do the same by prototypes; the margin is how far the nearest threshold is."""
        found: Parameters = signals[Weights(self.prototypes)]
        hidden = signals[Embeddings()].visual
        kinds = found.settings.get("kinds", (CLASSES[-1],))  # [C] names
        limits = jnp.asarray(found.settings.get("thresholds", (0.0,)), jnp.float32)  # [C]
        shape = jax.ShapeDtypeStruct((len(kinds), hidden.shape[-1]), jnp.float32)
        directions = normalize(found({"direction": shape})["direction"][None])[0]  # [C, D]
        meant = [_FIELDS[kind] in _REMOVED[self.remove] for kind in kinds]
        if not any(meant):
            raise MethodError(f"embedlens: no prototype is of what remove={self.remove} names")
        exact = jax.lax.Precision.HIGHEST
        cosine = jnp.einsum("bvd,cd->bvc", normalize(hidden), directions, precision=exact)
        above = jnp.where(jnp.asarray(meant), cosine - limits, -2.0).max(axis=2)  # [B, V]
        return above >= 0, -above

    def _swap(
        self, goes: jax.Array, known: jax.Array, within: Segments, layout: Layout
    ) -> jax.Array:
        """Return what goes in the place of the tokens of the classes: bool [B, V]."""
        if self.control == "matching":
            return known & ~goes
        number = within.sum(goes.astype(jnp.int32))  # [B, V]
        return within.rank(draw_cells(layout, self.seed), known & ~goes, tolerance=0.0) < number


def _sort_words(name: str, words: tuple[int, ...]) -> tuple[int, ...] | None:
    """Sort ids, so that equal sets are equal fields; none at all is None."""
    if not all(isinstance(word, int) and word >= 0 for word in words):
        raise MethodError(f"{name} must be ids of words, got {words}")
    return tuple(sorted(set(words))) or None


def rank_alive(margin: jax.Array, alive: jax.Array, within: Segments) -> jax.Array:
    """Rank tokens inside their segment by margin + 2 [alive]: int32 [B, V], 0 is the first.

    Args:
        margin: float32 [B, V] in [-2, 2]. That of an alive token is not negative.
        alive: bool [B, V].
    """
    # Above 0, where a tie is a part of the score.
    return within.rank(margin + jnp.where(alive, 4.0, 2.0), tolerance=_NEAR)
