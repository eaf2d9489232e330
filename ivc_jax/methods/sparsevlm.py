"""SparseVLM (arXiv 2410.04417): text that fits the image votes, the best losers are recycled."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods import budget, scoring
from ivc_jax.methods.base import (
    AttentionRows,
    Carry,
    Embeddings,
    Hidden,
    MethodError,
    Request,
    RopeSettings,
    Scored,
    Signals,
    Stage,
    check_keep_ratio,
)
from ivc_jax.methods.parts.cluster import merge
from ivc_jax.methods.parts.gravity import corrected, mean_over_heads
from ivc_jax.methods.parts.raters import raters
from ivc_jax.methods.parts.recycling import Recycling
from ivc_jax.methods.presets import check_positions, chosen_positions, resolved
from ivc_jax.methods.progressive import Family, Progressive, scaled_layers
from ivc_jax.types import Layout, Selection

_DEPTH, _LAYERS = 32, (2, 6, 15)  # of the released model; it cuts behind these blocks
# Tokens kept by score of 576, for budgets of 192, 128, 96 and 64: with recycling the lists of v1.x,
# without it those of v2.0 (`sparse_token_list_*` in llava/model/language_model/score.py).
_LISTS = {
    True: ((300, 200, 110), (303, 110, 36), (238, 48, 26), (66, 30, 17)),
    False: ((300, 200, 118), (238, 108, 60), (246, 54, 28), (66, 34, 20)),
}


@dataclasses.dataclass(frozen=True)
class SparseVLM(Progressive, Scored):
    """Keep what the raters attend to, cut by cut, and recycle part of what is dropped.

    Raters are the text tokens after the first visual one that match the visual embeddings better
    than average; all images of a sample are one set. The best dropped tokens are clustered, and a
    cluster lives on as its mean in the slot, with the positions, of its centre; later cuts treat
    it like any token. (The released code appends the means behind the kept tokens.)

    As published, a cut drops a token even at a share of 1. Recycling brings it back, divided by
    1 + 1e-6; without recycling it is gone, unless it is the last.

    Attributes:
        layers: None scales the published ones and cuts behind them.
        ratios: shares kept by score, k / 576 of the released lists, rounded half to even; recycled
            tokens come on top. None is the list for a budget of 192.
        keep_ratio: share left after the last cut, recycled tokens included, by the published list
            that ends nearest to it, scaled.
        budget: recycled tokens included, by the published list that costs nearest to it, scaled.
        recycle: v1.x; False is v2.0 and takes the lists of v2.0.
        recycle_share: of the dropped tokens, those that are clustered.
        cluster_share: clusters of a clustered token.
        positions: "reindex" numbers the tokens anew at every cut (v1.x), "original" keeps their
            ids (v2.0); None is "original" for M-RoPE, else "reindex".
        gravity: divide attention by what rotation alone makes of the distance (v2.0).
        priority_heads: share of the heads, those that look at the visual tokens most, to average
            over (14/32 in v2.0); None is all.
    """

    name: ClassVar[str] = "sparsevlm"
    first_layer: ClassVar[int] = 1

    recycle: bool = True
    recycle_share: float = 0.3
    cluster_share: float = 0.1
    positions: str | None = None
    gravity: bool = False
    priority_heads: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_keep_ratio(self.recycle_share, "recycle_share")
        if not 0 < self.cluster_share < 1:
            raise MethodError(f"cluster_share must be in (0, 1), got {self.cluster_share}")
        if self.priority_heads is not None:
            check_keep_ratio(self.priority_heads, "priority_heads")
        check_positions(self.positions)

    def resolve(self, config: ModelConfig) -> "SparseVLM":
        """Fill in layers, ratios and positions."""
        method = super().resolve(config)
        ratios = method.ratios
        if self.keep_ratio is not None or self.budget is not None:
            ratios = self._recycling.without_means(ratios)
            if min(ratios) <= 0:
                raise MethodError(
                    "sparsevlm: keep_ratio or budget asks for less than what is recycled; raise it "
                    "or set recycle=false"
                )
        positions = chosen_positions(self.positions, config)
        return dataclasses.replace(method, ratios=ratios, positions=positions)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts; their shares include what is recycled."""
        layers = resolved(self.layers, self.name, "layers")
        ratios = resolved(self.ratios, self.name, "ratios")
        return tuple(map(self._stage, layers, self._recycling.with_means(ratios)))

    def _stage(self, layer: int, ratio: float) -> Stage:
        return Stage(layer, ratio, renumber=self.positions == "reindex")

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the text rows of the block before the cut, and once for the embeddings."""
        return (
            Carry() if self.stage_number(stage) else Embeddings(),
            AttentionRows(stage.layer - 1, "text"),
            *([Hidden()] if self.recycle else []),
            *([RopeSettings()] if self.gravity else []),
        )

    def scores(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        """Average the raters' attention over raters and heads."""
        attention = signals[AttentionRows(stage.layer - 1, "text")]  # [B, H, T, V]
        if self.gravity:
            attention = corrected(attention, layout, signals[RopeSettings()])
        raters = self._raters(signals, layout, stage)
        votes = jnp.where(raters[:, None, :, None], attention, 0.0).sum(axis=2)
        votes /= jnp.maximum(raters.sum(axis=1), 1)[:, None, None]
        if self.priority_heads is None:
            return votes.mean(axis=1)
        return mean_over_heads(votes, layout.visual_valid, self.priority_heads)

    def choose(
        self, scores: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Keep the best by the given scores; the method's own scores say what to recycle."""
        plan = self._plan(stage, layout.visual_slots)
        count = jnp.asarray(plan[0])[layout.visual_count]
        rank = scoring.rank_in_segment(scores, scoring.one_segment(layout), layout.visual_valid)
        keep = rank < count[:, None]
        if self.recycle:
            own, hidden = self.scores(signals, layout, stage), signals[Hidden()].visual
            chosen = merge(self._recycling.owners(keep, own, hidden, layout, plan), keep, num_keep)
        else:
            chosen = scoring.from_mask(keep, num_keep)
        return chosen.replace(carry=self._raters(signals, layout, stage))

    def _raters(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        if self.stage_number(stage):
            return signals[Carry()]
        return raters(signals[Embeddings()], layout)

    @property
    def _recycling(self) -> Recycling:
        return Recycling(self.recycle_share if self.recycle else 0.0, self.cluster_share)

    def _plan(self, stage: Stage, max_count: int) -> tuple[np.ndarray, np.ndarray]:
        ratios = resolved(self.ratios, self.name, "ratios")
        return self._recycling.plan(ratios[: self.stage_number(stage) + 1], max_count)

    def _counts(self, stage: Stage, max_count: int) -> np.ndarray:
        return sum(self._plan(stage, max_count))

    def _lists(self) -> list[tuple[float, ...]]:
        return [tuple(count / 576 for count in counts) for counts in _LISTS[self.recycle]]

    def _published_ratios(self) -> tuple[float, ...]:
        return self._lists()[0]

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        def behind(depth: int) -> tuple[int, ...]:
            return tuple(layer + 1 for layer in scaled_layers(_LAYERS, _DEPTH, depth))

        def distance(ratios: tuple[float, ...]) -> float:
            left = self._recycling.with_means(ratios)
            if target is None:
                return abs(left[-1] - (self.keep_ratio or 1.0))
            cost = budget.layer_mean(tuple(map(Stage, behind(_DEPTH), left)), _DEPTH)
            return abs(cost - target)

        nearest = min(self._lists(), key=distance)

        def family(x: float) -> tuple[float, ...]:
            shares = tuple(min(1.0, x * share / nearest[-1]) for share in nearest)
            return self._recycling.with_means(shares)

        return behind(num_layers), family
