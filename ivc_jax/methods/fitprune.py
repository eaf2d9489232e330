"""FitPrune (arXiv 2409.10197): a few tokens go behind almost every block, by a fitted recipe."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import Method, MethodError, Scored, Stage
from ivc_jax.methods.fields import check_fractions, check_not_negative
from ivc_jax.methods.progressive import Family, Progressive
from ivc_jax.methods.recipe import (
    RECIPES,
    choose_cuts,
    measure_left,
    mix_recipes,
    read_depths,
    read_left,
)
from ivc_jax.methods.requests import AttentionReceived, AttentionRows, Request, Signals
from ivc_jax.methods.select import Segments, from_mask
from ivc_jax.types import Layout, Selection

_PUBLISHED, _MIN_CUT, _LIFT = 60, 0.03, 1 + 1e-9


@dataclasses.dataclass(frozen=True)
class FitPrune(Progressive, Scored):
    """Drop the tokens that both text and image attend to least, behind many blocks.

    A token's score is the attention that it gets from all text behind it times the attention that
    it gets from visual tokens, both in the block before the cut. Of each query and key the head
    counts that gives most. How many tokens go where is a recipe, fitted on samples once
    (`recipe.py`); those released are for LLaVA-1.5-7B and are read by depth here. A recipe of
    one's own, found by `experiments/fit_recipe.py`, is given as `layers` and `ratios`.

    All visual tokens of a sample are ranked together. A cut leaves floor(share * tokens), at least
    one. The released code (ywh187/FitPrune) cuts between attention and feed-forward part of a
    block; a cut behind the block gives the same values and runs that part on tokens that leave.

    The attention among visual tokens takes V N H C operations a cut, chunked, in every head.

    Attributes:
        layers: first block behind each cut.
        ratios: share of the unpruned tokens left after each cut.
        keep_ratio: share left after the last cut, by a mixture of two recipes, scaled.
        budget: mean over layers of the share in the cache, by a mixture of two recipes, scaled.
        recipe: a released one, by the percentage of FLOPs to save; 60 if nothing else is given.
        min_cut: consecutive cuts are merged until each takes this share of the unpruned tokens; 0
            cuts wherever the recipe does, 26 times in 32 blocks at 60.
    """

    name: ClassVar[str] = "fitprune"
    first_layer: ClassVar[int] = 1

    recipe: int | None = None
    min_cut: float = _MIN_CUT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(min_cut=self.min_cut)
        if self.recipe is None:
            return
        if self.recipe not in RECIPES:
            raise MethodError(f"recipe must be one of {RECIPES}, got {self.recipe}")
        for name in ("ratios", "keep_ratio", "budget"):
            if getattr(self, name) is not None:
                raise MethodError(f"fitprune: recipe and {name} exclude each other; give one")

    def resolve(self, config: ModelConfig) -> Progressive:
        """Fill in layers and ratios; what has made them is left out."""
        method, depth = self, config.decoder.num_layers
        if all(given is None for given in (self.ratios, self.keep_ratio, self.budget)):
            layers, _ = self._schedule(depth, None)
            ratios = read_depths(self._left(None), layers, depth)
            method = dataclasses.replace(self, layers=layers, ratios=ratios, recipe=None)
        method = Progressive.resolve(method, config)
        return dataclasses.replace(method, min_cut=_MIN_CUT)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the attention from text and from visual tokens in the block before the cut."""
        return _ask(stage)

    def scores(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        """Multiply the attention from text by that from visual tokens."""
        cross, own = _add_up(signals, stage)
        return cross * own

    def choose(
        self, scores: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Keep the best of the present tokens."""
        within = Segments.by_sample(layout)
        counts = within.look_up(self._count(stage, layout.visual_slots))  # [B, V]
        return from_mask(within.top(scores, counts), num_keep)

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        # A solved share may lie just below the whole number of tokens that it stands for.
        return super()._count(
            dataclasses.replace(stage, keep_ratio=stage.keep_ratio * _LIFT), max_count
        )

    def _left(self, target: float | None) -> np.ndarray:
        """Return the shares left by depth that the schedule begins with."""
        if target is not None:
            return mix_recipes(target, measure_left)
        if self.keep_ratio is not None:
            return mix_recipes(self.keep_ratio, lambda left: float(left[-1]))
        return read_left(self.recipe or _PUBLISHED)

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        if num_layers < 2:
            raise MethodError(f"{self.name} cuts between two blocks, the model has {num_layers}")
        left = self._left(target)
        layers = self.layers or choose_cuts(left, num_layers, self.min_cut)

        def family(x: float) -> tuple[float, ...]:
            # The cuts, which may move, stay in their order; so do their shares.
            shares = read_depths(left, layers, num_layers)
            return tuple(min(1.0, x * share / shares[-1]) for share in shares)

        return layers, family


@dataclasses.dataclass(frozen=True)
class Trial(Method):
    """What one alpha of the search for a recipe takes behind every block of some depth.

    Samples come in pairs: the first of each runs unpruned, and tells the second how much attention
    there is to lose. Behind every block the second loses the tokens that are among those with least
    attention from text and among those with least from the image, of each as many as leave the
    share 1 - alpha of what the first has.

    Attributes:
        num_layers: L of the decoder.
        alpha: share of the attention that may go, in [0, 1).
    """

    name: ClassVar[str] = "fitprune_trial"

    num_layers: int = 1
    alpha: float = 0.1

    def __post_init__(self) -> None:
        check_not_negative(alpha=self.alpha, num_layers=self.num_layers)
        if self.alpha >= 1:
            raise MethodError(f"alpha must be below 1, got {self.alpha}")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """A cut behind every block but the last, none of known size."""
        return tuple(Stage(layer, 1.0) for layer in range(1, self.num_layers))

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for what FitPrune asks for."""
        return _ask(stage)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Drop what both rankings can spare from the second of each pair."""
        valid = layout.visual_valid
        goes = valid & (jnp.arange(len(valid)) % 2 == 1)[:, None]
        for values in _add_up(signals, stage):
            values = jnp.where(valid, values, 0.0)
            first = values[jnp.arange(len(values)) // 2 * 2].sum(axis=1, keepdims=True)  # [B, 1]
            falling = jnp.where(valid, values, jnp.inf)
            order = jnp.argsort(falling, axis=1, stable=True)
            left = jnp.cumsum(jnp.take_along_axis(values, order, axis=1)[:, ::-1], axis=1)[:, ::-1]
            left = jnp.pad(left[:, 1:], ((0, 0), (0, 1)))  # once this one and all before are gone
            spared = (left >= first * (1 - self.alpha)).sum(axis=1, keepdims=True)
            goes &= jnp.argsort(order, axis=1) < spared
        return from_mask(valid & ~goes, num_keep)


def _ask(stage: Stage) -> tuple[Request, ...]:
    block = stage.layer - 1
    return AttentionRows(block, "text"), AttentionReceived(block, heads="max")


def _add_up(signals: Signals, stage: Stage) -> tuple[jax.Array, jax.Array]:
    """Return the attention from text, of which padding gives none, and from the image: [B, V]."""
    rows, own = _ask(stage)
    return signals[rows].max(axis=1).sum(axis=1), signals[own]
