"""VisionZip (arXiv 2412.04467): keep what the tower attends to, fold the rest into a few tokens."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.contextual import fold, stride_targets
from ivc_jax.methods.defaults import choose_merge
from ivc_jax.methods.fields import check_choice, check_fractions, check_merge
from ivc_jax.methods.requests import (
    ClassFeatures,
    Request,
    Signals,
    TowerAttention,
    TowerKeys,
    ask_merged,
)
from ivc_jax.methods.select import NEAR_COSINE, Segments, from_mask, round_counts
from ivc_jax.methods.upfront import MergingUpfront, Upfront, spare
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class VisionZip(MergingUpfront):
    """Keep the most attended tokens (dominant) and merge the others into strided ones (contextual).

    Every image, tile or video frame keeps floor(keep_ratio * tokens): C = floor(contextual *
    tokens) of them contextual, at least one, the others dominant; never fewer than C. A video that
    rounds to none keeps one token; other frames that do keep none. The counts of the code for
    Qwen2.5-VL, which ranks the images of a prompt together; that of LLaVA-1.5 makes 16 % of what is
    kept contextual: `visionzip@64`. Contextual tokens stay in the slot and at the position of their
    target (code for Qwen; that for LLaVA puts them behind the others).

    Where patches are merged before the projector, the class token counts as one of the dominant
    tokens, as released, and enters the decoder in the slot of the first token that is dropped
    (released: before all others).

    Attributes:
        contextual: share of an image's tokens.
        merge: a contextual token is its target plus the mean of its group, the "sum" (code), or the
            "mean" of target and group (paper).
        keys: whose cosine says where a token goes: "plain", or "rotated" (code for Qwen2.5-VL),
            which favours neighbours; the same where the tower does not rotate.
        class_token: keep it; None asks `resolve`: where the tower has one and merges.
        merge_in: the "tower" merges its features, and the projector follows (LLaVA), or what enters
            the "decoder" merges; None asks `resolve`: "tower" where a token is one patch.
    """

    name: ClassVar[str] = "visionzip"

    contextual: float = 0.05
    merge: str = "sum"
    keys: str = "plain"
    class_token: bool | None = None
    merge_in: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(contextual=self.contextual)
        check_choice("merge", self.merge, ("sum", "mean"))
        check_choice("keys", self.keys, ("plain", "rotated"))
        check_merge(self.merge_in)

    def resolve(self, config: ModelConfig) -> Upfront:
        """Fill in keep_ratio, positions, where tokens merge and whether the class token stays."""
        merge_in = choose_merge(self.merge_in, config)
        can_keep = config.vision.class_token and merge_in == "tower"
        if self.class_token and not can_keep:
            raise MethodError(
                "visionzip: class_token=true needs a tower that has one and merge_in=tower;"
                f" {config.family} has not; leave it out"
            )
        class_token = can_keep if self.class_token is None else self.class_token
        method = dataclasses.replace(self, merge_in=merge_in, class_token=class_token)
        return Upfront.resolve(method, config)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the tower's last attention and keys, and for what merges there."""
        kept = (ClassFeatures(),) if self.class_token else ()
        return TowerAttention(), self._keys, *ask_merged(stage.merge_in), *kept

    @property
    def _keys(self) -> TowerKeys:
        return TowerKeys(rotated=self.keys == "rotated")

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Reduce every image or frame."""
        if stage.keep_ratio == 1:
            return from_mask(layout.visual_valid, num_keep)
        within, V = Segments.by_frame(layout), layout.visual_slots
        total = spare(within.look_up(self._count(stage, V)), layout)  # [B, V]
        folded = jnp.maximum(within.look_up(round_counts(self.contextual, V, "floor")), 1)
        folded = jnp.minimum(folded, total)  # [B, V], C
        # One of the dominant tokens is the class token.
        dominant = jnp.maximum(total - folded - bool(self.class_token), 0)
        scores, metric = signals[TowerAttention()](), signals[self._keys]
        rest, target = stride_targets(scores, within, dominant, folded)
        keep = (within.valid & ~rest) | target
        gives = jnp.zeros_like(keep)  # its slot to the class token
        if self.class_token:
            gives = _mark_first(within, within.valid & ~keep) & (total > folded)
        chosen = from_mask(keep | gives, num_keep)
        chosen = fold(
            chosen, metric, within, rest, target, num_keep, merge=self.merge, near=NEAR_COSINE
        )
        if self.class_token:
            becomes = jnp.take_along_axis(gives, chosen.index, axis=1) & chosen.valid
            chosen = chosen.replace(becomes_class=becomes)
        return chosen

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        return round_counts(max(stage.keep_ratio, self.contextual), max_count, "floor")


def _mark_first(within: Segments, marked: jax.Array) -> jax.Array:
    """Mark the first of the marked tokens of each segment: bool [B, V]."""
    slots = jnp.arange(marked.shape[1], dtype=jnp.int32)
    return marked & (within.min(jnp.where(marked, slots, marked.shape[1])) == slots)
