"""VisPruner (arXiv 2412.01818, version 2): tokens with the most attention, and the least alike.

The others stand in a list by falling attention. Of the tokens at its even places those go that are
most like one at an odd place, a few at a time; who is left stands in front, by falling likeness:

    list                       b c d e f g      even b d f, odd c e g
    nearest at an odd place    .9 . .3 . .7 .   one goes: b
    next list                  f d c e g
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.fields import check_choice, check_fractions, require
from ivc_jax.methods.requests import Embeddings, Request, Signals, TowerAttention, TowerFeatures
from ivc_jax.methods.select import NEAR, Segments, from_mask, normalize, round_counts
from ivc_jax.methods.upfront import Upfront, lose_no_image
from ivc_jax.types import Layout, Selection, typed

# Tokens with a larger cosine are one and the same, but for rounding.
_SAME = 1 - 2.0**-21


@dataclasses.dataclass(frozen=True)
class VisPruner(Upfront):
    """Keep important tokens by attention, and of the others a diverse rest.

    The rule of the released code (Theia-4869/VisPruner, llava/model/llava_arch.py), which fails on
    lists of odd length; here the even places of such a list are one more. A tower without class
    token is asked for the attention that tokens receive. Every frame is pruned alone and keeps
    floor(keep_ratio * tokens); a video that rounds to none keeps one token.

    The cosines take V² D operations and B V² float32 numbers, the (V - K) / step rounds V² each.

    Attributes:
        important_ratio: share of the kept tokens that attention chooses, rounded down; 1 is
            FasterVLM with another rounding. Released without a default, 0.5 in the README.
        step: tokens that leave the list in a round (released 8).
        similarity: of features as they leave the "tower", or as they enter the "decoder"; None asks
            `resolve`: the tower's if a token is one patch (LLaVA, as published).
    """

    name: ClassVar[str] = "vispruner"

    important_ratio: float = 0.5
    step: int = 8
    similarity: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "important_ratio", float(self.important_ratio))
        check_fractions(important_ratio=self.important_ratio)
        check_choice("similarity", self.similarity, ("tower", "decoder"))
        if self.step < 1:
            raise MethodError(f"step must be at least 1, got {self.step}")

    def resolve(self, config: ModelConfig) -> "VisPruner":
        """Fill in keep_ratio, positions and similarity."""
        usual = "tower" if config.vision.merge_area == 1 else "decoder"
        method = super().resolve(config)
        return dataclasses.replace(method, similarity=self.similarity or usual)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the attention, and for features to compare."""
        compared = require(self.similarity, self.name, "similarity")
        return TowerAttention(), TowerFeatures() if compared == "tower" else Embeddings()

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Take the important tokens of every frame, then the diverse ones."""
        if self.similarity == "tower":
            features = signals[TowerFeatures()]  # [B, V, E]
        else:
            features = signals[Embeddings()].visual  # [B, V, D]
        within = Segments.by_frame(layout)
        counts = within.look_up(self._count(stage, layout.visual_slots))  # [B, V]
        counts = lose_no_image(counts, layout)
        share = jnp.asarray(round_counts(self.important_ratio, layout.visual_slots, "floor"))
        keep = spread_out(
            *(features, signals[TowerAttention()](), within, counts, share[counts], self.step)
        )
        return from_mask(keep, num_keep)


@typed
def spread_out(
    features: Float[Array, "B V D"],
    attention: Float[Array, "B V"],
    within: Segments,
    counts: Int[Array, "B V"],
    important: Int[Array, "B V"],
    step: int,
) -> Bool[Array, "B V"]:
    """Keep the most attended tokens of each segment and, of the others, some that are unlike.

    Args:
        counts: tokens that the segment of this token keeps.
        important: how many of these attention chooses.
        step: at most so many leave in a round.

    Returns:
        The mask of the kept tokens.
    """
    B, V, _ = features.shape
    if not V:
        return within.valid
    cosine, kind = compare(features, within)
    # tokens of a segment, in its slots     a a a | b c d e f     important ones, and the list
    #                                       a a a b | f d c e     after a round: b is gone
    order = order_by_attention(attention, kind, within)  # [B, V]
    target = counts - important  # [B, V], of the list
    rows, slots = jnp.arange(B)[:, None], jnp.arange(V)

    def thin(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        order, begin = state  # [B, V] each, the latter slots of the segment before the list
        size = within.count - begin
        gone = jnp.minimum(jnp.minimum(step, size // 2), size - target)
        gone = jnp.where(target > 0, jnp.maximum(gone, 0), 0)  # [B, V]
        place = slots - within.first - begin
        odd = within.valid & (place >= 0) & (place % 2 == 1)  # of slots
        odd = jnp.zeros((B, V), bool).at[rows, order].set(odd)  # of tokens
        nearest = (cosine + jnp.where(odd, 0.0, -jnp.inf)[:, None]).max(axis=2)  # [B, V]
        nearest = jnp.take_along_axis(nearest, order, axis=1)  # of slots
        # before the list, its even places, its odd ones: only the second are sorted
        part = jnp.where((place < 0) | (gone == 0) | ~within.valid, 0, 1 + place % 2)
        falling = jnp.where(part == 1, _as_falling(nearest), 0)
        keys = 3 * within.first + part, falling, order
        return jax.lax.sort(keys, num_keys=2, is_stable=True)[2], begin + gone

    def unfinished(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        left = within.count - state[1]
        return (within.valid & (left > target) & (target > 0)).any()

    order, begin = jax.lax.while_loop(unfinished, thin, (order, important))
    place = slots - within.first
    kept = (place < important) | ((place >= begin) & (target > 0))  # of slots
    return jnp.zeros((B, V), bool).at[rows, order].set(kept & within.valid)


def _as_falling(values: jax.Array) -> jax.Array:
    """Turn float32 numbers, no NaN, into int32 in opposite order, which sort much faster."""
    bits = jax.lax.bitcast_convert_type(values + 0.0, jnp.int32)  # -0 is 0
    return ~jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)


@typed
def compare(
    features: Float[Array, "B V D"], within: Segments
) -> tuple[Float[Array, "B V V"], Int[Array, "B V"]]:
    """Return the cosines within segments, -inf elsewhere, and a number for each kind of tokens.

    The whole order of the list decides, so a bound within which likenesses tie would change it
    everywhere. But tokens that are equal must not be told apart by rounding: they are all taken for
    the first of them, which is their kind.
    """
    unit = normalize(features)
    cosine = jnp.einsum("bud,bvd->buv", unit, unit, precision=jax.lax.Precision.HIGHEST)
    cosine = jnp.maximum(cosine, cosine.swapaxes(1, 2))  # the same both ways to the last bit
    same = within.number[:, :, None] == within.number[:, None]  # [B, V, V]
    same &= within.valid[:, None]
    alike = same & (cosine > _SAME)
    slots = jnp.arange(unit.shape[1], dtype=jnp.int32)
    # a zero vector is like none, itself included
    kind = jnp.where(alike.any(axis=2), jnp.argmax(alike, axis=2).astype(jnp.int32), slots)
    cosine = jnp.take_along_axis(cosine, kind[:, :, None], axis=1)
    cosine = jnp.take_along_axis(cosine, kind[:, None], axis=2)
    cosine = jnp.where(kind[:, :, None] == kind[:, None], 1.0, cosine)
    return jnp.where(same & ~jnp.isnan(cosine), cosine, -jnp.inf), kind


@typed
def order_by_attention(
    attention: Float[Array, "B V"], kind: Int[Array, "B V"], within: Segments
) -> Int[Array, "B V"]:
    """List the tokens of each segment by falling attention, equal ones of a kind by their index."""
    V = attention.shape[1]
    rank = within.rank(attention, tolerance=0.0)
    order = jnp.argsort(jnp.where(within.valid, within.first + rank, V), axis=1)  # [B, V]
    sorted_kind, sorted_score, number = (
        jnp.take_along_axis(array, order, axis=1) for array in (kind, attention, within.number)
    )
    before, after = sorted_score[:, :-1], sorted_score[:, 1:]
    apart = ~(before - after <= NEAR * after) | (sorted_kind[:, :-1] != sorted_kind[:, 1:])
    apart |= number[:, :-1] != number[:, 1:]
    level = jnp.pad(jnp.cumsum(apart, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
    return jax.lax.sort((level, order.astype(jnp.int32)), num_keys=2)[1]
