"""Contextual tokens: what is not kept merges into evenly strided targets (VisionZip, VisionDrop).

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
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods.select import NEAR, Segments, from_mask, keep_weights, normalize
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
    rest, target = stride_targets(scores, within, dominant, contextual)
    chosen = from_mask((within.valid & ~rest) | target, num_keep)
    return fold(chosen, metric, within, rest, target, num_contextual)


@typed
def stride_targets(
    scores: Float[Array, "B V"],
    within: Segments,
    dominant: Int[Array, "B V"],
    contextual: Int[Array, "B V"],
) -> tuple[Bool[Array, "B V"], Bool[Array, "B V"]]:
    """Mark what is not dominant, and of that the evenly strided targets; arguments of `reduce`."""
    rest = within.valid & (within.rank(scores) >= dominant)  # [B, V]
    stride = jnp.maximum((within.count - dominant) // jnp.maximum(contextual, 1), 1)
    # Number the rest of each segment 0, 1, 2, ...; anything at the others.
    before = jnp.cumsum(rest, axis=1, dtype=jnp.int32) - rest
    place = before - jax.lax.cummax(jnp.where(within.begins, before, 0), axis=1)
    return rest, rest & (place % stride == 0) & (place // stride < contextual)


@typed
def fold(
    chosen: Selection,
    metric: Float[Array, "B V C"],
    within: Segments,
    rest: Bool[Array, "B V"],
    target: Bool[Array, "B V"],
    num_targets: int,
    merge: str = "sum",
    near: float = NEAR,
) -> Selection:
    """Weigh what each target takes in: the tokens of the rest whose metric is nearest to its own.

    Args:
        chosen: kept tokens, all targets among them.
        metric, within: as in `reduce`.
        rest: tokens to merge, targets included. Without a target in its segment one is lost.
        target: of each segment.
        num_targets: bound on the targets of a sample; at 0 nothing is weighed.
        merge: "sum" adds the mean of the group to its target, "mean" averages both.
        near: cosines that differ by no more are a tie.
    """
    if num_targets == 0:
        return chosen
    targets = from_mask(target, num_targets)
    metric = normalize(metric)
    centres = jnp.take_along_axis(metric, targets.index[..., None], axis=1)  # [B, A, C]
    cosine = jnp.einsum("bvc,btc->bvt", metric, centres, precision=jax.lax.Precision.HIGHEST)
    owner = jnp.take_along_axis(within.number, targets.index, axis=1)  # [B, A]
    same = (within.number[:, :, None] == owner[:, None]) & targets.valid[:, None]
    # NaN is like nothing, but goes to no other segment for that.
    cosine = jnp.where(same, jnp.where(jnp.isnan(cosine), -2.0, cosine), -jnp.inf)
    # Which of the A, the first of those that are alike but for rounding: [B, V].
    nearest = jnp.argmax(cosine >= cosine.max(axis=2, keepdims=True) - near, axis=2)
    goes = rest & ~target & same.any(axis=2)
    goal = jnp.where(goes, jnp.take_along_axis(targets.index, nearest, axis=1), -1)
    group = (chosen.index[..., None] == goal[:, None]) & chosen.valid[..., None]  # [B, K, V]
    size, own = group.sum(axis=2, keepdims=True), keep_weights(chosen, rest.shape[1])
    if merge == "mean":
        return chosen.replace(weights=(own + group) / (1.0 + size))
    mean = group / jnp.maximum(size, 1)
    return chosen.replace(weights=own + mean.astype(jnp.float32))
