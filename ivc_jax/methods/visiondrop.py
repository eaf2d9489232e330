"""VisionDrop (arXiv 2506.22283): keep what visual tokens look at, merge the rest into a few."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import Stage
from ivc_jax.methods.contextual import reduce
from ivc_jax.methods.defaults import choose_merge, choose_positions
from ivc_jax.methods.fields import check_merge, check_positions, require
from ivc_jax.methods.progressive import Family, Progressive, scale_layers
from ivc_jax.methods.requests import (
    AttentionReceived,
    Keys,
    Request,
    Signals,
    TowerAttention,
    TowerKeys,
    ask_merged,
)
from ivc_jax.methods.select import Segments, bound_total, from_mask
from ivc_jax.types import Layout, Selection

# Published for 32 blocks, behind a cut at the end of the tower.
_DEPTH, _LAYERS = 32, (8, 16, 24)
# The paper lets half as many tokens again as the average into the decoder. The released run for 32
# of 576 tokens is 48, 35, 26, 19 (scripts/v1_5/visiondrop_eval/mme.sh of Ruixxxx/VisionDrop), which
# falls by r: 1 + r + r^2 + r^3 = 4 / 1.5. Its default here: a third of the tokens on average.
_ENTERING, _FALL, _PUBLISHED_BUDGET = 1.5, 0.73362, 1 / 3
# Contextual tokens among those left: 6 of 48, then 5 of 35, 4 of 26, 3 of 19.
_TOWER_CONTEXTUAL, _CONTEXTUAL = 0.125, 0.15


@dataclasses.dataclass(frozen=True)
class VisionDrop(Progressive):
    """Rank by attention among visual tokens, first in the tower and then at three cuts.

    No text is asked. Each cut keeps the tokens that visual tokens attend to most (dominant) and
    merges the others into evenly strided ones of them (contextual, an eighth of the tokens left by
    the tower, 15 % later). A contextual token stays in the slot of its target, in raster order;
    the released code puts them behind the dominant ones. In the tower every image (a whole video
    is one) has counts of its own; in the decoder all visual tokens of a sample are reduced
    together. Where as many tokens are present as a cut leaves, it changes nothing.

    The attention costs the square of the visual tokens, chunked, in every head at every cut;
    grouping costs their number times the contextual ones, at most 15 % of them.

    Attributes:
        layers: first block behind each cut, any number of them; 0 is the cut of the tower.
        ratios: share of the unpruned tokens left after each cut.
        keep_ratio: share left after the last cut; each cut before leaves 1 / 0.73362 as many.
        budget: mean over layers of the share in the cache. Images and videos alike; the paper lets
            twice as many tokens of a video into the decoder.
        causal: a visual query sees what lies before it (released code); otherwise all visual
            tokens and what lies before them, which does not favour early ones.
        merge_in: the first cut merges features of the "tower", whose projector follows (released
            code), or what enters the "decoder"; None asks `resolve`: "tower" where a token is one
            patch.
        positions: "original" ids, or "reindex" to number the survivors 0, 1, 2, ... after each
            cut (released code); None asks `resolve`: reindex unless the model has M-RoPE.
    """

    name: ClassVar[str] = "visiondrop"
    rounding: ClassVar[str] = "round"

    causal: bool = True
    merge_in: str | None = None
    positions: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positions(self.positions)
        check_merge(self.merge_in)

    def resolve(self, config: ModelConfig) -> Progressive:
        """Fill in layers, ratios, positions and where the first cut merges."""
        fields = {"positions": choose_positions(self.positions, config)}
        fields["merge_in"] = choose_merge(self.merge_in, config)
        return Progressive.resolve(dataclasses.replace(self, **fields), config)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for attention received and keys, of the tower or of the block behind the cut."""
        if stage.layer == 0:
            return TowerAttention(), TowerKeys(), *ask_merged(stage.merge_in)
        return AttentionReceived(stage.layer, self.causal), Keys(stage.layer)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the tokens left: a sum over images in the tower, one count in the decoder."""
        counts = self._count(stage, visual_slots)
        return bound_total(counts, num_images if stage.layer == 0 else 1)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Reduce each image in the tower, or all present tokens in the decoder."""
        if stage.keep_ratio == 1:
            return from_mask(layout.visual_valid, num_keep)
        if stage.layer == 0:
            scores, metric = signals[TowerAttention()](), signals[TowerKeys()]
            within, unpruned = Segments.by_image(layout), layout.image_count
        else:
            scores = signals[AttentionReceived(stage.layer, self.causal)]
            metric = signals[Keys(stage.layer)].visual.astype(jnp.float32).mean(axis=2)
            left = layout.visual_valid.sum(axis=1, keepdims=True, dtype=jnp.int32)  # [B, 1]
            within = Segments.by_sample(layout)
            within = within.replace(count=jnp.where(within.valid, left, 0))
            unpruned = layout.visual_count[:, None]
        left = self._count(stage, layout.visual_slots)
        folded = self._count_contextual(stage, left)
        most = bound_total(folded, within.bound)
        left, folded = jnp.asarray(left)[unpruned], jnp.asarray(folded)[unpruned]
        # Where no more are present than are to be left, all others are targets without a group.
        dominant = jnp.broadcast_to(left - folded, scores.shape)
        contextual = jnp.broadcast_to(folded, scores.shape)
        return reduce(scores, metric, within, dominant, contextual, num_keep, most)

    def _count_contextual(self, stage: Stage, left: np.ndarray) -> np.ndarray:
        share = _TOWER_CONTEXTUAL if stage.layer == 0 else _CONTEXTUAL
        return np.rint(share * left).astype(np.int32)

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        layers = self.layers or (0, *scale_layers(_LAYERS, _DEPTH, num_layers))
        steps = range(1 - len(layers), 1)
        return layers, lambda last: tuple(min(1.0, last * _FALL**step) for step in steps)

    @property
    def _published_ratios(self) -> tuple[float, ...]:
        cuts = len(self.layers or (0, *_LAYERS))
        return tuple(_ENTERING * _PUBLISHED_BUDGET * _FALL**step for step in range(cuts))

    def _make_stage(self, layer: int, ratio: float) -> Stage:
        renumber = require(self.positions, self.name, "positions") == "reindex"
        merge_in = "decoder" if layer else self.merge_in or "decoder"
        return Stage(layer, ratio, renumber=renumber, merge_in=merge_in)
