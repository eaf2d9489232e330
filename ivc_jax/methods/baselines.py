"""Baselines that look at no signal: random tokens and an even grid.

Both cut where IVC-Prune does by default, so that a comparison differs in the tokens alone. The
unpruned model is `Method` itself.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods import budget, scoring
from ivc_jax.methods.base import Method, MethodError, Signals, Stage
from ivc_jax.methods.presets import default_layer, resolved
from ivc_jax.types import Layout, Selection

# 2^32 over powers of the plastic number 1.3247..., the best constants for an even spread in two
# dimensions, and over the golden ratio for the frames of a video; odd, so that no period is short.
_ROW, _COLUMN, _FRAME = 0xC13FA9A9, 0x91E10DA5, 0x9E3779B9


@dataclasses.dataclass(frozen=True)
class _CellRanking(Method):
    """Keep the best cells of each image by a score of the cell alone."""

    layer: int | None = None
    keep_ratio: float | None = None
    compact_earlier_kv: bool = True
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 0:
            raise MethodError(f"layer must not be negative, got {self.layer}")
        budget.settle_keep_ratio(self)

    def resolve(self, config: ModelConfig) -> Method:
        """Fill in IVC-Prune's layer; solve the budget."""
        layer = default_layer(config) if self.layer is None else self.layer
        method = dataclasses.replace(self, layer=layer)
        return budget.solved(method, config.decoder.num_layers)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut."""
        layer = resolved(self.layer, self.name)
        return (Stage(layer, budget.resolved_ratio(self), self.compact_earlier_kv),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the sum of round(keep_ratio * tokens) over the images."""
        counts = scoring.rounded_counts(stage.keep_ratio, visual_slots)
        return scoring.largest_total(counts, num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Keep round(keep_ratio * tokens) cells of every image."""
        counts = scoring.rounded_counts(stage.keep_ratio, layout.visual_slots)
        rank = scoring.rank_in_segment(
            self._cell_scores(layout), layout.image_id, layout.visual_valid
        )
        return scoring.from_mask(rank < jnp.asarray(counts)[layout.image_count], num_keep)

    def _cell_scores(self, layout: Layout) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Random(_CellRanking):
    """Keep random tokens of each image.

    The draw of a token depends on the seed, on the number of its image within the sample and on
    its grid cell: padding and batch mates cannot change it.

    Attributes:
        layer: first block that sees the shorter sequence; None asks `resolve`.
        keep_ratio: share of each image's tokens kept, rounded half to even; 0.5 without a budget.
        compact_earlier_kv: also drop the tokens from earlier caches.
        budget: mean over layers of the share in the cache, instead of keep_ratio.
        seed: of the draw.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def _cell_scores(self, layout: Layout) -> jax.Array:
        return cell_draws(layout, self.seed)


def check_seed(seed: int) -> None:
    """Raise MethodError unless `cell_draws` can take the seed."""
    if not 0 <= seed < 2**31:
        raise MethodError(f"seed must be in [0, 2**31), got {seed}")


def cell_draws(layout: Layout, seed: int) -> jax.Array:
    """Draw a number in [0, 1) for every token, from seed, image number and cell: [B, V]."""
    cells = jnp.concatenate([layout.image_id[..., None], layout.grid], axis=-1)  # [B, V, 4]

    def draw(cell: jax.Array) -> jax.Array:
        # The generator is named, so that a user's default cannot change the draw.
        key = jax.random.key(seed, impl="threefry2x32")
        for part in cell:
            key = jax.random.fold_in(key, part)
        return jax.random.uniform(key)

    return jax.vmap(jax.vmap(draw))(cells)


@dataclasses.dataclass(frozen=True)
class Uniform(_CellRanking):
    """Keep cells spread evenly over each image.

    Cell (frame, row, column) has the value frac(row / p + column / p² + frame / g) with p the
    plastic number and g the golden ratio; the lowest values stay. These are the points of a
    rank-1 lattice, which has no large hole at any count and any aspect ratio (Roberts' R2
    sequence). The arithmetic is exact, in 32-bit integers.

    Attributes:
        layer: first block that sees the shorter sequence; None asks `resolve`.
        keep_ratio: share of each image's tokens kept, rounded half to even; 0.5 without a budget.
        compact_earlier_kv: also drop the tokens from earlier caches.
        budget: mean over layers of the share in the cache, instead of keep_ratio.
    """

    name: ClassVar[str] = "uniform"

    def _cell_scores(self, layout: Layout) -> jax.Array:
        turns = jnp.asarray(np.array([_FRAME, _ROW, _COLUMN], np.uint32))
        value = (layout.grid.astype(jnp.uint32) * turns).sum(axis=-1, dtype=jnp.uint32)
        return -(value >> 8).astype(jnp.float32)  # 24 bits are exact in float32
