"""Methods made from another method."""

import dataclasses

import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods import scoring
from ivc_jax.methods.base import Method, MethodError, Request, RopeSettings, Signals, Stage
from ivc_jax.methods.coordinates import (
    CoordinateRules,
    Frequencies,
    canonical_frequencies,
    check_fractions,
    check_frequencies,
    ivc_mask,
)
from ivc_jax.methods.ivc import IVCPrune
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class WithIVC(Method):
    """Keep the IVC tokens beside whatever another method keeps (the paper's FastV + IVC).

    The IVC set is that of the unpruned image at every stage of the host, so that no later stage
    loses a token of it.

    Attributes:
        host: the method to extend; it keeps its own budget, IVC tokens come on top.
        cos_fraction: share of an image's tokens nearest to the identity rotation.
        sin_fraction: share of an image's tokens nearest to a quarter turn.
        frequencies: planes in the IVC score: "all", "section" or indices.
    """

    host: Method
    cos_fraction: float = 0.1
    sin_fraction: float = 0.1
    frequencies: Frequencies = "all"

    def __post_init__(self) -> None:
        if isinstance(self.host, IVCPrune | WithIVC):
            raise MethodError(f"{self.host.name} keeps the IVC tokens already; drop the +ivc")
        if type(self.host) is Method:
            raise MethodError("dense keeps every token; +ivc needs a method that prunes")
        check_fractions(cos_fraction=self.cos_fraction, sin_fraction=self.sin_fraction)
        object.__setattr__(self, "frequencies", canonical_frequencies(self.frequencies))

    @property
    def name(self) -> str:
        """Name of the host and the modifier."""
        return f"{self.host.name}+ivc"

    def resolve(self, config: ModelConfig) -> "WithIVC":
        """Resolve the host and check the planes against the model."""
        check_frequencies(self.frequencies, config.decoder.rope)
        return dataclasses.replace(self, host=self.host.resolve(config))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts of the host."""
        return self.host.stages

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for what the host asks for, and the rotary settings."""
        return tuple(dict.fromkeys((*self.host.requests(stage), RopeSettings())))

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Add the largest IVC set to the bound of the host."""
        cosine, sine = self._counts(visual_slots)
        added = scoring.largest_total(cosine + sine, num_images)
        return min(visual_slots, self.host.capacity(stage, visual_slots, num_images) + added)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Unite the host's selection with the IVC tokens."""
        slots = layout.visual_index.shape[1]
        chosen = scoring.to_mask(self.host.select(signals, layout, stage, num_keep), slots)
        counts = self._counts(layout.visual_slots)
        rules = CoordinateRules(self.frequencies)
        added = ivc_mask(layout, signals[RopeSettings()], rules, *counts)
        return scoring.from_mask(chosen | added, num_keep)

    def _counts(self, max_count: int) -> tuple[np.ndarray, np.ndarray]:
        cosine = scoring.rounded_counts(self.cos_fraction, max_count)
        return cosine, scoring.rounded_counts(self.sin_fraction, max_count)
