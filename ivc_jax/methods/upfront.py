"""Methods that cut once, before the decoder, and give every frame its own budget."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ivc_jax.config import ModelConfig
from ivc_jax.methods import budget
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.defaults import choose_positions
from ivc_jax.methods.fields import check_positions, require
from ivc_jax.methods.select import Segments, bound_total, keep_one, round_counts, split_totals
from ivc_jax.types import Layout, typed


@dataclasses.dataclass(frozen=True)
class Upfront(Method):
    """Base of such methods; subclasses give `requests` and `select`.

    Attributes:
        keep_ratio: share of the tokens kept, rounded down; 0.5 if neither this nor budget is given.
        budget: mean over layers of the share in the cache. All layers see the shorter sequence, so
            this is keep_ratio by another name.
        positions: "original" position ids or "reindex" to number what is left 0, 1, 2, ...; None
            asks `resolve`: "original" with M-RoPE, "reindex" with 1-D rotary embedding.
    """

    keep_ratio: float | None = None
    budget: float | None = None
    positions: str | None = None

    def __post_init__(self) -> None:
        budget.settle_keep_ratio(self)
        check_positions(self.positions)

    def resolve(self, config: ModelConfig) -> "Upfront":
        """Fill in keep_ratio and positions."""
        # Taken over as it is: a solver could miss it by one bit, which rounding down would show.
        ratio = self.keep_ratio if self.budget is None else self.budget
        positions = choose_positions(self.positions, config)
        return dataclasses.replace(self, keep_ratio=ratio, budget=None, positions=positions)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut, before the decoder."""
        ratio = require(self.keep_ratio, self.name, "keep_ratio")
        return (Stage(0, ratio, renumber=self.positions == "reindex"),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens; frames that round on their own keep no more than a whole video."""
        counts = keep_one(self._count(stage, visual_slots))
        return bound_total(counts, num_images)

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        """Tabulate the tokens kept of every count 0 .. max_count."""
        return round_counts(stage.keep_ratio, max_count, "floor")


class MergingUpfront(Upfront):
    """Base of those that merge; subclasses have a field `merge_in`, which `resolve` fills in."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut, before the decoder."""
        (stage,) = super().stages
        return (dataclasses.replace(stage, merge_in=self.merge_in or "decoder"),)


@typed
def lose_no_image(counts: Int[Array, "B V"], layout: Layout) -> Int[Array, "B V"]:
    """Raise the count of an image's or video's first frame to at least one.

    Not that of every frame: the static bound on what a sample keeps would then be all of it.
    """
    return jnp.maximum(counts, layout.grid[..., 0] == 0)


@typed
def spare(counts: Int[Array, "B V"], layout: Layout, least: int = 1) -> Int[Array, "B V"]:
    """Raise the count of a first frame until the image or video has `least` tokens, if it can.

    Args:
        counts: of this token's frame, 0 at padding.
    """
    frames = Segments.by_frame(layout)
    whole = Segments.by_image(layout).sum(jnp.where(frames.begins, counts, 0))  # [B, V]
    raised = jnp.minimum(counts + jnp.maximum(least - whole, 0), frames.count)
    return jnp.where(layout.grid[..., 0] == 0, raised, counts)


@typed
def round_frames(layout: Layout, counts: np.ndarray) -> Int[Array, "B V"]:
    """Look up what each frame keeps, one of an image or a video at least.

    Frames that are rounded up may come to more than their video is rounded to, which nothing static
    bounds. Then the video's count is split over them evenly:

        a half of 4 frames of 3    2 2 2 2 is more than 6: 2 2 1 1

    Args:
        counts: tokens kept of a frame, and of a whole video, of each size 0 .. V.

    Returns:
        The number of this token's frame.
    """
    images, frames = Segments.by_image(layout), Segments.by_frame(layout)
    total = images.look_up(keep_one(counts))  # [B, V]
    own = lose_no_image(frames.look_up(counts), layout)
    together = images.sum(jnp.where(frames.begins & frames.valid, own, 0))  # [B, V]
    return jnp.where(together > total, split_totals(total, images, frames), own)
