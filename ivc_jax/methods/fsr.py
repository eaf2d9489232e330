"""FSR (arXiv 2602.05809): focus on salient tokens, scan the rest for coverage, refine by merging.

No code is released. Where the paper is silent a choice is made and marked "chosen" here: min-max
scaling, the cap on the focus set, the floor of the merging weights, quotas of frames and the tower
signals of models without a class token.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from ivc_jax.methods import scoring, segments
from ivc_jax.methods.base import (
    Hidden,
    MethodError,
    Request,
    Signals,
    Stage,
    TowerAttention,
)
from ivc_jax.methods.coordinates import check_choice
from ivc_jax.methods.frames import frame_targets
from ivc_jax.methods.parts.cover import focus, joint_scores, refine, scan
from ivc_jax.methods.parts.question import question_cosine
from ivc_jax.methods.upfront import Upfront
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class FSR(Upfront):
    """Keep salient tokens up to a share of their mass, then the tokens farthest from those kept.

    One cut before the decoder; dropped tokens close to a scanned one are merged into it. Every
    image has its own scores and its own count, floor(keep_ratio * tokens), at least one.

    Attributes:
        alpha: exponent of the relevance.
        beta: exponent of the saliency.
        focus_mass: share rho of the summed joint score that the focus set covers.
        merge_ratio: dropped tokens merged for each scanned one, kappa; 0 merges nothing.
        relevance: "none" (the paper, for a model without a text tower), or "embedding": the cosine
            with the mean embedding of the text after the first image (chosen).
        relevance_sign: factor of the cosine before scaling; -1 where a high one marks background.
        per_frame: score and scan each frame of a video alone, its count split over the frames
            (chosen); otherwise the video as a whole.
    """

    name: ClassVar[str] = "fsr"

    alpha: float = 3.0
    beta: float = 1.0
    focus_mass: float = 0.9
    merge_ratio: float = 1.0
    relevance: str = "none"
    relevance_sign: float = 1.0
    per_frame: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta", "merge_ratio"):
            if getattr(self, name) < 0:
                raise MethodError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.focus_mass <= 1:
            raise MethodError(f"focus_mass must be in [0, 1], got {self.focus_mass}")
        check_choice("relevance", self.relevance, ("none", "embedding"))
        if self.relevance_sign not in (1, -1):
            raise MethodError(f"relevance_sign must be 1 or -1, got {self.relevance_sign}")

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the tower's last attention and for the tokens that enter the decoder."""
        return TowerAttention(), Hidden()

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Focus, scan and refine in every image or frame."""
        vectors, slots = signals[Hidden()], layout.visual_valid.shape[1]
        if not slots:
            chosen = scoring.from_mask(layout.visual_valid, num_keep)
            return chosen.replace(weights=scoring.keep_weights(chosen, slots))
        counts = scoring.at_least_one(self._counts(stage, layout.visual_slots))
        if self.per_frame:
            within, target = segments.frames(layout), frame_targets(layout, counts)
        else:
            within, target = segments.images(layout), jnp.asarray(counts)[layout.image_count]
        relevance = None
        if self.relevance == "embedding":
            relevance = self.relevance_sign * question_cosine(vectors, layout)
        joint = joint_scores(
            signals[TowerAttention()](), relevance, within, alpha=self.alpha, beta=self.beta
        )
        focused = focus(joint, within, target, self.focus_mass)
        cover = scan(vectors.visual, focused, within, target, num_keep)
        return refine(cover, joint, within, num_keep, self.merge_ratio)
