"""What a method may ask for at a cut, and the signals that answer.

A request is the key of its signal. `layer` is the decoder block that produces it: one that has run
since the last cut, or, for attention and keys, the block behind the cut itself, whose projections
are then applied to the sequence as it stands before the cut. `block` is a block of the vision
tower, None its last one with attention over the whole image. V is the current visual space unless
it says "unpruned".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax


@dataclasses.dataclass(frozen=True)
class Values:
    """Value vectors of block `layer`: `TokenVectors` [B, V | T, G, C]."""

    layer: int


@dataclasses.dataclass(frozen=True)
class RawValues:
    """What the value projection of block `layer` makes of hidden states that were not normed:
    `TokenVectors` [B, V | T, G, C].
    """

    layer: int


@dataclasses.dataclass(frozen=True)
class Keys:
    """Rotated key vectors of block `layer`: `TokenVectors` [B, V | T, G, C]."""

    layer: int


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Hidden states that enter the block behind the cut: `TokenVectors` [B, V | T, D].

    Attributes:
        normed: after the norm that stands before the decoder's head.
    """

    normed: bool = False


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What entered the decoder, whatever the stage: `TokenVectors` [B, V | T, D], unpruned."""


@dataclasses.dataclass(frozen=True)
class WordEmbeddings:
    """Input embeddings of all words, in the model's dtype: [vocab, D]."""


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

    The mean over all visual queries of the sample, worked off in chunks of queries.

    Attributes:
        causal: a query sees what lies before it (the model's own attention). Otherwise it sees
            every token up to the last visual one.
        heads: "mean" over heads, or "max": of each query and key the head that gives most.
    """

    layer: int
    causal: bool = True
    heads: str = "mean"


@dataclasses.dataclass(frozen=True)
class TowerAttention:
    """Attention inside each image in block `block` of the tower: a function, see `Received`.

    Called without weights, it gives the row of the class token, of a tower that has one. Patches
    are averaged over heads and over the patches of a merged token, rows and columns alike.

    Attributes:
        heads: "mean", or "joined": the softmax of one head as wide as all of them, which is not
            what the model computes.
        patches: what a merged token receives is the "mean" over its patches, or the "sum": then
            what a patch gives to all tokens adds up to 1.
    """

    block: int | None = None
    heads: str = "mean"
    patches: str = "mean"


@dataclasses.dataclass(frozen=True)
class TowerKeys:
    """Key vectors of tower block `block`: float32 [B, V, C], unpruned.

    Averaged over heads and over the patches of a merged token.

    Attributes:
        heads: "mean", or "joined": side by side instead of averaged, [B, V, H * C].
        rotated: turned by the places of patches, where the tower does that.
    """

    block: int | None = None
    heads: str = "mean"
    rotated: bool = False


@dataclasses.dataclass(frozen=True)
class TowerFeatures:
    """Outputs of tower blocks `first` to `last`, averaged over blocks: float32, unpruned.

    Attributes:
        first: -1 counts from the end.
        last: included; -1 counts from the end.
        merged: pass the average over blocks through the merger, once, [B, V, D]; otherwise average
            the patches of a merged token, [B, V, E].
    """

    first: int = -1
    last: int = -1
    merged: bool = False


@dataclasses.dataclass(frozen=True)
class ClassFeatures:
    """Output of tower block `block` for the class token of each token's image: float32 [B, V, E].

    Unpruned; what `Selection.becomes_class` puts into the sequence.
    """

    block: int = -1


@dataclasses.dataclass(frozen=True)
class PixelEntropy:
    """Entropy in bits of the grey levels 0..255 in each visual token's patches: float32 [B, V].

    Unpruned; the mean over the patches of a merged token.
    """


@dataclasses.dataclass(frozen=True)
class RopeSettings:
    """The decoder's `RopeConfig`, a static value."""


@dataclasses.dataclass(frozen=True)
class Objects:
    """Which visual tokens hold a part of an annotated object: bool [B, V], unpruned.

    Known only of batches that say so (`Batch.objects`).
    """


@dataclasses.dataclass(frozen=True)
class Relevance:
    """How relevant the frame of each visual token is to the question: float32 [B, V], unpruned.

    In [0, 1], the same for all tokens of a frame. Known of batches that say so (`Batch.relevance`);
    otherwise 0 for all of them.
    """


@dataclasses.dataclass(frozen=True)
class Learned:
    """Which visual tokens are learned ones, which no patch makes: bool [B, V], unpruned."""


@dataclasses.dataclass(frozen=True)
class Carry:
    """What the method's earlier stage put into `Selection.carry`; None at the first stage."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters of a module that the method brings along: `Parameters`.

    They lie beside the model's own, in `params["methods"]`; the engine reads them from a file when
    a method first asks.

    Attributes:
        name: a safetensors file, or bundled/NAME, one that comes with the bundled model.
    """

    name: str


TowerRequest = TowerAttention | TowerKeys | TowerFeatures | ClassFeatures | PixelEntropy
LayerRequest = Values | RawValues | Keys | AttentionRows | AttentionReceived
BatchRequest = Objects | Relevance | Learned
Request = (
    LayerRequest
    | TowerRequest
    | BatchRequest
    | Hidden
    | Embeddings
    | WordEmbeddings
    | RopeSettings
    | Carry
    | Weights
)
Signals = Mapping[Request, Any]


def ask_merged(merge_in: str) -> tuple[TowerFeatures, ...]:
    """Ask for what a cut merges in the tower; nothing where it merges tokens of the decoder."""
    return (TowerFeatures(),) if merge_in == "tower" else ()


@flax.struct.dataclass
class TokenVectors:
    """Vectors of tokens, split into visual and text slots of the layout."""

    visual: jax.Array  # [B, V, ...]
    text: jax.Array  # [B, T, ...]


class Parameters:
    """The signal of `Weights`; the engine gives a subclass.

    Attributes:
        settings: what the file says of the module; empty if it says nothing.
    """

    settings: Mapping[str, Any]

    def __call__(self, like: Any) -> Any:
        """Return the parameters as a tree like this one.

        Args:
            like: nested dicts of what has a `shape`; all parameters of the module.

        Raises:
            MethodError: parameters that are missing, misshaped or not asked for.
        """
        raise NotImplementedError


class Received:
    """The signal of `TowerAttention`; the engine gives a subclass."""

    def __call__(self, weights: jax.Array | None = None) -> jax.Array:
        """Return the attention that tokens receive, averaged over queries: float32 [B, V].

        Args:
            weights: [B, V] float32, how much each query token of an image counts; an image without
                weight gives zeros. None asks what speaks for the whole image: the class token of a
                tower that has one, or all patches alike.
        """
        raise NotImplementedError
