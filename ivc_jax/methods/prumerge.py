"""PruMerge and PruMerge+ (arXiv 2403.15388): outliers of attention take in neighbours."""

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.defaults import choose_merge
from ivc_jax.methods.fields import check_choice, check_merge
from ivc_jax.methods.quantile import find_quantile
from ivc_jax.methods.requests import (
    Request,
    Signals,
    TowerAttention,
    TowerKeys,
    ask_merged,
)
from ivc_jax.methods.select import (
    NEAR,
    NEAR_COSINE,
    Segments,
    bound_total,
    from_mask,
    keep_weights,
    normalize,
    round_counts,
)
from ivc_jax.methods.upfront import MergingUpfront, Upfront, spare
from ivc_jax.types import Layout, Selection, typed

_LEAST = 2  # tokens of an image: one selected, and the extra one


@dataclasses.dataclass(frozen=True)
class PruMerge(MergingUpfront):
    """Keep the most attended tokens of every frame; each takes in its nearest, one all others.

    A selected token becomes itself plus its `neighbours` nearest tokens by key, whether they stay
    or not, each times the attention that it receives. One extra token, in the slot of the most
    attended of the others, is the sum of all others, so weighted. Every image, tile or frame has
    counts of its own: floor(keep_ratio * tokens), the extra one included, at least 2 of an image or
    video; a frame that rounds to one keeps the extra one alone. Tokens stay in raster order, where
    the released code orders them by attention. Even keep_ratio=1 merges: that is not the dense
    model.

    The released code looks at the tower's last block, of which LLaVA uses nothing else and which is
    not loaded here: this asks the block whose output is the feature. It also keeps the tokens twice
    that are selected twice at a fixed share, and loses others for them; here none is.

    Attributes:
        plus: PruMerge+: floor((K - 1) / 2) evenly strided tokens stay, then the most attended.
        adaptive: the picture says how many (released): attention above Q3 + 1.5 (Q3 - Q1), one
            token at least; with `plus` every floor(floor(tokens / outliers) / 3)-th token too. The
            sequence is padded to all tokens.
        neighbours: tokens that a selected one takes in.
        merge: "sum" (code), or "mean": a selected token and its neighbours over 1 plus their
            attention (paper).
        keys: "joined" heads, side by side (code), or their "mean".
        attention: "joined", one head as wide as all (code for CLIP), or the "mean" over heads; None
            asks `resolve`: joined with a class token.
        merge_in: the "tower" merges its features, and the projector follows (released), or what
            enters the "decoder" merges; None asks `resolve`: "tower" where a token is one patch.
    """

    name: ClassVar[str] = "prumerge"

    plus: bool = False
    adaptive: bool = False
    neighbours: int = 32
    merge: str = "sum"
    keys: str = "joined"
    attention: str | None = None
    merge_in: str | None = None

    def __post_init__(self) -> None:
        if self.adaptive:
            if self.budget is not None or self.keep_ratio not in (None, 1):
                raise MethodError(
                    "prumerge: with adaptive=true the picture says how much stays; leave keep_ratio"
                    " and budget out"
                )
            object.__setattr__(self, "keep_ratio", 1.0)  # frozen, but not yet made
        super().__post_init__()
        if self.neighbours < 1:
            raise MethodError(f"neighbours must be at least 1, got {self.neighbours}")
        check_choice("merge", self.merge, ("sum", "mean"))
        check_choice("keys", self.keys, ("joined", "mean"))
        check_choice("attention", self.attention, ("joined", "mean"))
        check_merge(self.merge_in)

    def resolve(self, config: ModelConfig) -> Upfront:
        """Fill in keep_ratio, positions, the attention and where tokens merge."""
        attention = self.attention or ("joined" if config.vision.class_token else "mean")
        merge_in = choose_merge(self.merge_in, config)
        method = dataclasses.replace(self, attention=attention, merge_in=merge_in)
        return Upfront.resolve(method, config)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the tower's last attention and keys, and for what merges there."""
        return self._attention, TowerKeys(heads=self.keys), *ask_merged(stage.merge_in)

    @property
    def _attention(self) -> TowerAttention:
        # Sums over the patches of a token, so that what an image gives adds up to 1.
        return TowerAttention(heads=self.attention or "mean", patches="sum")

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the sum over images."""
        return bound_total(self._count(stage, visual_slots), num_images)

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        counts = np.maximum(round_counts(stage.keep_ratio, max_count, "floor"), _LEAST)
        return np.minimum(counts, np.arange(max_count + 1)).astype(np.int32)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Choose in every image or frame, and merge."""
        V = layout.visual_slots
        within = Segments.by_frame(layout)
        given = jnp.where(within.valid, signals[self._attention](), 0.0)  # [B, V]
        if self.adaptive:
            choice = choose_outliers(given, within, self.plus)
        else:
            total = within.look_up(round_counts(stage.keep_ratio, V, "floor"))
            total = spare(total, layout, _LEAST)  # [B, V]
            choice = choose_best(given, within, total, self.plus)
        chosen = from_mask(choice.selected | choice.extra, num_keep)
        near = find_neighbours(
            signals[TowerKeys(heads=self.keys)], chosen, choice, within, self.neighbours
        )  # [B, K, V]
        own, given = keep_weights(chosen, V), given[:, None]
        taken = jnp.where(near, given, 0.0)
        merged = own + taken
        if self.merge == "mean":
            merged = merged / (1 + taken.sum(axis=2, keepdims=True))
        number = jnp.take_along_axis(within.number, chosen.index, axis=1)
        same = number[..., None] == within.number[:, None]  # [B, K, V]
        others = jnp.where(same & choice.rest[:, None], given, 0.0)
        is_extra = jnp.take_along_axis(choice.extra, chosen.index, axis=1)[..., None]
        weights = jnp.where(is_extra, others, merged)
        return chosen.replace(weights=jnp.where(chosen.valid[..., None], weights, 0.0))


@flax.struct.dataclass
class Choice:
    """What becomes of tokens: bool [B, V], and their place in the released order, [B, V]."""

    selected: jax.Array
    extra: jax.Array  # gives its slot to the sum of the rest, which it is one of
    rest: jax.Array
    place: jax.Array  # in the list: by attention, then strided, then the rest

    @classmethod
    def complete(
        cls, given: jax.Array, within: Segments, best: jax.Array, strided: jax.Array
    ) -> "Choice":
        """Find the rest, and the token that gives its slot to it."""
        slots, V = jnp.arange(given.shape[1], dtype=jnp.int32), given.shape[1]
        rest = within.valid & ~best & ~strided
        place = jnp.where(strided, V, 2 * V) + slots
        place = jnp.where(best, within.rank(given), place)
        return cls(best | strided, rest & (within.rank(given, rest) == 0), rest, place)


@typed
def choose_best(
    given: Float[Array, "B V"], within: Segments, total: Int[Array, "B V"], plus: bool
) -> Choice:
    """Choose as many tokens as `total` says, the extra one included.

    Args:
        given: attention received.
        total: of this token's segment.
    """
    # The only token of a frame has nothing to leave to an extra one.
    wanted = jnp.where(within.count == 1, total, total - 1)  # [B, V]
    strided = jnp.zeros_like(within.valid)
    if plus:
        # Place p of n holds one of s strided ones, floor((j + 1/2) n / s), if there are more of
        # them before p + 1 than before p: j < (2 s p / n - 1) / 2.
        num, count = jnp.maximum(wanted // 2, 0), jnp.maximum(within.count, 1)  # s, n
        slots = jnp.arange(given.shape[1], dtype=jnp.int32)

        def count_before(place: jax.Array) -> jax.Array:
            return jnp.maximum(-((count - 2 * num * place) // (2 * count)), 0)

        at = slots - within.first
        strided = within.valid & (count_before(at + 1) > count_before(at))
        wanted = wanted - num
    best = within.rank(given, within.valid & ~strided) < wanted
    choice = Choice.complete(given, within, best, strided)
    return choice.replace(extra=choice.extra & (total > 0))


@typed
def choose_outliers(given: Float[Array, "B V"], within: Segments, plus: bool) -> Choice:
    """Choose the tokens above the upper fence of their segment's box plot, one at least."""
    lower, upper = (find_quantile(given, within, q, within.valid) for q in (0.25, 0.75))
    fence = upper + 1.5 * (upper - lower)  # [B, V]
    above = within.valid & (given > (1 + NEAR) * fence)
    number = jnp.maximum(within.sum(above.astype(jnp.int32)), 1)
    best = within.top(given, jnp.where(within.valid, number, 0))
    strided = jnp.zeros_like(best)
    if plus:
        stride = jnp.maximum(within.count // number // 3, 1)
        at = jnp.arange(given.shape[1], dtype=jnp.int32) - within.first
        strided = within.valid & ~best & (at % stride == 0) & (at < within.count - 1)
    return Choice.complete(given, within, best, strided)


@typed
def find_neighbours(
    keys: Float[Array, "B V E"], chosen: Selection, choice: Choice, within: Segments, most: int
) -> Bool[Array, "B K V"]:
    """Mark the tokens of its segment whose keys are nearest to that of each kept token by cosine.

    All others of the segment where there are no more than `most`. Equally near ones go by their
    place in the list of selected and other tokens.
    """
    order = jnp.argsort(choice.place, axis=1)  # [B, V], the list

    def listed(array: jax.Array) -> jax.Array:
        index = order.reshape(*order.shape, *(1,) * (array.ndim - 2))
        return jnp.take_along_axis(array, index, axis=1)

    units = normalize(keys)
    rows = jnp.take_along_axis(units, chosen.index[..., None], axis=1)  # [B, K, E]
    exact = jax.lax.Precision.HIGHEST
    cosine = jnp.einsum("bke,bve->bkv", rows, listed(units), precision=exact)  # [B, K, V]
    number = jnp.take_along_axis(within.number, chosen.index, axis=1)[..., None]  # [B, K, 1]
    other = (number == listed(within.number)[:, None]) & (chosen.index[..., None] != order[:, None])
    cosine = jnp.where(other & ~jnp.isnan(cosine), cosine, -jnp.inf)
    least = _find_largest(cosine, min(most, cosine.shape[2]))  # [B, K, 1]
    nearer = cosine > least + NEAR_COSINE
    equal = jnp.abs(cosine - least) <= NEAR_COSINE  # nothing where the segment has fewer
    room = most - nearer.sum(axis=2, keepdims=True)
    taken = nearer | (equal & (jnp.cumsum(equal, axis=2) <= room))
    return jnp.take_along_axis(taken, jnp.argsort(order, axis=1)[:, None], axis=2)


def _find_largest(values: jax.Array, number: int) -> jax.Array:
    """Return which value is so many-th from the largest of each row: [..., N] to [..., 1].

    Bit by bit, in 32 comparisons: `top_k` sorts whole rows on a CPU, which took 14 to 18 times as
    long when measured by hand (192 rows of 576, 512 of 1,024).
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # unsigned numbers in the order of the floats: negative ones turned over, below the others
    ordered = jnp.where(bits & sign, ~bits, bits | sign)

    def settle(place: jax.Array, found: jax.Array) -> jax.Array:
        trial = found | (sign >> place.astype(jnp.uint32))
        return jnp.where((ordered >= trial).sum(axis=-1, keepdims=True) >= number, trial, found)

    found = jax.lax.fori_loop(0, 32, settle, jnp.zeros((*values.shape[:-1], 1), jnp.uint32))
    found = jnp.where(found & sign, found ^ sign, ~found)
    return jax.lax.bitcast_convert_type(found, jnp.float32)
