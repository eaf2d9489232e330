"""VScan (arXiv 2505.22654): scan the picture as a whole and by windows, then ask the text."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import ModelConfig, VisionConfig
from ivc_jax.ivc import rank_in_segment
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.contextual import fold
from ivc_jax.methods.defaults import choose_positions
from ivc_jax.methods.fields import check_choice, check_not_negative, check_positions, require
from ivc_jax.methods.progressive import Family, Progressive
from ivc_jax.methods.requests import (
    AttentionRows,
    Carry,
    Embeddings,
    Request,
    Signals,
    TowerAttention,
)
from ivc_jax.methods.select import NEAR, NEAR_COSINE, Segments, bound_total, from_mask, keep_one
from ivc_jax.methods.upfront import spare
from ivc_jax.types import Layout, Selection, typed

# The second cut keeps a third of what the first has left; a third of the tokens on average is the
# row "192 tokens" of the paper.
_SECOND, _PUBLISHED_BUDGET = 1 / 3, 1 / 3


@dataclasses.dataclass(frozen=True)
class VScan(Progressive):
    """Keep what the tower looks at early, by windows, and late, anywhere; then what the text asks.

    The first cut, before the decoder, works in every image, tile or video frame alone: of its
    T = floor(share * tokens), at least one of an image, T // 2 are the most attended of an early
    block of the tower, spread over windows, and the others those of the last block among the rest.
    Every dropped token is averaged into the kept one of largest cosine, as they enter the decoder.
    The second, in the middle of the decoder, keeps floor(R2 * n) of the n tokens left of the
    sample, at least one, by the last prompt token's attention in the block behind the cut: the
    model's own, where the code for Qwen2.5-VL leaves queries and keys unrotated.

    A budget b is met by the paper's R2 = 1/3, so that the first share is 1.5 b with a cut in the
    middle; above the budget at which that is 1, by R2.

    Attributes:
        layers: 0 and the block behind the second cut; None is the middle.
        ratios: shares of the unpruned tokens after the two cuts, R1 and R1 * R2.
        keep_ratio: share left after the second cut; the first is three times as much.
        budget: mean over layers of the share in the cache.
        rule: "ceiling" takes the best tokens of the early block up to ceil(T // 2 / windows) of a
            window (code for Qwen2.5-VL), "equal" takes floor(T // 2 / windows) of each and may
            leave the rest of T untaken (code for LLaVA: `vscan@192`).
        window: side of a window in tokens; rows and columns that are left over belong to the last.
        early_block: of the tower; None asks `resolve`: the first with attention over the whole
            image if there are windows, else that before a quarter of the depth, 7 of 32.
        positions: "original" ids, or "reindex" to number the survivors 0, 1, 2, ... after each
            cut (code for LLaVA); None asks `resolve`: reindex unless the model has M-RoPE.
    """

    name: ClassVar[str] = "vscan"

    rule: str = "ceiling"
    window: int = 4
    early_block: int | None = None
    positions: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and (len(self.layers) != 2 or self.layers[0] != 0):
            raise MethodError(f"vscan has two cuts, the first at layer 0; got layers {self.layers}")
        if self.ratios is not None and len(self.ratios) != 2:
            raise MethodError(f"vscan has two cuts; give two ratios, got {self.ratios}")
        check_choice("rule", self.rule, ("ceiling", "equal"))
        if self.window < 1:
            raise MethodError(f"window must be at least 1, got {self.window}")
        check_not_negative(early_block=self.early_block)
        check_positions(self.positions)

    def resolve(self, config: ModelConfig) -> Progressive:
        """Fill in layers, ratios, positions and the early block."""
        early = _choose_block(config.vision) if self.early_block is None else self.early_block
        positions = choose_positions(self.positions, config)
        method = dataclasses.replace(self, early_block=early, positions=positions)
        return Progressive.resolve(method, config)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for two attentions of the tower and what enters the decoder; for the text's row."""
        if self.stage_number(stage) == 0:
            return self._early, TowerAttention(), Embeddings()
        return AttentionRows(stage.layer, "last"), Carry()

    @property
    def _early(self) -> TowerAttention:
        return TowerAttention(require(self.early_block, self.name, "early_block"))

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the first cut by the sum over images, the second by its share of that."""
        first = self.stages[0]
        most = bound_total(self._count(first, visual_slots), num_images)
        return most if stage == first else int(self._count_second(visual_slots)[most])

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Run one of the two cuts."""
        if self.stage_number(stage) == 0:
            return self._select_first(signals, layout, stage, num_keep)
        scores = signals[AttentionRows(stage.layer, "last")].mean(axis=(1, 2))  # of [B, H, 1, V]
        # what the first cut has left, without tokens of a modifier: [B]
        count = jnp.asarray(self._count_second(layout.visual_slots))[signals[Carry()]]
        rank = Segments.by_sample(layout).rank(scores)  # [B, V]
        return from_mask(rank < count[:, None], num_keep)

    def _select_first(
        self, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        valid = layout.visual_valid
        if stage.keep_ratio == 1:
            return from_mask(valid, num_keep).replace(carry=valid.sum(axis=1, dtype=jnp.int32))
        within = Segments.by_frame(layout)
        # As shares of the tokens of a frame alone: `_count` keeps one.
        counts = self._floor(stage.keep_ratio, layout.visual_slots)
        total = spare(within.look_up(counts), layout)  # [B, V]
        local = scan_windows(signals[self._early](), layout, total // 2, self.window, self.rule)
        rank = within.rank(signals[TowerAttention()](), valid & ~local)  # [B, V]
        keep = local | (rank < total - total // 2)
        chosen = from_mask(keep, num_keep)
        tokens = signals[Embeddings()].visual.astype(jnp.float32)  # [B, V, D]
        chosen = fold(chosen, tokens, within, valid, keep, num_keep, merge="mean", near=NEAR_COSINE)
        return chosen.replace(carry=keep.sum(axis=1, dtype=jnp.int32))

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        return keep_one(self._floor(stage.keep_ratio, max_count))

    def _count_second(self, max_count: int) -> np.ndarray:
        """Tabulate what stays of every number of tokens that the first cut may leave."""
        first, second = require(self.ratios, self.name, "ratios")
        return keep_one(self._floor(second / first, max_count))

    @staticmethod
    def _floor(share: float, max_count: int) -> np.ndarray:
        # A solved share and a quotient of shares miss a round number by a few of the last bits.
        return np.floor(np.round(share * np.arange(max_count + 1), 6)).astype(np.int32)

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        layers = self.layers or (0, max(1, num_layers // 2))
        if layers[1] >= num_layers:
            raise MethodError(
                f"vscan cuts at layer {layers[1]}, which {num_layers} blocks do not have"
            )
        return layers, lambda last: (min(1.0, last / _SECOND), last)

    @property
    def _published_ratios(self) -> tuple[float, ...]:
        first = 1.5 * _PUBLISHED_BUDGET
        return first, first * _SECOND

    def _make_stage(self, layer: int, ratio: float) -> Stage:
        return Stage(layer, ratio, renumber=self.positions == "reindex")


@typed
def scan_windows(
    scores: Float[Array, "B V"],
    layout: Layout,
    target: Int[Array, "B V"],
    side: int,
    rule: str = "ceiling",
) -> Bool[Array, "B V"]:
    """Mark the best tokens of a frame, spread over its windows.

    With "ceiling" the tokens are taken from the best on, but of a window that has its share. A
    token that is passed over makes no room later, so that those within the share of their window
    can be marked first and the best of them taken then.

    Args:
        target: tokens to mark in this token's frame.
        side: of a window, in tokens.
        rule: "ceiling" or "equal", see `VScan`.
    """
    within, number, windows = Segments.by_frame(layout), *number_windows(layout, side)
    rank = rank_in_segment(scores, number, layout.visual_valid, NEAR)  # [B, V]
    if rule == "equal":
        return rank < target // windows
    eligible = rank < (target + windows - 1) // windows
    return within.rank(scores, eligible) < target


@typed
def number_windows(layout: Layout, side: int) -> tuple[Int[Array, "B V"], Int[Array, "B V"]]:
    """Return a number for the window of each token, and how many windows its frame has.

    At least one in each direction; 9 x 11 tokens in windows of 4: rows 4 5, columns 4 7.
    """
    frames = Segments.by_frame(layout)
    _, row, column = jnp.moveaxis(layout.grid, -1, 0)  # [B, V]
    down, across = (jnp.maximum((frames.max(x) + 1) // side, 1) for x in (row, column))
    place = jnp.minimum(row // side, down - 1) * across + jnp.minimum(column // side, across - 1)
    # No frame has more windows than tokens: numbers from its first token on are its own.
    return frames.first + jnp.where(layout.visual_valid, place, 0), down * across


def _choose_block(vision: VisionConfig) -> int:
    """Return an early block of a tower that attends over the whole image."""
    if vision.window_size and vision.full_attention_blocks:
        return min(vision.full_attention_blocks)
    return max(0, round(vision.depth / 4) - 1)  # 7 of 32, 5 of the 23 that LLaVA runs of 24
