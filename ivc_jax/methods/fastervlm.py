"""FasterVLM (arXiv 2412.01818, version 1): keep what the tower itself attends to most."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from ivc_jax.methods.base import Scored, Stage
from ivc_jax.methods.requests import Request, Signals, TowerAttention
from ivc_jax.methods.select import Segments, from_mask, round_counts
from ivc_jax.methods.upfront import Upfront, round_frames
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class FasterVLM(Scored, Upfront):
    """Keep the tokens with the most attention of the class token, drop the others.

    The attention is that of the block whose output the projector gets, a mean over heads
    (Theia-4869/FasterVLM, llava/model/multimodal_encoder/clip_encoder.py). A tower without class
    token is asked for the attention that tokens receive, which is the authors' answer for its
    successor and VisionZip's rule without contextual tokens. No merging: their ablation finds that
    it harms.

    Every frame keeps round(keep_ratio * tokens), half to even; a video at most what that makes of
    all its tokens, and at least one token. Attention of different frames does not compare.

    Attributes:
        keep_ratio: share of the tokens kept, rounded half to even.
    """

    name: ClassVar[str] = "fastervlm"

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the attention in the tower."""
        return (TowerAttention(),)

    def scores(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        """Return the attention, [B, V]."""
        return signals[TowerAttention()]()

    def choose(
        self, scores: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Keep the best of every frame."""
        target = round_frames(layout, self._count(stage, layout.visual_slots))
        return from_mask(Segments.by_frame(layout).top(scores, target), num_keep)

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        return round_counts(stage.keep_ratio, max_count, "round")
