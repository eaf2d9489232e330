"""HoloV (arXiv 2510.02912): share the budget among crops of the image, then rank inside each."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivc_jax.methods import scoring, segments
from ivc_jax.methods.base import Hidden, MethodError, Request, Signals, Stage, TowerAttention
from ivc_jax.methods.coordinates import check_choice
from ivc_jax.methods.parts.crops import crop_mean, crop_quotas, cut
from ivc_jax.methods.segments import Segments
from ivc_jax.methods.upfront import Upfront, lose_no_image
from ivc_jax.types import Layout, Selection, typed

_EPSILON = 1e-6  # of both divisions in the released code (llava/model/utils.py)


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
        for name in ("alpha", "sharpness"):
            if getattr(self, name) < 0:
                raise MethodError(f"{name} must not be negative, got {getattr(self, name)}")
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
        within = segments.frames(layout)
        attention = signals[TowerAttention()]()
        tokens = signals[Hidden()].visual.astype(jnp.float32)
        budget = self._budgets(layout, within, stage)
        number = crop_number(within.count, budget)
        crops = cut(within, number if self.crops is None else jnp.full_like(number, self.crops))
        score = holistic_scores(tokens, attention, crops, self.alpha)
        # Attention is 1 / n on average: times n, no power of it leaves the range of float32.
        weight = (crop_mean(score, crops) * within.count) ** self.sharpness
        quota = crop_quotas(weight, budget, crops, within)
        ranked = score if self.inner == "score" else attention
        rank = scoring.rank_in_segment(ranked, crops.number, layout.visual_valid)
        return scoring.from_mask(rank < quota, num_keep)

    def _budgets(self, layout: Layout, within: Segments, stage: Stage) -> jax.Array:
        total = layout.visual_count
        counts = scoring.at_least_one(self._counts(stage, layout.visual_slots))
        kept = jnp.asarray(counts)[total]
        # Unsigned: exact below 65,536 tokens.
        product = kept.astype(jnp.uint32)[:, None] * within.count.astype(jnp.uint32)
        share = product // jnp.maximum(total, 1).astype(jnp.uint32)[:, None]
        return lose_no_image(share.astype(jnp.int32), layout)


@typed
def crop_number(count: Int[Array, "B V"], budget: Int[Array, "B V"]) -> Int[Array, "B V"]:
    """Return how many crops the paper cuts: floor(1024 count / (576 budget)), at least one."""
    return jnp.maximum(16 * count // (9 * jnp.maximum(budget, 1)), 1)


@typed
def holistic_scores(
    tokens: Float[Array, "B V D"], attention: Float[Array, "B V"], crops: Segments, alpha: float
) -> Float[Array, "B V"]:
    """Add to the attention how much a token's cosines to its crop vary, on the same scale.

    The cosine of a token to itself counts as 0, in the variance too; the mean is over the others.
    """
    length = jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    unit = tokens / (length + _EPSILON)
    cosine = jnp.einsum("bud,bvd->buv", unit, unit, precision=jax.lax.Precision.HIGHEST)
    same = crops.number[:, :, None] == crops.number[:, None]
    cosine = jnp.where(same & ~jnp.eye(same.shape[1], dtype=bool), cosine, 0.0)
    others = jnp.maximum(crops.count - 1, 1)
    mean = cosine.sum(axis=2) / others
    deviation = jnp.where(same, cosine - mean[..., None], 0.0)
    variance = jnp.square(deviation).sum(axis=2) / others
    scale = crop_mean(jnp.abs(attention), crops) / (crop_mean(variance, crops) + _EPSILON)
    return attention + alpha * scale * variance
