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

from ivc_jax.config import ModelConfig
from ivc_jax.types import Layout, Selection


class MethodError(ValueError):
    """A method specification that cannot run; the message names the field and the remedy."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One cut: prune just before decoder block `layer` (0 is before the decoder).

    Attributes:
        layer: the first block that sees the shorter sequence.
        keep_ratio: share of the unpruned visual tokens that survive, in (0, 1].
        compact_earlier_kv: also drop the tokens from the caches of the blocks before.
        whole_kv_layers: first blocks whose caches stay whole all the same.
    """

    layer: int
    keep_ratio: float
    compact_earlier_kv: bool = False
    whole_kv_layers: int = 0


@dataclasses.dataclass(frozen=True)
class Values:
    """Request for the value vectors of block `layer`: the signal is a `TokenVectors`."""

    layer: int


@dataclasses.dataclass(frozen=True)
class AttentionRows:
    """Request for attention probabilities of block `layer`, float32 [B, H, Q, V].

    The softmax runs over the whole current sequence; the visual columns are returned.
    `queries` is "last" (Q = 1, the last valid token).
    """

    layer: int
    queries: str = "last"


@dataclasses.dataclass(frozen=True)
class RopeSettings:
    """Request for the decoder's `RopeConfig`, a static value."""


Request = Values | AttentionRows | RopeSettings
Signals = Mapping[Request, Any]


@flax.struct.dataclass
class TokenVectors:
    """Per-head vectors of the current tokens, split into visual and text slots of the layout."""

    visual: jax.Array  # [B, V, G, C]
    text: jax.Array  # [B, T, G, C]


@dataclasses.dataclass(frozen=True)
class Method:
    """Base of all methods; itself the dense model: no stage, nothing pruned."""

    name: ClassVar[str] = "dense"

    def resolve(self, config: ModelConfig) -> "Method":
        """Return this method with fields that depend on the model filled in."""
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


DENSE = Method()


def check_keep_ratio(keep_ratio: float) -> None:
    """Raise MethodError unless 0 < keep_ratio <= 1."""
    if not 0 < keep_ratio <= 1:
        raise MethodError(f"keep_ratio must be in (0, 1], got {keep_ratio}")
