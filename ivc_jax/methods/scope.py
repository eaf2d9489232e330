"""SCOPE (arXiv 2510.24214): greedily cover the image, salient tokens first."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods.base import Stage
from ivc_jax.methods.fields import check_choice, check_not_negative
from ivc_jax.methods.requests import Request, Signals, TowerAttention, TowerFeatures
from ivc_jax.methods.select import NEAR, Segments, first_largest, from_mask, normalize
from ivc_jax.methods.upfront import Upfront, lose_no_image
from ivc_jax.types import Layout, Selection, typed

# Tokens whose gain is computed together; 8 to 32 are equally fast on a CPU.
_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Scope(Upfront):
    """Keep the tokens that best cover their frame by cosine, weighed by saliency.

    The greedy rule of the paper and of the released entry point (kinredon/SCOPE,
    scope/clip_encoder.py), whose budget and features are those of CLIP: the features here are the
    last tower block's, averaged over the patches of a merged token, and the saliency is the
    attention received in the last block with full attention. Every frame is covered by its own
    tokens and keeps floor(keep_ratio * tokens); a video that rounds to none keeps one token.

    The similarities take V² D operations and B V² float32 numbers, the search up to K V² and in
    practice a small part of it (`cover`).

    Attributes:
        alpha: exponent of the saliency; 0 covers without it.
        saliency: "attention", or "norm" of the features, which needs no attention.
    """

    name: ClassVar[str] = "scope"

    alpha: float = 1.0
    saliency: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(alpha=self.alpha)
        check_choice("saliency", self.saliency, ("attention", "norm"))

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the features, and for the attention if it is the saliency."""
        attention = (TowerAttention(),) if self.saliency == "attention" else ()
        return (TowerFeatures(), *attention)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Search in all frames at once."""
        within = Segments.by_frame(layout)
        features = signals[TowerFeatures()].astype(jnp.float32)  # [B, V, E]
        if self.saliency == "attention":
            saliency = signals[TowerAttention()]()  # [B, V]
        else:
            saliency = jnp.linalg.norm(features, axis=-1)
        counts = within.look_up(self._count(stage, layout.visual_slots))  # [B, V]
        counts = lose_no_image(counts, layout)
        keep = cover(features, saliency**self.alpha, within.number, counts)
        return from_mask(keep, num_keep)


@typed
def cover(
    features: Float[Array, "B V D"],
    saliency: Float[Array, "B V"],
    segment: Int[Array, "B V"],
    counts: Int[Array, "B V"],
) -> Bool[Array, "B V"]:
    """Pick tokens one by one by gain in coverage times saliency, the first of equals.

    With c[u] the largest cosine of u to a picked token of its segment, 0 before there is one,

        gain[v] = sum over u of max(0, cosine[u, v] - c[u])

    can only fall as picks are made, in float32 too. An old score is therefore a bound, and the
    token with the largest bound is the next pick as soon as its score is up to date. Few scores
    have to be computed anew for each pick, and none in other segments.

    Args:
        saliency: at least 0.
        segment: -1 for padding; picks in one do not concern the others.
        counts: how many tokens the segment of this token keeps, at most its size, 0 for padding.

    Returns:
        The mask of the picked tokens.
    """
    B, V, _ = features.shape
    if V == 0:
        return jnp.zeros((B, 0), bool)
    # Comparisons instead of maxima: NaN covers nothing and gains nothing, on every backend.
    rows, unit = jnp.arange(B)[:, None], normalize(features)
    cosine = jnp.einsum("bud,bvd->buv", unit, unit, precision=jax.lax.Precision.HIGHEST)
    same = segment[:, :, None] == segment[:, None]  # [B, V, V]
    cosine = jnp.where(same, cosine, 0.0)  # no gain outside the segment

    def step(state: tuple) -> tuple:
        covered, bound, fresh, picked, left = state  # [B, V] each
        closed = picked | (left <= 0)  # nothing to gain at these
        # Bring the most promising of the old scores up to date.
        stale = jnp.where(fresh | closed, -jnp.inf, bound)
        index = jax.lax.top_k(stale, min(_CHUNK, V))[1]  # [B, chunk]
        near, before = cosine[rows, index], covered[:, None]  # [B, chunk, V], [B, 1, V]
        gain = jnp.where(near > before + NEAR, near - before, 0.0).sum(axis=2)  # [B, chunk]
        bound = bound.at[rows, index].set(gain * saliency[rows, index])
        fresh = fresh.at[rows, index].set(True)
        # Pick the first of the best tokens, unless its score or the largest is an old one.
        # Scores are at least 0; NaN comes behind them.
        open_bound = jnp.where(closed, -jnp.inf, jnp.where(jnp.isnan(bound), -1.0, bound))
        largest = jnp.argmax(open_bound, axis=1, keepdims=True)  # [B, 1]
        best = first_largest(open_bound, NEAR * jnp.abs(open_bound[rows, largest]))
        pick = fresh[rows, largest] & fresh[rows, best] & ~closed[rows, best]
        touched = pick & (segment == segment[rows, best])
        # What is covered better than before changes the scores of its segment, and of no other.
        row = cosine[rows, best][:, 0]  # [B, V]
        covered = jnp.where(touched & (row > covered), row, covered)
        return covered, bound, fresh & ~touched, picked.at[rows, best].max(pick), left - touched

    nothing = jnp.zeros((B, V), bool)
    state = jnp.zeros((B, V)), jnp.full((B, V), jnp.inf), nothing, nothing, counts
    return jax.lax.while_loop(lambda state: (state[-1] > 0).any(), step, state)[3]
