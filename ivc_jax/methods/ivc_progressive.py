"""IVC-Prune in several cuts, to compare with its one (arXiv 2602.03060 cuts once)."""

import dataclasses
from typing import ClassVar

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import Stage
from ivc_jax.methods.coordinates import Coordinates, recall
from ivc_jax.methods.defaults import fill_in
from ivc_jax.methods.fields import flat
from ivc_jax.methods.foreground import Foreground
from ivc_jax.methods.ivc import IVCPrune
from ivc_jax.methods.progressive import Family, Progressive
from ivc_jax.methods.requests import Carry, Request, RopeSettings, Signals
from ivc_jax.types import Layout, Selection

_LAST_SHARE = 0.5  # what `IVCPrune` keeps
_CUTS_AT = (0.25, 0.5, 0.75)  # of the depth, as in PyramidDrop


@flat(
    *("layers", "ratios", "keep_ratio", "budget", "coordinates", "random_seed"),
    *("cos_fraction", "sin_fraction"),
    *("seed_fraction", "query_offset", "key_scope", "frequencies", "compact_earlier_kv"),
)
@dataclasses.dataclass(frozen=True)
class ProgressiveIVC(Progressive):
    """Prune as `IVCPrune` does at every cut; shares fall as f, f^2, f^3.

    The IVC tokens are those of the unpruned image and stay through all cuts. Seeds and foreground
    are found anew at each cut, by the values of the block before it on the tokens that are left;
    seeds of an earlier cut may go. All counts are of the unpruned image, rounded half to even.
    With one cut this is `IVCPrune`. By default the cuts divide the decoder in four, one to a
    block: a decoder of less than four blocks gets fewer.

    Attributes:
        layers: first block behind each cut, from 1 on; None asks `resolve`.
        ratios: share of the unpruned tokens left after each cut.
        keep_ratio: share left after the last cut, f is its root; 0.5 if neither of the three is
            given.
        budget: mean over layers of the share in the cache, solved for f. Where the last share is
            below 0.5 then, the cos and sin fractions shrink with it as in `IVCPrune`.
        coordinates: the IVC tokens, or as many others: their rule, fractions and frequencies.
        foreground_rule: what text and seeds look at: seed_fraction, query_offset and key_scope.
        compact_earlier_kv: also drop the tokens from earlier caches. All caches end with the last
            share, so that budget and keep_ratio mean the same.
    """

    name: ClassVar[str] = "ivc_progressive"
    first_layer: ClassVar[int] = 1  # values of an earlier block are needed
    rounding: ClassVar[str] = "round"

    coordinates: Coordinates = Coordinates()
    foreground_rule: Foreground = Foreground()
    compact_earlier_kv: bool = True

    def resolve(self, config: ModelConfig) -> "ProgressiveIVC":
        """Fill in layers, ratios and the fractions of a budget; check the planes."""
        self.coordinates.check_planes(config.decoder.rope)
        # All caches end with the last share where earlier ones are cut too.
        share = self.budget if self.compact_earlier_kv else None
        if (self.ratios, self.keep_ratio, self.budget) == (None, None, None):
            share = _LAST_SHARE
        wanted = dataclasses.replace(self, keep_ratio=share, budget=None) if share else self
        method = Progressive.resolve(wanted, config)
        # The fractions of a budget follow what is left in the end.
        last = None if self.budget is None else method.ratios[-1]
        return dataclasses.replace(
            method,
            coordinates=fill_in(self.coordinates, config.released).shrink(last),
            foreground_rule=self.foreground_rule.resolve(config.released),
        )

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for what `IVCPrune` asks for at this cut, and for the IVC tokens of the first."""
        carried = (Carry(),) if self.stage_number(stage) else ()
        return *self._one_cut(stage).requests(stage), *carried

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens as `IVCPrune` does."""
        return self._one_cut(stage).capacity(stage, visual_slots, num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Select as `IVCPrune` does among the tokens that are left; no IVC token is gone."""
        if self.stage_number(stage):
            marked = signals[Carry()]
        else:
            marked = self.coordinates.mark(layout, signals[RopeSettings()])  # [B, V]
        once, here = self._one_cut(stage), recall(marked, layout)
        chosen = once.add_foreground(here, signals, layout, stage, num_keep)
        return chosen.replace(carry=marked)

    def _one_cut(self, stage: Stage) -> IVCPrune:
        return IVCPrune(
            layer=stage.layer,
            keep_ratio=stage.keep_ratio,
            combine="fill",
            coordinates=self.coordinates,
            foreground_rule=self.foreground_rule,
        )

    def _make_stage(self, layer: int, ratio: float) -> Stage:
        return Stage(layer, ratio, self.compact_earlier_kv)

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        places = (max(self.first_layer, round(share * num_layers)) for share in _CUTS_AT)
        layers = self.layers or tuple(sorted({min(place, num_layers - 1) for place in places}))
        powers = range(1, len(layers) + 1)
        return layers, lambda factor: tuple(factor**power for power in powers)
