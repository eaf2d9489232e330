"""PyramidDrop (arXiv 2410.17247): drop more visual tokens at every stage of the decoder."""

import dataclasses
from typing import ClassVar

import jax

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import MethodError, Scored, Stage
from ivc_jax.methods.defaults import choose_positions
from ivc_jax.methods.fields import check_positions, require
from ivc_jax.methods.progressive import Family, Progressive, scale_layers
from ivc_jax.methods.requests import AttentionRows, Request, Signals
from ivc_jax.methods.select import Segments, bound_total, from_mask
from ivc_jax.types import Layout, Selection

# Published for 32 blocks: scripts/v1_5/pdrop_eval of Cooperx521/PyramidDrop; earlier cuts for small
# budgets are its authors' advice (issues there). Even cuts at the published factor hold 15/32.
_DEPTH, _EVEN, _EARLY, _FACTOR, _EVEN_BUDGET = 32, (8, 16, 24), (2, 8, 16), 0.5, 15 / 32


@dataclasses.dataclass(frozen=True)
class PyramidDrop(Progressive, Scored):
    """Rank by the last token's attention at every cut; shares fall as f, f^2, f^3.

    The rows are those of the block behind the cut, its projections applied to the sequence before
    the cut (released code; the paper speaks of a light similarity). Every share is of the
    unpruned count, rounded down, at least one token. By default f = 0.5 and the cuts divide the
    decoder evenly; a budget below 15/32 moves them to 2, 8, 16 of 32 blocks.

    Attributes:
        layers: first block behind each cut, any number of them.
        ratios: share of the unpruned tokens left after each cut.
        keep_ratio: share left after the last cut; f is its root.
        budget: mean over layers of the share in the cache.
        positions: "original" ids, or "reindex" to number the survivors 0, 1, 2, ... after each
            cut (released code); None asks `resolve`: reindex unless the model has M-RoPE.
        per_image: give every image its own budget instead of one for the sample.
        compact_earlier_kv: also drop the tokens from earlier caches, which is our extension. All
            caches end with the last share, so that budget and keep_ratio mean the same.
    """

    name: ClassVar[str] = "pyramiddrop"

    positions: str | None = None
    per_image: bool = False
    compact_earlier_kv: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positions(self.positions)

    def resolve(self, config: ModelConfig) -> Progressive:
        """Fill in layers, ratios and positions."""
        fields = {"positions": choose_positions(self.positions, config)}
        if self.compact_earlier_kv and self.budget is not None:
            fields |= {"keep_ratio": self.budget, "budget": None}
        return Progressive.resolve(dataclasses.replace(self, **fields), config)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the last token's attention in the block behind the cut."""
        return (AttentionRows(stage.layer, "last"),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the tokens left by the largest count, or sum of counts."""
        counts = self._count(stage, visual_slots)
        return bound_total(counts, num_images if self.per_image else 1)

    def scores(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        """Average the rows over heads."""
        rows = signals[AttentionRows(stage.layer, "last")]  # [B, H, 1, V]
        return rows.mean(axis=(1, 2))

    def choose(
        self, scores: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Keep the best of the present tokens."""
        within = Segments.by_image(layout) if self.per_image else Segments.by_sample(layout)
        counts = within.look_up(self._count(stage, layout.visual_slots))  # [B, V]
        return from_mask(within.top(scores, counts), num_keep)

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        layers = self.layers
        if layers is None:
            early = target is not None and target < _EVEN_BUDGET
            layers = _fit(_EARLY if early else _EVEN, num_layers)
        powers = range(1, len(layers) + 1)
        return layers, lambda factor: tuple(factor**power for power in powers)

    @property
    def _published_ratios(self) -> tuple[float, ...]:
        cuts = len(_EVEN if self.layers is None else self.layers)
        return tuple(_FACTOR**power for power in range(1, cuts + 1))

    def _make_stage(self, layer: int, ratio: float) -> Stage:
        renumber = require(self.positions, self.name, "positions") == "reindex"
        return Stage(layer, ratio, self.compact_earlier_kv, renumber=renumber)


def _fit(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Move published layers to another depth; in a shallow decoder the last ones come sooner."""
    spare = num_layers - len(layers)
    if spare < 0:
        raise MethodError(
            f"pyramiddrop: {len(layers)} cuts do not fit into {num_layers} layers; give layers=..."
        )
    scaled = scale_layers(layers, _DEPTH, num_layers)
    return tuple(min(layer, spare + number) for number, layer in enumerate(scaled))
