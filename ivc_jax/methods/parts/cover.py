"""The steps of FSR: joint scores, the focus set, a scan for coverage, and a light merge.

Each works inside the segments it is given. The scan is the greedy rule for k centres: no token is
farther from the tokens kept than twice the least that any choice with this focus set could reach.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods import scoring
from ivc_jax.methods.frames import over_segment
from ivc_jax.methods.segments import Segments
from ivc_jax.types import Selection, typed

_LEAST_WEIGHT = 1e-6  # of a token in a merge; the joint score may be exactly 0 (chosen)


@flax.struct.dataclass
class Cover:
    """The tokens kept, and for every token of the segment the scanned one that is nearest to it."""

    keep: jax.Array  # [B, V] bool
    anchor: jax.Array  # [B, V] bool, the kept tokens that the scan has added
    owner: jax.Array  # [B, V] int32, visual index of the nearest anchor, the earliest of equals
    closeness: jax.Array  # [B, V] float32, cosine with it; -inf where the segment has no anchor


@typed
def joint_scores(
    saliency: Float[Array, "B V"],
    relevance: Float[Array, "B V"] | None,
    within: Segments,
    alpha: float = 3.0,
    beta: float = 1.0,
) -> Float[Array, "B V"]:
    """Multiply relevance^alpha by saliency^beta, both scaled to [0, 1] in their segment.

    Padding gets 0, and so do all tokens of a segment whose scores are all alike.
    """
    joint = _scaled(saliency, within) ** beta
    if relevance is not None:
        joint = joint * _scaled(relevance, within) ** alpha
    return jnp.where(within.number >= 0, joint, 0.0)


def _scaled(scores: jax.Array, within: Segments) -> jax.Array:
    scores = jnp.where(within.number >= 0, scores.astype(jnp.float32), 0.0)
    least = over_segment(jax.ops.segment_min, scores, within)
    most = over_segment(jax.ops.segment_max, scores, within)
    return (scores - least) / (most - least + 1e-12)


@typed
def focus(
    joint: Float[Array, "B V"], within: Segments, target: Int[Array, "B V"], focus_mass: float
) -> Bool[Array, "B V"]:
    """Mark the fewest best tokens of a segment that hold `focus_mass` of its summed score.

    At least one token, and no more than `target` (chosen: flat scores would leave no room).
    """
    valid, V = within.number >= 0, joint.shape[1]
    rank = scoring.rank_in_segment(joint, within.number, valid)
    # rank     0    1    2    3        the third token is the first to reach 0.9 of 1.0
    # joint   .5   .3   .15  .05
    # running .5   .8   .95  1.0       two fall short: three are marked
    group = jnp.where(valid, within.number, V)
    slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), group.shape)
    _, place, order = jax.lax.sort((group, rank, slots), num_keys=2)
    running = _running_sum(jnp.take_along_axis(joint, order, axis=1), place)
    _, running = jax.lax.sort((order, running), num_keys=1)  # back to the order of tokens
    total = over_segment(jax.ops.segment_max, running, within)
    short = (running < focus_mass * total).astype(jnp.int32)
    count = 1 + over_segment(jax.ops.segment_sum, short, within)
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

    The distance is 1 - cosine, ties go to the lowest index. One segment is filled after the other,
    a token a step in every sample: num_keep steps of V D products, and no V x V array.

    Args:
        target: tokens to keep in this token's segment.
        num_keep: K, at least the sum of the targets of a sample.
    """
    number, valid, V = within.number, within.number >= 0, focused.shape[1]
    units = scoring.unit(vectors)
    slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), number.shape)
    # group     0  0  0  1  1  V      one step for each token to keep; V: nothing left to do
    # is focus  x  x  -  x  -  -      the focus set comes first, its own order does not matter
    rank = scoring.rank_in_segment(focused.astype(jnp.float32), number, valid)
    group = jnp.where(rank < target, number, V)
    group, _, order = jax.lax.sort((group, rank, slots), num_keys=2)
    is_focus = jnp.take_along_axis(focused, order, axis=1)

    def step(state: tuple[Cover, jax.Array], plan: tuple) -> tuple[tuple[Cover, jax.Array], None]:
        cover, nearest = state  # the largest cosine with a token kept so far
        group, token, from_focus = (part[:, None] for part in plan)
        mine = number == group
        farthest = jnp.where(mine & ~cover.keep, nearest, jnp.inf).argmin(axis=1)[:, None]
        token = jnp.where(from_focus, token, farthest.astype(jnp.int32))
        picked = jnp.take_along_axis(units, token[..., None], axis=1)[:, 0]
        exact = jax.lax.Precision.HIGHEST
        cosine = jnp.einsum("bvd,bd->bv", units, picked, precision=exact)
        closer = mine & ~from_focus & (cosine > cover.closeness)
        hit = mine & (slots == token)
        cover = Cover(
            keep=cover.keep | hit,
            anchor=cover.anchor | (hit & ~from_focus),
            owner=jnp.where(closer, token, cover.owner),
            closeness=jnp.where(closer, cosine, cover.closeness),
        )
        return (cover, jnp.where(mine, jnp.maximum(nearest, cosine), nearest)), None

    none, far = jnp.zeros_like(valid), jnp.full(valid.shape, -jnp.inf, jnp.float32)
    plan = [part[:, :num_keep].T for part in (group, order, is_focus)]
    start = Cover(keep=none, anchor=none, owner=jnp.zeros_like(number), closeness=far)
    (cover, _), _ = jax.lax.scan(step, (start, far), tuple(plan))
    return cover


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
    dropped = (within.number >= 0) & ~cover.keep
    anchors = over_segment(jax.ops.segment_sum, cover.anchor.astype(jnp.int32), within)
    merges = jnp.asarray(scoring.rounded_counts(merge_ratio, V, "floor"))[anchors]
    rank = scoring.rank_in_segment(cover.closeness, within.number, dropped)
    place = jnp.where(cover.keep, jnp.arange(V), -1)
    place = jnp.where(dropped & (rank < merges), cover.owner, place)

    chosen = scoring.from_mask(cover.keep, num_keep)
    member = (chosen.index[..., None] == place[:, None]) & chosen.valid[..., None]  # [B, K, V]
    weights = jnp.where(member, jnp.maximum(joint, _LEAST_WEIGHT)[:, None], 0.0)
    weights = weights / jnp.maximum(weights.sum(axis=2, keepdims=True), _LEAST_WEIGHT)
    alone = member.sum(axis=2, keepdims=True) == 1
    return chosen.replace(weights=jnp.where(alone, member.astype(jnp.float32), weights))
