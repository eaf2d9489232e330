"""Dominant and contextual tokens: keep the best, merge the others into a few strided ones.

One reduction of eight tokens, the three most attended kept (D) and two contextual ones made:

    token       0  1  2  3  4  5  6  7
                .  D  .  D  .  D  .  .
    rest        T     o     T     o  o      every second one of the rest is a target T
    goes to     0     0     4     4  0      the target with the nearest key
    result      0: x0 + (x2 + x7) / 2       1, 3, 5 as they are       4: x4 + x6

The procedure of VisionZip (arXiv 2412.04467), which VisionDrop repeats inside the decoder.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivc_jax.methods import scoring
from ivc_jax.methods.segments import Segments
from ivc_jax.types import Selection, typed


@typed
def reduce(
    scores: Float[Array, "B V"],
    metric: Float[Array, "B V C"],
    within: Segments,
    dominant: Int[Array, "B V"],
    contextual: Int[Array, "B V"],
    num_keep: int,
    num_contextual: int,
) -> Selection:
    """Keep the best tokens of each segment and merge its others into strided ones of them.

    A contextual token is its target plus the mean of the others that are nearest to the target:
    a sum of two terms, as in the released code.

    Args:
        scores: larger is kept.
        metric: vectors whose cosine says to which target a token goes, ties to the first.
        within: the segments, with the tokens present in each.
        dominant: tokens of this token's segment to keep as they are.
        contextual: targets of this token's segment; fewer where fewer are left.
        num_keep: bound on the tokens kept in a sample.
        num_contextual: bound on its targets.
    """
    V, valid = scores.shape[1], within.number >= 0
    rest = valid & (scoring.rank_in_segment(scores, within.number, valid) >= dominant)
    stride = jnp.maximum((within.count - dominant) // jnp.maximum(contextual, 1), 1)
    place = _place(rest, within.number)
    target = rest & (place % stride == 0) & (place // stride < contextual)
    chosen = scoring.from_mask((valid & ~rest) | target, num_keep)
    if num_contextual == 0:
        return chosen
    targets = scoring.from_mask(target, num_contextual)
    metric = scoring.unit(metric)
    centres = jnp.take_along_axis(metric, targets.index[..., None], axis=1)
    cosine = jnp.einsum("bvc,btc->bvt", metric, centres, precision=jax.lax.Precision.HIGHEST)
    owner = jnp.take_along_axis(within.number, targets.index, axis=1)
    same = (within.number[:, :, None] == owner[:, None]) & targets.valid[:, None]
    nearest = jnp.argmax(jnp.where(same, cosine, -jnp.inf), axis=2)
    goes = rest & ~target & (contextual > 0)  # without a target in its segment a token is lost
    goal = jnp.where(goes, jnp.take_along_axis(targets.index, nearest, axis=1), -1)
    group = (chosen.index[..., None] == goal[:, None]) & chosen.valid[..., None]  # [B, K, V]
    mean = group / jnp.maximum(group.sum(axis=2, keepdims=True), 1)
    return chosen.replace(weights=scoring.keep_weights(chosen, V) + mean.astype(jnp.float32))


def _place(marked: jax.Array, segment: jax.Array) -> jax.Array:
    """Number the marked tokens [B, V] of each segment 0, 1, 2, ...; anything at the others."""
    before = jnp.cumsum(marked, axis=1, dtype=jnp.int32) - marked
    begins = segment[:, 1:] != segment[:, :-1]
    begins = jnp.concatenate([jnp.ones_like(marked[:, :1]), begins], axis=1)
    return before - jax.lax.cummax(jnp.where(begins, before, 0), axis=1)
