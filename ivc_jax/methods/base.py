"""What a pruning method is: stages, the signals it asks for, and its selection.

A method is a frozen dataclass of plain values and a static argument of the compiled prefill. It
sees arrays in visual space [B, V] and never touches model code.
"""

import dataclasses
import math
from typing import ClassVar

import jax

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.methods.requests import Request, Signals
from ivc_jax.types import Layout, Selection

# What `Method.take_apart` may give: scores of tokens (float32) and sets of them (bool).
PARTS = ("cosine", "sine", "coordinates", "seeds", "score")


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
        merge_in: "decoder" merges tokens as they stand; "tower", of a cut before the decoder that
            asks for `TowerFeatures()`, merges these and lets the projector follow.
    """

    layer: int
    keep_ratio: float
    compact_earlier_kv: bool = False
    whole_kv_layers: int = 0
    renumber: bool = False
    merge_in: str = "decoder"

    def check(self) -> None:
        """Raise MethodError unless the keep ratio is one."""
        if not 0 < self.keep_ratio <= 1:
            raise MethodError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")


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

    def check(self, layout: Layout) -> None:
        """Refuse a batch that lacks something that the method must know, before it runs.

        Args:
            layout: before any pruning, its arrays readable.

        Raises:
            MethodError: names the sample and the remedy.
        """

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

    def take_apart(self, signals: Signals, layout: Layout, stage: Stage) -> dict[str, jax.Array]:
        """Return what the choice at `stage` is made of, for those who look at it: [B, V] each.

        A method gives those of `PARTS` that its choice has; padding holds anything.

        Args:
            signals: one entry for each request.
            layout: as in `select`.
        """
        return {}

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

    def take_apart(self, signals: Signals, layout: Layout, stage: Stage) -> dict[str, jax.Array]:
        """Return the scores."""
        return {"score": self.scores(signals, layout, stage)}

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
