"""HoloV (arXiv 2510.02912): share the budget among crops of the image, then rank inside each."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.fields import check_choice, check_not_negative
from ivc_jax.methods.requests import Hidden, Request, Signals, TowerAttention
from ivc_jax.methods.select import NEAR, Segments, from_mask, keep_one
from ivc_jax.methods.upfront import Upfront, lose_no_image
from ivc_jax.types import Layout, Selection, typed

_EPSILON = 1e-6  # of both divisions in the released code (llava/model/utils.py)
# Lifts a product that rounding has left just below a whole number.
_LIFT = 1 + NEAR / 4


@dataclasses.dataclass(frozen=True)
class HoloV(Upfront):
    """Keep tokens of every crop that are attended to and whose similarity to the crop varies.

    Every frame is pruned on its own. With K = floor(keep_ratio * tokens of the sample), a frame
    of n of them keeps k = floor(K * n / tokens), an image at least one. Its crops are runs of
    raster neighbours. The similarities are one masked V x V product in float32: V² D operations
    and B V² numbers.

    Attributes:
        alpha: weight of the similarity term (paper 1, released code 0.09).
        inner: what ranks inside a crop: "score" with the similarity term (paper), or "attention"
            (released code). A crop's mean score is (1 + alpha) times its mean attention whatever
            the similarities, so that under "attention" they decide nothing.
        sharpness: exponent tau of the crop weights (released code 1; the paper gives no value).
        crops: of a frame; None is floor(1024 n / (576 k)), the rule of section 4.
    """

    name: ClassVar[str] = "holov"

    alpha: float = 1.0
    inner: str = "score"
    sharpness: float = 1.0
    crops: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(alpha=self.alpha, sharpness=self.sharpness)
        check_choice("inner", self.inner, ("score", "attention"))
        if self.crops is not None and self.crops < 1:
            raise MethodError(f"crops must be at least 1, got {self.crops}")

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the visual tokens and for the attention they receive in the tower."""
        return Hidden(), TowerAttention()

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens as if every image kept floor(keep_ratio * tokens) of its own."""
        # Where keep_ratio times a sample rounds up to a whole number, its share may pass the floor.
        above = dataclasses.replace(stage, keep_ratio=stage.keep_ratio * (1 + 1e-12))
        return super().capacity(above, visual_slots, num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Score, give every crop its quota, and fill it with the best tokens."""
        within = Segments.by_frame(layout)
        attention = signals[TowerAttention()]()  # [B, V]
        tokens = signals[Hidden()].visual.astype(jnp.float32)  # [B, V, D]
        budget = self._share_sample(layout, within, stage)  # [B, V], as all that follows
        number = count_crops(within.count, budget)
        if self.crops is not None:
            number = jnp.full_like(number, self.crops)
        crops = cut_crops(within, number)
        score = score_holistically(tokens, attention, crops, self.alpha)
        # Attention is 1 / n on average: times n, no power of it leaves the range of float32.
        weight = (crops.mean(score) * within.count) ** self.sharpness
        quota = share_quotas(weight, budget, crops, within)
        ranked = score if self.inner == "score" else attention
        return from_mask(crops.top(ranked, quota), num_keep)

    def _share_sample(self, layout: Layout, within: Segments, stage: Stage) -> jax.Array:
        """Return how many tokens the frame of each token keeps, by its size: int32 [B, V]."""
        total = layout.visual_count  # [B]
        counts = keep_one(self._count(stage, layout.visual_slots))
        kept = jnp.asarray(counts)[total]
        # Unsigned: exact below 65,536 tokens.
        product = kept.astype(jnp.uint32)[:, None] * within.count.astype(jnp.uint32)
        share = product // jnp.maximum(total, 1).astype(jnp.uint32)[:, None]
        return lose_no_image(share.astype(jnp.int32), layout)


@typed
def count_crops(count: Int[Array, "B V"], budget: Int[Array, "B V"]) -> Int[Array, "B V"]:
    """Return how many crops the paper cuts: floor(1024 count / (576 budget)), at least one."""
    return jnp.maximum(16 * count // (9 * jnp.maximum(budget, 1)), 1)


@typed
def score_holistically(
    tokens: Float[Array, "B V D"], attention: Float[Array, "B V"], crops: Segments, alpha: float
) -> Float[Array, "B V"]:
    """Add to the attention how much a token's cosines to its crop vary, on the same scale.

    The cosine of a token to itself counts as 0, in the variance too; the mean is over the others.
    """
    length = jnp.linalg.norm(tokens, axis=-1, keepdims=True)  # [B, V, 1]
    unit = tokens / (length + _EPSILON)
    cosine = jnp.einsum("bud,bvd->buv", unit, unit, precision=jax.lax.Precision.HIGHEST)
    same = crops.number[:, :, None] == crops.number[:, None]  # [B, V, V]
    cosine = jnp.where(same & ~jnp.eye(same.shape[1], dtype=bool), cosine, 0.0)
    others = jnp.maximum(crops.count - 1, 1)
    mean = cosine.sum(axis=2) / others  # [B, V]
    deviation = jnp.where(same, cosine - mean[..., None], 0.0)
    variance = jnp.square(deviation).sum(axis=2) / others
    scale = crops.mean(jnp.abs(attention)) / (crops.mean(variance) + _EPSILON)  # [B, V]
    return attention + alpha * scale * variance


@typed
def cut_crops(within: Segments, number: Int[Array, "B V"]) -> Segments:
    """Cut segments into runs of neighbours, of equal length but that the first may be one longer.

    n = 7, number = 3      0 0 0 1 1 2 2

    Args:
        number: of runs of the segment of this token; at least one is made, at most one a token.
    """
    V, number = number.shape[1], jnp.maximum(number, 1)
    place = jnp.arange(V, dtype=jnp.int32) - within.first  # [B, V]
    length, longer = within.count // number, within.count % number
    border = longer * (length + 1)  # where the runs of one more end
    in_longer = place < border
    # The length is 0 in padding, and where there are fewer tokens than runs.
    offset = jnp.where(in_longer, place % (length + 1), (place - border) % jnp.maximum(length, 1))
    starts = (offset == 0) & within.valid
    run = jnp.cumsum(starts, axis=1, dtype=jnp.int32) - 1
    return Segments(jnp.where(within.valid, run, -1), length + in_longer, V)


@typed
def share_quotas(
    weight: Float[Array, "B V"], budget: Int[Array, "B V"], crops: Segments, within: Segments
) -> Int[Array, "B V"]:
    """Share the budget of each segment among its crops by weight, none more than it has tokens.

    Arguments and result are those of the crop or of the segment that the token is in. What a crop
    cannot take goes to crops with room, by weight times room, until every token has a place
    (appendix A.3 of the paper; its rounding is not published). The budgets are used up.
    """
    # A crop is represented by its first token.
    first = crops.begins & crops.valid
    size = jnp.where(first, crops.count, 0)  # [B, V]

    def overfull(quota: jax.Array) -> jax.Array:
        return (quota > size).any()

    def move(quota: jax.Array) -> jax.Array:
        excess = within.sum(jnp.maximum(quota - size, 0))
        quota = jnp.minimum(quota, size)
        room = size - quota
        return quota + _share_out(excess, weight * room, room > 0, within)

    # Each round fills a crop for good, so there are no more rounds than crops.
    quota = jax.lax.while_loop(overfull, move, _share_out(budget, weight, first, within))
    return crops.sum(quota)


def _share_out(
    amount: jax.Array, weight: jax.Array, takers: jax.Array, within: Segments
) -> jax.Array:
    """Share a number by weight, rounded down; the largest get one more each. int32 [B, V]."""
    weight = jnp.where(takers & (weight > 0), weight, 0.0)  # nor NaN
    whole = within.total(weight)
    weight = jnp.where(whole > 0, weight, takers)  # nothing to go by: equal parts
    part = weight / jnp.maximum(within.total(weight), jnp.finfo(jnp.float32).tiny)
    given = jnp.floor(amount * part * _LIFT).astype(jnp.int32)
    rest = amount - within.sum(given)
    return given + (within.rank(part, takers) < rest)
