"""FSR (arXiv 2602.05809): focus on salient tokens, scan the rest for coverage, refine by merging.

No code is released. Where the paper is silent a choice is made and marked "chosen" here: min-max
scaling, the cap on the focus set, the floor of the merging weights, quotas of frames and the tower
signals of models without a class token.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.defaults import choose_merge
from ivc_jax.methods.farthest import Cover, by_cosine, pick
from ivc_jax.methods.fields import check_choice, check_merge, check_not_negative
from ivc_jax.methods.question import compare_with_question
from ivc_jax.methods.requests import (
    Hidden,
    Request,
    Signals,
    TowerAttention,
    TowerFeatures,
    ask_merged,
)
from ivc_jax.methods.select import (
    NEAR,
    Segments,
    from_mask,
    keep_one,
    keep_weights,
    normalize,
    round_counts,
    split_over_frames,
)
from ivc_jax.methods.upfront import MergingUpfront, Upfront
from ivc_jax.types import Layout, Selection, typed

_LEAST_WEIGHT = 1e-6  # of a token in a merge; the joint score may be exactly 0 (chosen)


@dataclasses.dataclass(frozen=True)
class FSR(MergingUpfront):
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
        merge_in: distances are measured and tokens merged among the features of the "tower", whose
            projector follows, or among what enters the "decoder"; None asks `resolve`: "tower"
            where a token is one patch (both chosen).
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
    merge_in: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(alpha=self.alpha, beta=self.beta, merge_ratio=self.merge_ratio)
        if not 0 <= self.focus_mass <= 1:
            raise MethodError(f"focus_mass must be in [0, 1], got {self.focus_mass}")
        check_choice("relevance", self.relevance, ("none", "embedding"))
        if self.relevance_sign not in (1, -1):
            raise MethodError(f"relevance_sign must be 1 or -1, got {self.relevance_sign}")
        check_merge(self.merge_in)

    def resolve(self, config: ModelConfig) -> Upfront:
        """Fill in keep_ratio, positions and where tokens merge."""
        merge_in = choose_merge(self.merge_in, config)
        return Upfront.resolve(dataclasses.replace(self, merge_in=merge_in), config)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the tower's last attention, for features to compare, and for the text."""
        features = ask_merged(stage.merge_in)
        asked = (Hidden(),) if self.relevance == "embedding" or not features else ()
        return TowerAttention(), *features, *asked

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Focus, scan and refine in every image or frame."""
        slots = layout.visual_valid.shape[1]
        if not slots:
            chosen = from_mask(layout.visual_valid, num_keep)
            return chosen.replace(weights=keep_weights(chosen, slots))
        counts = keep_one(self._count(stage, layout.visual_slots))
        if self.per_frame:
            within, target = Segments.by_frame(layout), split_over_frames(layout, counts)
        else:
            within = Segments.by_image(layout)
            target = within.look_up(counts)  # [B, V]
        relevance = None
        if self.relevance == "embedding":
            relevance = self.relevance_sign * compare_with_question(signals[Hidden()], layout)
        joint = join_scores(
            signals[TowerAttention()](), relevance, within, alpha=self.alpha, beta=self.beta
        )
        focused = focus(joint, within, target, self.focus_mass)  # [B, V]
        in_tower = self.merge_in == "tower"
        vectors = signals[TowerFeatures()] if in_tower else signals[Hidden()].visual
        cover = scan(vectors, focused, within, target, num_keep)
        return refine(cover, joint, within, num_keep, self.merge_ratio)


@typed
def join_scores(
    saliency: Float[Array, "B V"],
    relevance: Float[Array, "B V"] | None,
    within: Segments,
    alpha: float = 3.0,
    beta: float = 1.0,
) -> Float[Array, "B V"]:
    """Multiply relevance^alpha by saliency^beta, both scaled to [0, 1] in their segment.

    Padding gets 0, and so do all tokens of a segment whose scores are all alike.
    """

    def scale(scores: jax.Array) -> jax.Array:
        scores = jnp.where(within.valid, scores.astype(jnp.float32), 0.0)
        least, most = within.min(scores), within.max(scores)  # [B, V] both
        # What is alike but for rounding is all alike.
        width = jnp.where(most - least > NEAR * jnp.abs(most), most - least, jnp.inf)
        return (scores - least) / (width + 1e-12)

    joint = scale(saliency) ** beta
    if relevance is not None:
        joint = joint * scale(relevance) ** alpha
    return jnp.where(within.valid, joint, 0.0)


@typed
def focus(
    joint: Float[Array, "B V"], within: Segments, target: Int[Array, "B V"], focus_mass: float
) -> Bool[Array, "B V"]:
    """Mark the fewest best tokens of a segment that hold `focus_mass` of its summed score.

    At least one token, and no more than `target` (chosen: flat scores would leave no room).
    """
    valid, V = within.valid, joint.shape[1]
    rank = within.rank(joint)  # [B, V]
    # rank     0    1    2    3        the third token is the first to reach 0.9 of 1.0
    # joint   .5   .3   .15  .05
    # running .5   .8   .95  1.0       two fall short: three are marked
    group = jnp.where(valid, within.number, V)
    slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), group.shape)
    _, place, order = jax.lax.sort((group, rank, slots), num_keys=2)
    running = _running_sum(jnp.take_along_axis(joint, order, axis=1), place)
    _, running = jax.lax.sort((order, running), num_keys=1)  # back to the order of tokens
    total = within.max(running)  # the last of the running sums of its segment
    short = (running < (1 - NEAR) * focus_mass * total).astype(jnp.int32)
    count = 1 + within.sum(short)
    return valid & (rank < jnp.minimum(count, target))


def _running_sum(values: jax.Array, place: jax.Array) -> jax.Array:
    """Add up [B, V] along the row, starting anew wherever `place` is 0 and counts on from there."""
    steps = max(values.shape[1] - 1, 0).bit_length()

    def double(step: jax.Array, running: jax.Array) -> jax.Array:
        reach = 2**step  # each sum holds this many values already
        return running + jnp.where(place >= reach, jnp.roll(running, reach, axis=1), 0.0)

    return jax.lax.fori_loop(0, steps, double, values)


@typed
def scan(
    vectors: Float[Array, "B V D"],
    focused: Bool[Array, "B V"],
    within: Segments,
    target: Int[Array, "B V"],
    num_keep: int,
) -> Cover:
    """Add to the focus set, one by one, the token that is farthest from all tokens kept so far.

    The distance is 1 - cosine: num_keep steps of V D products (`farthest.pick`).

    Args:
        target: tokens to keep in this token's segment.
        num_keep: K, at least the sum of the targets of a sample.
    """
    compare = by_cosine(normalize(vectors))
    return pick(compare, within, target, num_keep, focused, NEAR)


@typed
def refine(
    cover: Cover,
    joint: Float[Array, "B V"],
    within: Segments,
    num_keep: int,
    merge_ratio: float = 1.0,
) -> Selection:
    """Merge the dropped tokens that are closest to an anchor into it, weighted by joint score.

    A segment with S anchors merges floor(merge_ratio * S) tokens. Focus tokens, and anchors that
    take in nothing, stay exactly as they are.
    """
    V = joint.shape[1]
    dropped = within.valid & ~cover.keep
    anchors = within.sum(cover.anchor.astype(jnp.int32))  # S at every token, [B, V]
    merges = jnp.asarray(round_counts(merge_ratio, V, "floor"))[anchors]
    rank = within.rank(cover.closeness, dropped)
    # The kept token that each becomes a part of, itself if it is kept; -1 is lost.
    place = jnp.where(cover.keep, jnp.arange(V), -1)  # [B, V]
    place = jnp.where(dropped & (rank < merges), cover.owner, place)

    chosen = from_mask(cover.keep, num_keep)
    member = (chosen.index[..., None] == place[:, None]) & chosen.valid[..., None]  # [B, K, V]
    weights = jnp.where(member, jnp.maximum(joint, _LEAST_WEIGHT)[:, None], 0.0)
    weights = weights / jnp.maximum(weights.sum(axis=2, keepdims=True), _LEAST_WEIGHT)
    # A quotient of a number by itself may miss 1 by a bit.
    alone = member.sum(axis=2, keepdims=True) == 1  # [B, K, 1]
    return chosen.replace(weights=jnp.where(alone, member.astype(jnp.float32), weights))
