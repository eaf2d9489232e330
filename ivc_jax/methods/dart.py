"""DART (arXiv 2502.11494): a few pivot tokens each keep the tokens that resemble them least."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import ModelConfig
from ivc_jax.ivc import rank_in_segment
from ivc_jax.methods import budget
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.fields import check_choice, check_not_negative, require
from ivc_jax.methods.question import mark_behind
from ivc_jax.methods.requests import Hidden, Keys, Request, Signals, TokenVectors
from ivc_jax.methods.select import (
    NEAR,
    Segments,
    bound_total,
    from_mask,
    keep_one,
    normalize,
    round_counts,
)
from ivc_jax.types import Layout, Selection, typed

# Part of 2 - cosine within which the next one is its equal: well above rounding, and finer than
# `NEAR`, since hundreds of cosines lie close together.
_NEAR = 2.0**-20


@dataclasses.dataclass(frozen=True)
class Dart(Method):
    """Keep the tokens with the longest keys, and those that resemble these and the question least.

    Pivots are the visual tokens, and the text tokens behind the last visual one, whose rotated keys
    in the block before the cut have the largest L1 norms. In turn, visual pivots by falling norm,
    then text pivots by falling norm, each keeps a quota of the tokens left: those whose hidden
    states, through the model's last norm, have the smallest cosine to its own. The released code
    (ZichenWen1/DART) takes the pivots in the order of a set of integers, which hangs on the length
    of the system prompt.

    With n tokens to keep round(keep_ratio * n), the quotas of all pivots differ by one at most and
    make up that number; where it is below the number of visual pivots, the longest keys stay alone.
    The L1 norms take N G C operations, the cosines V D for each pivot.

    Attributes:
        layer: first block that sees the shorter sequence. A budget that the blocks before it would
            exceed moves it forward. 0 goes by the L1 norms of what enters the decoder, which is no
            published method.
        keep_ratio: share of visual tokens kept, rounded half to even; 0.5 if no budget is given.
        budget: mean over layers of the share in the cache, instead of keep_ratio.
        visual_pivots: at least 1.
        text_pivots: of these there are fewer where there is less text behind the images.
        counts: "exact", or "code": every pivot keeps floor(keep_ratio * n / pivots) besides the
            visual pivots themselves, as released; 192 of 576 tokens are 196 then.
        per_image: every image has its own visual pivots and its own count.
    """

    name: ClassVar[str] = "dart"

    layer: int = 2
    keep_ratio: float | None = None
    budget: float | None = None
    visual_pivots: int = 4
    text_pivots: int = 4
    counts: str = "exact"
    per_image: bool = False

    def __post_init__(self) -> None:
        check_not_negative(layer=self.layer, text_pivots=self.text_pivots)
        if self.visual_pivots < 1:
            raise MethodError(f"visual_pivots must be at least 1, got {self.visual_pivots}")
        budget.settle_keep_ratio(self)
        check_choice("counts", self.counts, ("exact", "code"))

    def resolve(self, config: ModelConfig) -> "Dart":
        """Solve the budget at the latest layer that allows it."""
        return budget.resolve_early(self, config.decoder.num_layers)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut; the blocks before it keep their caches whole."""
        return (Stage(self.layer, require(self.keep_ratio, self.name, "keep_ratio")),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for keys of the block before the cut, and for what enters the one behind it."""
        return self._measured(stage), Hidden(normed=True)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens by the counts, of every image or of the sample."""
        counts = self._count(stage, visual_slots)
        if self.counts == "code":
            counts = np.minimum(counts + self.visual_pivots, np.arange(len(counts)))
        return bound_total(counts, num_images if self.per_image else 1)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Find the pivots and let each take its quota."""
        if not layout.visual_valid.shape[1]:
            return from_mask(layout.visual_valid, num_keep)
        vectors = signals[self._measured(stage)]
        lengths = TokenVectors(*(_measure_length(v) for v in (vectors.visual, vectors.text)))
        keep = self.mark(lengths, signals[Hidden(normed=True)], layout, stage)
        return from_mask(keep, num_keep)

    def mark(
        self,
        lengths: TokenVectors,
        hidden: TokenVectors,
        layout: Layout,
        stage: Stage,
        order: Sequence[int] | None = None,
    ) -> jax.Array:
        """Mark the tokens to keep, bool [B, V].

        Args:
            lengths: L1 norms of the keys, [B, V] and [B, T].
            hidden: vectors to compare.
            order: in which the pivots take their quotas, by their numbers, visual pivots by falling
                norm first; None is 0, 1, 2, ...
        """
        within = Segments.by_image(layout) if self.per_image else Segments.by_sample(layout)
        number = self.visual_pivots
        rank = within.rank(lengths.visual)  # [B, V]
        asked, present = find_text_pivots(lengths.text, layout, self.text_pivots)
        cosine = compare_with_pivots(hidden, rank, within, number, asked)  # [P, B, V]
        count = within.look_up(self._count(stage, layout.visual_slots))  # [B, V]
        alone, quotas = self.share(count, present[:, None], len(cosine))
        if order is not None:
            cosine = cosine[jnp.asarray(order)]
        return take_unlike(cosine, quotas, rank < alone, within)

    def share(
        self, count: jax.Array, text_pivots: jax.Array, pivots: int
    ) -> tuple[jax.Array, jax.Array]:
        """Share the tokens to keep out to the pivots.

        Args:
            count: int32 [B, V], of this token's segment.
            text_pivots: how many a sample has, int32 [B, 1].
            pivots: P, the most that there can be.

        Returns:
            Visual pivots that are kept [B, V], and the quotas [P, B, V].
        """
        number, present = self.visual_pivots, self.visual_pivots + text_pivots
        places = jnp.arange(pivots)[:, None, None]  # [P, 1, 1]
        if self.counts == "code":
            alone, quotas = jnp.full_like(count, number), count // present
        else:
            left = jnp.maximum(count - number, 0)
            alone, quotas = jnp.minimum(number, count), left // present
            quotas = quotas + (places < left % present)
        return alone, jnp.where(places < present, quotas, 0)

    def _measured(self, stage: Stage) -> Request:
        return Keys(stage.layer - 1) if stage.layer else Hidden()

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        if self.counts == "code":
            return round_counts(stage.keep_ratio, max_count, "floor")
        return keep_one(round_counts(stage.keep_ratio, max_count))


def _measure_length(vectors: jax.Array) -> jax.Array:
    """Add up absolute values of [B, N, ...] to [B, N] in float32."""
    return jnp.abs(vectors.astype(jnp.float32)).sum(axis=range(2, vectors.ndim))


@typed
def find_text_pivots(
    length: Float[Array, "B T"], layout: Layout, number: int
) -> tuple[Int[Array, "B P"], Int[Array, " B"]]:
    """Find the longest text tokens behind the last visual one, first of equals, longest first.

    Returns:
        Their text slots, anything where there are fewer than `number`; and how many there are.
    """
    behind = mark_behind(layout)  # [B, T]
    rank = rank_in_segment(length, jnp.zeros_like(layout.text_index), behind, NEAR)
    present = jnp.minimum(behind.sum(axis=1, dtype=jnp.int32), number)
    return jnp.argsort(rank, axis=1)[:, :number].astype(jnp.int32), present


@typed
def compare_with_pivots(
    hidden: TokenVectors,
    rank: Int[Array, "B V"],
    within: Segments,
    number: int,
    asked: Int[Array, "B Q"],
) -> Float[Array, "P B V"]:
    """Return the cosine of every token to the visual pivots of its segment and to those of text.

    Args:
        rank: in its segment; the first `number` are the visual pivots.
        asked: text slots of the other pivots.
    """
    visual, text = normalize(hidden.visual), normalize(hidden.text)
    exact, cosines = jax.lax.Precision.HIGHEST, []
    segments = jnp.arange(within.bound)
    for place in range(number):
        hit = (rank == place)[:, None] & (within.number[:, None] == segments[:, None])  # [B, M, V]
        pivots = jnp.take_along_axis(visual, jnp.argmax(hit, axis=2)[..., None], axis=1)
        each = jnp.einsum("bvd,bmd->bvm", visual, pivots, precision=exact)
        own = jnp.maximum(within.number, 0)[..., None]  # [B, V, 1]
        cosines.append(jnp.take_along_axis(each, own, axis=2)[..., 0])
    pivots = jnp.take_along_axis(text, asked[..., None], axis=1)  # [B, Q, D]
    others = jnp.einsum("bvd,bqd->qbv", visual, pivots, precision=exact)
    return jnp.concatenate([jnp.stack(cosines), others])


@typed
def take_unlike(
    cosine: Float[Array, "P B V"],
    quotas: Int[Array, "P B V"],
    first: Bool[Array, "B V"],
    within: Segments,
) -> Bool[Array, "B V"]:
    """Let one pivot after the other take the tokens with the smallest cosine that are left.

    Args:
        quotas: how many it takes of this token's segment; all that are left where these are fewer.
        first: tokens that are kept from the beginning.
    """

    def step(keep: jax.Array, pivot: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        cosine, quota = pivot
        # From 1 to 3: parts of it are differences between cosines, near 0 too.
        rank = within.rank(2 - cosine, within.valid & ~keep, _NEAR)
        return keep | (within.valid & (rank < quota)), None

    return jax.lax.scan(step, first & within.valid, (cosine, quotas))[0]
