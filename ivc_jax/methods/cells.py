"""Ranking by grid cell alone, without a signal: what the baselines share."""

import dataclasses

import jax
import jax.numpy as jnp

from ivc_jax.config import ModelConfig
from ivc_jax.methods import budget
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.defaults import choose_layer
from ivc_jax.methods.fields import check_not_negative, require
from ivc_jax.methods.requests import Signals
from ivc_jax.methods.select import Segments, bound_total, from_mask, round_counts
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class CellRanking(Method):
    """Base of methods that keep the best cells of each image by a score of the cell alone.

    They cut where IVC-Prune does by default, so that a comparison differs in the tokens alone.
    Subclasses give `score_cells`.

    Attributes:
        layer: first block that sees the shorter sequence; None asks `resolve`.
        keep_ratio: share of each image's tokens kept, rounded half to even; 0.5 without a budget.
        compact_earlier_kv: also drop the tokens from earlier caches.
        budget: mean over layers of the share in the cache, instead of keep_ratio.
    """

    layer: int | None = None
    keep_ratio: float | None = None
    compact_earlier_kv: bool = True
    budget: float | None = None

    def __post_init__(self) -> None:
        check_not_negative(layer=self.layer)
        budget.settle_keep_ratio(self)

    def resolve(self, config: ModelConfig) -> Method:
        """Fill in IVC-Prune's layer; solve the budget."""
        layer = choose_layer(config) if self.layer is None else self.layer
        method = dataclasses.replace(self, layer=layer)
        return budget.resolve(method, config.decoder.num_layers)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut."""
        layer = require(self.layer, self.name)
        keep_ratio = require(self.keep_ratio, self.name, "keep_ratio")
        return (Stage(layer, keep_ratio, self.compact_earlier_kv),)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the sum of round(keep_ratio * tokens) over the images."""
        return bound_total(round_counts(stage.keep_ratio, visual_slots), num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Keep round(keep_ratio * tokens) cells of every image."""
        within = Segments.by_image(layout)
        counts = within.look_up(round_counts(stage.keep_ratio, layout.visual_slots))  # [B, V]
        return from_mask(within.top(self.score_cells(layout), counts, tolerance=0.0), num_keep)

    def score_cells(self, layout: Layout) -> jax.Array:
        """Return float32 scores [B, V], larger is kept."""
        raise NotImplementedError


def draw_cells(layout: Layout, seed: int) -> jax.Array:
    """Draw a number in [0, 1) for every token, from seed, image number and cell: [B, V]."""
    cells = jnp.concatenate([layout.image_id[..., None], layout.grid], axis=-1)  # [B, V, 4]

    def draw(cell: jax.Array) -> jax.Array:
        # The generator is named, so that a user's default cannot change the draw.
        key = jax.random.key(seed, impl="threefry2x32")
        for part in cell:
            key = jax.random.fold_in(key, part)
        return jax.random.uniform(key)

    return jax.vmap(jax.vmap(draw))(cells)
