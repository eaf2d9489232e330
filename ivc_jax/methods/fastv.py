"""FastV (arXiv 2403.06764): rank visual tokens by the last token's attention."""

import dataclasses
from typing import ClassVar

import jax

from ivc_jax.config import ModelConfig
from ivc_jax.methods import budget
from ivc_jax.methods.base import MethodError, Scored, Stage
from ivc_jax.methods.fields import check_choice, require
from ivc_jax.methods.requests import AttentionRows, Request, Signals
from ivc_jax.methods.select import ROUNDING, Segments, bound_total, from_mask, round_counts
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class FastV(Scored):
    """Keep the visual tokens that the last prompt token attends to most (section 4.1).

    The score follows the released code: the last token's row of the block before the cut, averaged
    over heads. The paper's text averages over all rows.

    Attributes:
        layer: first block that sees the shorter sequence (K of the paper). A budget that the
            blocks before it would exceed moves it forward.
        keep_ratio: share of visual tokens kept, 1 - R of the paper; 0.5 if no budget is given.
        per_image: give every image its own budget instead of one for the sample.
        rounding: of keep_ratio times the token count: "round" (half to even), "floor" or "ceil".
        budget: mean over layers of the share in the cache, instead of keep_ratio.
        compact_earlier_kv: drop the tokens from the caches of the blocks before as well, which
            the published method does not.
    """

    name: ClassVar[str] = "fastv"

    layer: int = 2
    keep_ratio: float | None = None
    per_image: bool = False
    rounding: str = "round"
    budget: float | None = None
    compact_earlier_kv: bool = False

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise MethodError(
                f"fastv needs the attention of an earlier block: choose layer >= 1, "
                f"got {self.layer}"
            )
        budget.settle_keep_ratio(self)
        check_choice("rounding", self.rounding, tuple(ROUNDING))

    def resolve(self, config: ModelConfig) -> "FastV":
        """Solve the budget at the latest layer that allows it."""
        return budget.resolve_early(self, config.decoder.num_layers)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut; the blocks before it keep their caches whole by default."""
        keep_ratio = require(self.keep_ratio, self.name, "keep_ratio")
        return (Stage(self.layer, keep_ratio, compact_earlier_kv=self.compact_earlier_kv),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the last token's attention in the block before the cut."""
        return (AttentionRows(stage.layer - 1, "last"),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens by the published rounding."""
        counts = round_counts(stage.keep_ratio, visual_slots, self.rounding)
        return bound_total(counts, num_images if self.per_image else 1)

    def scores(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        """Return the mean attention over the heads."""
        rows = signals[AttentionRows(stage.layer - 1, "last")]  # [B, H, 1, V]
        return rows.mean(axis=(1, 2))

    def choose(
        self, scores: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Keep the best tokens of the sample or of each image."""
        within = Segments.by_image(layout) if self.per_image else Segments.by_sample(layout)
        counts = round_counts(stage.keep_ratio, layout.visual_slots, self.rounding)  # [V + 1]
        return from_mask(within.top(scores, within.look_up(counts)), num_keep)
