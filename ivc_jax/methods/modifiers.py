"""Methods made from another method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods import scoring
from ivc_jax.methods.base import (
    Method,
    MethodError,
    Modifier,
    Request,
    RopeSettings,
    Signals,
    Stage,
)
from ivc_jax.methods.budget import BudgetError
from ivc_jax.methods.coordinates import (
    CoordinateRules,
    Frequencies,
    budget_scale,
    canonical_frequencies,
    check_fractions,
    check_frequencies,
    check_rotation,
    ivc_mask,
)
from ivc_jax.methods.ivc import IVCPrune
from ivc_jax.methods.ivc_progressive import ProgressiveIVC
from ivc_jax.methods.removal import IVCRemoval
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class WithIVC(Modifier):
    """Keep the IVC tokens beside whatever another method keeps (the paper's FastV + IVC).

    The IVC set is that of the unpruned image at every stage of the host, so that no later stage
    loses a token of it. IVC tokens stay as they are, also where the host merges them into others.

    IVC tokens come on top of what the host keeps, but not on top of a budget: with a budget b and
    a share s of IVC tokens the host gets (b - s) / (1 - s), which makes the union b if the two
    choose independently of each other. Below b = 0.5 the fractions shrink with it.

    Attributes:
        host: the method to extend.
        cos_fraction: share of an image's tokens nearest to the identity rotation.
        sin_fraction: share of an image's tokens nearest to a quarter turn.
        frequencies: planes in the IVC score: "all", "section", "low", "middle", "high" or indices.
        theta: base of the rotary embedding in the IVC score alone; None is the model's.
        position_offset: added to every position in the IVC score alone (see `CoordinateRules`).
    """

    host: Method
    cos_fraction: float = 0.1
    sin_fraction: float = 0.1
    frequencies: Frequencies = "all"
    theta: float | None = None
    position_offset: int = 0

    def __post_init__(self) -> None:
        parts = chain(self.host)
        if any(isinstance(part, IVCPrune | ProgressiveIVC | WithIVC) for part in parts):
            raise MethodError(f"{self.host.name} keeps the IVC tokens already; drop the +ivc")
        if any(isinstance(part, IVCRemoval) for part in parts):
            raise MethodError(f"{self.host.name} drops tokens that +ivc would keep; drop the +ivc")
        if type(parts[-1]) is Method:
            raise MethodError("dense keeps every token; +ivc needs a method that prunes")
        check_fractions(cos_fraction=self.cos_fraction, sin_fraction=self.sin_fraction)
        check_rotation(self.theta, self.position_offset)
        object.__setattr__(self, "frequencies", canonical_frequencies(self.frequencies))

    @property
    def name(self) -> str:
        """Name of the host and the modifier."""
        return f"{self.host.name}+ivc"

    def resolve(self, config: ModelConfig) -> "WithIVC":
        """Share the budget, if there is one, with the host; check the planes against the model."""
        check_frequencies(self.frequencies, config.decoder.rope)
        budget = host_budget(self.host)
        scale = budget_scale(budget)
        method = dataclasses.replace(
            self,
            cos_fraction=scale * self.cos_fraction,
            sin_fraction=scale * self.sin_fraction,
        )
        host = self.host
        if budget is not None:
            added = method.cos_fraction + method.sin_fraction
            if added >= budget:
                raise BudgetError(f"{self.name}: IVC tokens alone exceed budget={budget:g}")
            host = with_host_budget(host, (budget - added) / (1 - added))
        try:
            return dataclasses.replace(method, host=host.resolve(config))
        except BudgetError as error:
            message = f"{self.name}: budget={budget:g} is shared with the IVC tokens; {error}"
            raise BudgetError(message) from None

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
        capacity = self.host.capacity(stage, layout.visual_slots, layout.num_images)
        selection = self.host.select(signals, layout, stage, min(num_keep, capacity))
        chosen = scoring.to_mask(selection, slots)
        counts = self._counts(layout.visual_slots)
        rules = CoordinateRules(
            self.frequencies, theta=self.theta, position_offset=self.position_offset
        )
        added = ivc_mask(layout, signals[RopeSettings()], rules, *counts)
        united = scoring.from_mask(chosen | added, num_keep)
        if selection.weights is not None:
            united = united.replace(weights=_widened(selection, united, chosen))
        return united.replace(carry=selection.carry)

    def _counts(self, max_count: int) -> tuple[np.ndarray, np.ndarray]:
        cosine = scoring.rounded_counts(self.cos_fraction, max_count)
        return cosine, scoring.rounded_counts(self.sin_fraction, max_count)


def _widened(selection: Selection, united: Selection, chosen: jax.Array) -> jax.Array:
    """Give the weights of a selection rows for added tokens, which stay as they are: [B, K, V]."""
    row_of = jnp.cumsum(chosen, axis=1) - 1  # [B, V], row of a token in the host's weights
    row = jnp.take_along_axis(row_of, united.index, axis=1)
    row = jnp.clip(row, 0, selection.weights.shape[1] - 1)
    weights = jnp.take_along_axis(selection.weights, row[..., None], axis=1)
    own = jnp.take_along_axis(chosen, united.index, axis=1) & united.valid
    alone = scoring.keep_weights(united, chosen.shape[1])
    return jnp.where(own[..., None], weights, alone)


def chain(method: Method) -> list[Method]:
    """List a method and its hosts, outermost first."""
    parts = [method]
    while isinstance(parts[-1], Modifier):
        parts.append(parts[-1].host)
    return parts


def host_budget(method: Method) -> float | None:
    """Return the budget of the innermost host, if it has one."""
    return getattr(chain(method)[-1], "budget", None)


def with_host_budget(method: Method, budget: float) -> Method:
    """Return the same method with another budget of its innermost host."""
    if isinstance(method, Modifier):
        return dataclasses.replace(method, host=with_host_budget(method.host, budget))
    return dataclasses.replace(method, budget=budget)
