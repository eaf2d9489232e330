"""DivPrune (arXiv 2503.02175): keep the tokens whose nearest neighbours are farthest."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.farthest import by_cosine, pick
from ivc_jax.methods.requests import Embeddings, Request, Signals
from ivc_jax.methods.select import (
    Segments,
    from_mask,
    keep_one,
    normalize,
    round_counts,
    split_over_frames,
)
from ivc_jax.methods.upfront import Upfront
from ivc_jax.types import Layout, Selection, typed

# Cosines that differ by no more are a tie. `NEAR` would do for one bucket against another, but of
# the 192 picks among 576 random tokens the closest two differ by 5e-6.
_NEAR = 2.0**-20
_CHUNK = 256  # tokens whose nearest neighbours are searched together


@dataclasses.dataclass(frozen=True)
class DivPrune(Upfront):
    """Keep a subset of tokens with a large least cosine distance (equations 3 to 5, algorithm 1).

    The first pick is the token whose nearest other token is farthest, every later one the token
    farthest from all those picked. Neither attention nor text is asked. Every image and every whole
    video keeps round(keep_ratio * tokens), half to even, at least one token, in raster order.

    The released code (vbdi/divprune, LLaVA/llava/model/llava_arch.py) may pick a token again once
    all that are left duplicate picked ones; here as many different tokens stay as were asked for.
    Distances are formed in float32, there in half precision.

    The search takes V² D products for the first pick, K V D for the others.

    Attributes:
        keep_ratio: share of the tokens kept, rounded half to even.
        per_image: False pools all images of a sample in one set.
        per_frame: split what a video keeps evenly over its frames, each a set of its own.
    """

    name: ClassVar[str] = "divprune"

    per_image: bool = True
    per_frame: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_frame and not self.per_image:
            raise MethodError("per_frame=true takes every frame alone: leave per_image")

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the tokens as they enter the decoder."""
        return (Embeddings(),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens by the rounding of every image, or of the sample."""
        return super().capacity(stage, visual_slots, num_images if self.per_image else 1)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Search in one set after the other."""
        counts = keep_one(self._count(stage, layout.visual_slots))
        if self.per_frame:
            within, target = Segments.by_frame(layout), split_over_frames(layout, counts)
        else:
            pool = Segments.by_image if self.per_image else Segments.by_sample
            within = pool(layout)
            target = within.look_up(counts)  # [B, V]
        return from_mask(
            diversify(signals[Embeddings()].visual, within, target, num_keep), num_keep
        )

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        return round_counts(stage.keep_ratio, max_count, "round")


@typed
def diversify(
    vectors: Float[Array, "B V D"], within: Segments, target: Int[Array, "B V"], num_keep: int
) -> Bool[Array, "B V"]:
    """Pick tokens of each segment so that the nearest two of them are far apart by 1 - cosine.

    Args:
        vectors: a zero vector is at distance 1 from all others.
        target: tokens to keep in this token's segment.
        num_keep: K, at least the sum of the targets of a sample.

    Returns:
        The mask of the picked tokens.
    """
    if not vectors.shape[1]:
        return within.valid
    units = normalize(vectors)
    distance = 1 - find_nearest(units, within)  # [B, V]
    first = distance >= within.max(distance) - _NEAR  # the lowest index of these
    first = within.rank(first.astype(jnp.float32), tolerance=0.0) == 0
    return pick(by_cosine(units), within, target, num_keep, first, _NEAR).keep


@typed
def find_nearest(units: Float[Array, "B V D"], within: Segments) -> Float[Array, "B V"]:
    """Return the cosine of every token to the nearest other one of its segment, -inf without one.

    V² D products in chunks, so that there is no V x V array.
    """
    slots = jnp.arange(units.shape[1], dtype=jnp.int32)
    exact = jax.lax.Precision.HIGHEST

    def search(part: tuple[jax.Array, ...]) -> jax.Array:
        token, number, slot = part  # [B, D], [B], []
        cosine = jnp.einsum("bd,bvd->bv", token, units, precision=exact)
        other = (number[:, None] == within.number) & (slot != slots)
        return jnp.where(other, cosine, -jnp.inf).max(axis=1)  # [B]

    parts = jnp.moveaxis(units, 1, 0), within.number.T, slots
    return jax.lax.map(search, parts, batch_size=_CHUNK).T
