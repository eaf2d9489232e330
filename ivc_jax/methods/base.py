"""What a pruning method is: stages, the signals it asks for, and its selection.

A method is a frozen dataclass of plain values and a static argument of the compiled prefill. It
sees arrays in visual space [B, V] and never touches model code.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.struct
import jax

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.types import Layout, Selection


class MethodError(ValueError):
    """A method specification that cannot run; the message names the field and the remedy."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One cut: prune just before decoder block `layer` (0 is before the decoder).

    Attributes:
        layer: the first block that sees the shorter sequence.
        keep_ratio: share of the unpruned visual tokens that survive, in (0, 1].
        compact_earlier_kv: also drop the tokens from the caches of the blocks before. Not with
            a selection that merges tokens.
        whole_kv_layers: first blocks whose caches stay whole all the same.
        renumber: number the surviving tokens 0, 1, 2, ... on all position axes; otherwise they
            keep their positions. Keys that are cached already keep their rotation.
    """

    layer: int
    keep_ratio: float
    compact_earlier_kv: bool = False
    whole_kv_layers: int = 0
    renumber: bool = False

    def check(self) -> None:
        """Raise MethodError unless the keep ratio is one."""
        if not 0 < self.keep_ratio <= 1:
            raise MethodError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")


# Requests. `layer` is the decoder block that produces the signal: one that has run since the last
# cut, or, for attention and keys, the block behind the cut itself, whose projections are then
# applied to the sequence as it stands before the cut. `block` is a block of the vision tower, None
# its last one with attention over the whole image. V is the current visual space unless it says
# "unpruned".


@dataclasses.dataclass(frozen=True)
class Values:
    """Value vectors of block `layer`: `TokenVectors` [B, V | T, G, C]."""

    layer: int


@dataclasses.dataclass(frozen=True)
class Keys:
    """Rotated key vectors of block `layer`: `TokenVectors` [B, V | T, G, C]."""

    layer: int


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Hidden states that enter the block behind the cut: `TokenVectors` [B, V | T, D]."""


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What entered the decoder, whatever the stage: `TokenVectors` [B, V | T, D], unpruned."""


@dataclasses.dataclass(frozen=True)
class AttentionRows:
    """Attention probabilities of block `layer`, float32 [B, H, Q, V].

    The causal softmax runs over the whole current sequence; the visual columns are returned.

    Attributes:
        queries: "last" asks the last `count` valid tokens (Q = count, the last one at the end; a
            row before the first token is zero), "text" every text slot of the layout (Q = T, rows
            of padding are zero).
    """

    layer: int
    queries: str = "last"
    count: int = 1


@dataclasses.dataclass(frozen=True)
class AttentionReceived:
    """Attention that visual tokens get from visual tokens in block `layer`: float32 [B, V].

    The mean over all visual queries of the sample and over heads, worked off in chunks of queries.

    Attributes:
        causal: a query sees what lies before it (the model's own attention). Otherwise it sees
            every token up to the last visual one.
    """

    layer: int
    causal: bool = True


@dataclasses.dataclass(frozen=True)
class TowerAttention:
    """Attention inside each image in block `block` of the tower: a function, see `Received`.

    Patches are averaged over heads and over the patches of a merged token, rows and columns alike.
    """

    block: int | None = None


@dataclasses.dataclass(frozen=True)
class TowerKeys:
    """Key vectors of tower block `block` before rotation: float32 [B, V, C], unpruned.

    Averaged over heads and over the patches of a merged token.
    """

    block: int | None = None


@dataclasses.dataclass(frozen=True)
class TowerFeatures:
    """Outputs of tower blocks `first` to `last`, averaged over blocks: float32, unpruned.

    Attributes:
        first: -1 counts from the end.
        last: included; -1 counts from the end.
        merged: pass each block's output through the merger, [B, V, D]; otherwise average the
            patches of a merged token, [B, V, E].
    """

    first: int = -1
    last: int = -1
    merged: bool = False


@dataclasses.dataclass(frozen=True)
class PixelEntropy:
    """Entropy in bits of the grey levels 0..255 in each visual token's patches: float32 [B, V].

    Unpruned; the mean over the patches of a merged token.
    """


@dataclasses.dataclass(frozen=True)
class RopeSettings:
    """The decoder's `RopeConfig`, a static value."""


@dataclasses.dataclass(frozen=True)
class Carry:
    """What the method's earlier stage put into `Selection.carry`; None at the first stage."""


TowerRequest = TowerAttention | TowerKeys | TowerFeatures | PixelEntropy
LayerRequest = Values | Keys | AttentionRows | AttentionReceived
Request = LayerRequest | TowerRequest | Hidden | Embeddings | RopeSettings | Carry
Signals = Mapping[Request, Any]


@flax.struct.dataclass
class TokenVectors:
    """Vectors of tokens, split into visual and text slots of the layout."""

    visual: jax.Array  # [B, V, ...]
    text: jax.Array  # [B, T, ...]


class Received:
    """The signal of `TowerAttention`; the engine gives a subclass."""

    def __call__(self, weights: jax.Array | None = None) -> jax.Array:
        """Return the attention that tokens receive, averaged over queries: float32 [B, V].

        Args:
            weights: [B, V] float32, how much each query token of an image counts; None is all
                alike. An image without weight gives zeros.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Method:
    """Base of all methods; itself the dense model: no stage, nothing pruned."""

    name: ClassVar[str] = "dense"
    has_score: ClassVar[bool] = False  # whether it offers what `Scored` does

    def resolve(self, config: ModelConfig) -> "Method":
        """Return this method with fields that depend on the model filled in.

        Raises:
            MethodError: the method cannot run on such a model.
        """
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts in order of layer."""
        return ()

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """List the signals that `select` reads at this stage."""
        return ()

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the tokens that any sample of a bucket may keep: the static K.

        Args:
            visual_slots: V of the bucket before any pruning.
            num_images: bound M on the images of a sample.
        """
        return math.ceil(stage.keep_ratio * visual_slots)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Choose the visual tokens that survive `stage`.

        Args:
            signals: one entry for each request.
            layout: of the current sequence, tokens dropped by earlier stages are gone.
            num_keep: K, at most `capacity` and at most the current visual slots.
        """
        raise NotImplementedError

    def rope(self, rope: RopeConfig) -> RopeConfig:
        """Return the rotary embedding that the decoder's attention uses; an ablation changes it.

        Args:
            rope: the model's own, which `RopeSettings` tells whatever is returned here.
        """
        return rope


class Scored(Method):
    """A method that ranks tokens by one score, which a modifier may correct before the choice."""

    has_score = True

    def scores(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        """Return float32 scores [B, V], at least 0, larger is kept; anything at padding."""
        raise NotImplementedError

    def choose(
        self, scores: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Select by the given scores; other arguments as in `select`."""
        raise NotImplementedError

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Score and choose."""
        scores = self.scores(signals, layout, stage)
        return self.choose(scores, signals, layout, stage, num_keep)


DENSE = Method()


def find_method(spec: Method | str) -> Method:
    """Return the method that a specification names; a method is returned as it is.

    Raises:
        MethodError: as `ivc_jax.methods.parse`.
    """
    from ivc_jax.methods.spec import parse  # reads the tables of methods, which import this file

    return parse(spec)
