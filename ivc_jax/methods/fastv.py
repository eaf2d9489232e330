"""FastV (arXiv 2403.06764): rank visual tokens by the last token's attention."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from ivc_jax.methods import scoring
from ivc_jax.methods.base import (
    AttentionRows,
    Method,
    MethodError,
    Request,
    Signals,
    Stage,
    check_keep_ratio,
)
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class FastV(Method):
    """Keep the visual tokens that the last prompt token attends to most (section 4.1).

    The score follows the released code: the last token's row of the block before the cut, averaged
    over heads. The paper's text averages over all rows.

    Attributes:
        layer: first block that sees the shorter sequence (K of the paper).
        keep_ratio: share of visual tokens kept, 1 - R of the paper.
        per_image: give every image its own budget instead of one for the sample.
        rounding: of keep_ratio times the token count: "round" (half to even), "floor" or "ceil".
    """

    name: ClassVar[str] = "fastv"

    layer: int = 2
    keep_ratio: float = 0.5
    per_image: bool = False
    rounding: str = "round"

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise MethodError(
                f"fastv needs the attention of an earlier block: choose layer >= 1, "
                f"got {self.layer}"
            )
        check_keep_ratio(self.keep_ratio)
        if self.rounding not in scoring.ROUNDING:
            known = tuple(scoring.ROUNDING)
            raise MethodError(f"rounding must be one of {known}, got {self.rounding!r}")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut; the blocks before it keep their caches whole."""
        return (Stage(self.layer, self.keep_ratio, compact_earlier_kv=False),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the last token's attention in the block before the cut."""
        return (AttentionRows(stage.layer - 1, "last"),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens by the published rounding."""
        counts = scoring.rounded_counts(self.keep_ratio, visual_slots, self.rounding)
        return scoring.largest_total(counts, num_images if self.per_image else 1)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Keep the best tokens by mean attention over the heads."""
        attention = signals[AttentionRows(stage.layer - 1, "last")]  # [B, H, 1, V]
        slots = layout.visual_slots
        counts = jnp.asarray(scoring.rounded_counts(self.keep_ratio, slots, self.rounding))
        if self.per_image:
            segment, budget = layout.image_id, counts[layout.image_count]
        else:
            segment, budget = scoring.one_segment(layout), counts[layout.visual_count][:, None]
        rank = scoring.rank_in_segment(attention.mean(axis=(1, 2)), segment, layout.visual_valid)
        return scoring.from_mask(rank < budget, num_keep)
