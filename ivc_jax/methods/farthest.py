"""The farthest token next: the greedy rule for k centres, whatever a distance is."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods.select import Segments, first_largest
from ivc_jax.types import typed


@flax.struct.dataclass
class Cover:
    """The tokens kept, and for every token of the segment the picked one that is nearest to it."""

    keep: jax.Array  # [B, V] bool
    order: jax.Array  # [B, V] int32, the step that has kept it; V if none has
    anchor: jax.Array  # [B, V] bool, kept because it was the farthest
    owner: jax.Array  # [B, V] int32, visual index of the nearest anchor, the earliest of equals
    closeness: jax.Array  # [B, V] float32, to that anchor; -inf where the segment has none


@typed
def by_cosine(units: Float[Array, "B V D"]) -> Callable[[jax.Array], jax.Array]:
    """Return a `compare` for `pick`, the cosine of all tokens to one: V D products a step.

    Args:
        units: vectors of length one, float32.
    """

    def compare(token: jax.Array) -> jax.Array:
        picked = jnp.take_along_axis(units, token[..., None], axis=1)[:, 0]  # [B, D]
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum("bvd,bd->bv", units, picked, precision=exact)  # [B, V]

    return compare


@typed
def pick(
    compare: Callable[[jax.Array], jax.Array],
    within: Segments,
    target: Int[Array, "B V"],
    num_keep: int,
    given: Bool[Array, "B V"] | None = None,
    near: float = 0.0,
) -> Cover:
    """Keep, one by one, the token that is farthest from all those kept so far.

    No token is farther from those kept than twice the least that any choice with the same given
    tokens could reach. Where nothing is given a segment begins with its first token; ties go to the
    lowest index. One segment is filled after the other, a token a step in every sample, and there
    is no V x V array.

    Args:
        compare: closeness [B, V] of all tokens to one of each sample, whose visual index is
            [B, 1]; the farthest token has the least.
        target: tokens to keep in this token's segment.
        num_keep: K, at least the sum of the targets of a sample.
        given: tokens that are kept before all others; they are no anchors.
        near: closenesses that differ by no more are a tie.
    """
    number, valid = within.number, within.valid
    V = number.shape[1]
    given = jnp.zeros_like(valid) if given is None else given
    slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), number.shape)
    # group     0  0  0  1  1  V      one step for each token to keep; V: nothing left to do
    # is given  x  x  -  x  -  -      given tokens come first, their own order does not matter
    rank = within.rank(given.astype(jnp.float32))
    group = jnp.where(rank < target, number, V)
    group, _, order = jax.lax.sort((group, rank, slots), num_keys=2)
    is_given = jnp.take_along_axis(given, order, axis=1)  # [B, V], in the order of steps

    def step(state: tuple[Cover, jax.Array], plan: tuple) -> tuple[tuple[Cover, jax.Array], None]:
        cover, nearest = state  # the largest closeness to a token kept so far
        time, (group, token, from_given) = plan[0], (part[:, None] for part in plan[1:])  # [B, 1]
        mine = number == group  # [B, V], the segment that this step fills
        farthest = first_largest(jnp.where(mine & ~cover.keep, -nearest, -jnp.inf), near)
        token = jnp.where(from_given, token, farthest)
        closeness = compare(token)  # [B, V]
        # What is given owns nothing: only picked tokens take in dropped ones.
        closer = mine & ~from_given & (closeness > cover.closeness + near)
        hit = mine & (slots == token)
        cover = Cover(
            keep=cover.keep | hit,
            order=jnp.where(hit, time, cover.order),
            anchor=cover.anchor | (hit & ~from_given),
            owner=jnp.where(closer, token, cover.owner),
            closeness=jnp.where(closer, closeness, cover.closeness),
        )
        return (cover, jnp.where(mine, jnp.maximum(nearest, closeness), nearest)), None

    none, far = jnp.zeros_like(valid), jnp.full(valid.shape, -jnp.inf, jnp.float32)
    plan = [part[:, :num_keep].T for part in (group, order, is_given)]  # [K, B]
    times = jnp.arange(len(plan[0]), dtype=jnp.int32)
    start = Cover(none, jnp.full_like(number, V), none, jnp.zeros_like(number), far)
    (cover, _), _ = jax.lax.scan(step, (start, far), (times, *plan))
    return cover
