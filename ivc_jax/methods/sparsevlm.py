"""SparseVLM (arXiv 2410.04417): text that fits the image votes, the best losers are recycled."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.ivc import rank_in_segment
from ivc_jax.methods import budget
from ivc_jax.methods.base import MethodError, Scored, Stage
from ivc_jax.methods.defaults import choose_positions
from ivc_jax.methods.fields import check_keep_ratio, check_positions, require
from ivc_jax.methods.progressive import Family, Progressive, scale_layers
from ivc_jax.methods.question import mark_question
from ivc_jax.methods.recycling import Recycling, merge
from ivc_jax.methods.requests import (
    AttentionRows,
    Carry,
    Embeddings,
    Hidden,
    Request,
    RopeSettings,
    Signals,
    TokenVectors,
)
from ivc_jax.methods.select import NEAR, Segments, from_mask, gather_positions
from ivc_jax.types import Layout, Selection, typed

_DEPTH, _LAYERS = 32, (2, 6, 15)  # of the released model; it cuts behind these blocks
# Tokens kept by score of 576, for budgets of 192, 128, 96 and 64: with recycling the lists of v1.x,
# without it those of v2.0 (`sparse_token_list_*` in llava/model/language_model/score.py).
_LISTS = {
    True: ((300, 200, 110), (303, 110, 36), (238, 48, 26), (66, 30, 17)),
    False: ((300, 200, 118), (238, 108, 60), (246, 54, 28), (66, 34, 20)),
}

# Llama's gravity turns negative from distance 1707 on. The released code divides by it all the
# same; this bound is ours.
_LEAST_GRAVITY = 0.5


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
        # These were meant with what is recycled; the field `ratios` is without.
        if self.keep_ratio is not None or self.budget is not None:
            ratios = self._recycling.without_means(ratios)
            if min(ratios) <= 0:
                raise MethodError(
                    "sparsevlm: keep_ratio or budget asks for less than what is recycled; raise it "
                    "or set recycle=false"
                )
        positions = choose_positions(self.positions, config)
        return dataclasses.replace(method, ratios=ratios, positions=positions)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts; their shares include what is recycled."""
        layers = require(self.layers, self.name, "layers")
        ratios = require(self.ratios, self.name, "ratios")
        return tuple(map(self._make_stage, layers, self._recycling.with_means(ratios)))

    def _make_stage(self, layer: int, ratio: float) -> Stage:
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
            attention = divide_by_gravity(attention, layout, signals[RopeSettings()])
        raters = self._find_raters(signals, layout, stage)  # [B, T]
        votes = jnp.where(raters[:, None, :, None], attention, 0.0).sum(axis=2)  # [B, H, V]
        votes /= jnp.maximum(raters.sum(axis=1), 1)[:, None, None]
        if self.priority_heads is None:
            return votes.mean(axis=1)
        return average_heads(votes, layout.visual_valid, self.priority_heads)

    def choose(
        self, scores: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Keep the best by the given scores; the method's own scores say what to recycle."""
        plan = self._plan(stage, layout.visual_slots)
        within = Segments.by_sample(layout)
        keep = within.top(scores, within.look_up(plan[0]))  # [B, V]
        if self.recycle:
            own, hidden = self.scores(signals, layout, stage), signals[Hidden()].visual
            owners = self._recycling.choose_owners(keep, own, hidden, layout, plan)  # [B, V]
            chosen = merge(owners, keep, num_keep)
        else:
            chosen = from_mask(keep, num_keep)
        return chosen.replace(carry=self._find_raters(signals, layout, stage))

    def _find_raters(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        if self.stage_number(stage):
            return signals[Carry()]
        return find_raters(signals[Embeddings()], layout)

    @property
    def _recycling(self) -> Recycling:
        return Recycling(self.recycle_share if self.recycle else 0.0, self.cluster_share)

    def _plan(self, stage: Stage, max_count: int) -> tuple[np.ndarray, np.ndarray]:
        ratios = require(self.ratios, self.name, "ratios")
        return self._recycling.plan(ratios[: self.stage_number(stage) + 1], max_count)

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        return sum(self._plan(stage, max_count))

    @property
    def _lists(self) -> list[tuple[float, ...]]:
        return [tuple(count / 576 for count in counts) for counts in _LISTS[self.recycle]]

    @property
    def _published_ratios(self) -> tuple[float, ...]:
        return self._lists[0]

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        def behind(depth: int) -> tuple[int, ...]:
            return tuple(layer + 1 for layer in scale_layers(_LAYERS, _DEPTH, depth))

        def distance(ratios: tuple[float, ...]) -> float:
            left = self._recycling.with_means(ratios)
            if target is None:
                return abs(left[-1] - (self.keep_ratio or 1.0))
            cost = budget.measure(tuple(map(Stage, behind(_DEPTH), left)), _DEPTH)
            return abs(cost - target)

        nearest = min(self._lists, key=distance)

        def family(x: float) -> tuple[float, ...]:
            shares = tuple(min(1.0, x * share / nearest[-1]) for share in nearest)
            return self._recycling.with_means(shares)

        return behind(num_layers), family


@typed
def match(
    embeddings: TokenVectors, layout: Layout
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Measure how much of the visual tokens' similarity each text token draws.

    A softmax of the plain products over the text after the first visual token, averaged over the
    visual tokens; 0 for other text.

    Returns:
        The match, and the text that it runs over.
    """
    asked = mark_question(layout)  # [B, T]
    visual, text = (part.astype(jnp.float32) for part in (embeddings.visual, embeddings.text))
    exact = jax.lax.Precision.HIGHEST
    logits = jnp.einsum("bvd,btd->bvt", visual, text, precision=exact)  # [B, V, T]
    both = asked[:, None] & layout.visual_valid[..., None]  # [B, V, T]
    logits = jnp.where(both, logits, -jnp.inf)
    # A row without any text is all -inf: its maximum is bounded and its sum is not divided by.
    raised = jnp.exp(logits - logits.max(axis=2, keepdims=True, initial=jnp.finfo(jnp.float32).min))
    rows = raised / jnp.maximum(raised.sum(axis=2, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return rows.sum(axis=1) / jnp.maximum(layout.visual_valid.sum(axis=1), 1)[:, None], asked


@typed
def find_raters(embeddings: TokenVectors, layout: Layout) -> Bool[Array, "B T"]:
    """Mark the text that matches the visual tokens better than average; all of it if none does."""
    score, asked = match(embeddings, layout)
    mean = score.sum(axis=1) / jnp.maximum(asked.sum(axis=1), 1)  # [B]
    chosen = asked & (score > (1 + NEAR) * mean[:, None])
    return jnp.where(chosen.any(axis=1, keepdims=True), chosen, asked)


def compute_gravity(distance: np.ndarray, rope: RopeConfig, axis: int | None = None) -> np.ndarray:
    """Return the score that rotation alone gives two vectors of ones at some distance.

    g(d) = 2 / sqrt(C) sum_m cos(d theta_m); with M-RoPE it is the sum over axes, each with its own
    distance.

    Args:
        distance: differences of position ids.
        axis: add up the planes that this axis turns; None is all of them, for 1-D positions.
    """
    planes = rope.frequencies
    if axis is not None:
        planes = planes[rope.axis_of_plane == axis]
    return 2 / np.sqrt(rope.head_dim) * np.cos(np.multiply.outer(distance, planes)).sum(axis=-1)


@typed
def divide_by_gravity(
    attention: Float[Array, "B H T V"], layout: Layout, rope: RopeConfig
) -> Float[Array, "B H T V"]:
    """Divide text-to-visual attention by the gravity between the two tokens."""
    text = jnp.take_along_axis(layout.positions, layout.text_index[None], axis=2)  # [3, B, T]
    visual = gather_positions(layout)  # [3, B, V]
    ids, pull = np.arange(layout.num_positions), 0.0
    for axis in range(3):
        table = jnp.asarray(compute_gravity(ids, rope, axis), jnp.float32)  # by distance
        pull += table[jnp.abs(text[axis][:, :, None] - visual[axis][:, None])]  # [B, T, V]
    return attention / jnp.maximum(pull, _LEAST_GRAVITY)[:, None]


@typed
def average_heads(
    votes: Float[Array, "B H V"], valid: Bool[Array, "B V"], share: float
) -> Float[Array, "B V"]:
    """Average over the heads that give the visual tokens most: the share of them, half to even."""
    total = jnp.where(valid[:, None], votes, 0.0).sum(axis=2)  # [B, H]
    count = max(1, round(share * total.shape[1]))
    one = jnp.zeros(total.shape, jnp.int32)
    chosen = rank_in_segment(total, one, one == 0, NEAR) < count  # [B, H]
    return jnp.where(chosen[..., None], votes, 0.0).sum(axis=1) / count
