"""The IVC tokens beside what another method keeps (IVC-Prune, arXiv 2602.03060, FastV + IVC)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.budget import BudgetError
from ivc_jax.methods.coordinates import Coordinates, recall
from ivc_jax.methods.defaults import fill_in
from ivc_jax.methods.fields import flat
from ivc_jax.methods.ivc import IVCPrune
from ivc_jax.methods.ivc_progressive import ProgressiveIVC
from ivc_jax.methods.ivc_removal import IVCRemoval
from ivc_jax.methods.modifier import Modifier, unwrap
from ivc_jax.methods.placed import unite
from ivc_jax.methods.quota import QuoTA
from ivc_jax.methods.requests import Carry, Request, RopeSettings, Signals
from ivc_jax.methods.select import bound_total, from_mask, keep_weights, to_mask
from ivc_jax.types import Layout, Selection


@flat(
    *("coordinates", "random_seed", "cos_fraction", "sin_fraction", "frequencies", "theta"),
    "position_offset",
)
@dataclasses.dataclass(frozen=True)
class WithIVC(Modifier):
    """Keep the IVC tokens beside whatever another method keeps (the paper's FastV + IVC).

    The IVC set is that of the unpruned image at every stage of the host, so that no later stage
    loses a token of it. IVC tokens stay as they are, also where the host merges them into others; a
    class token that the host keeps may take the slot of one.

    IVC tokens come on top of what the host keeps, but not on top of a budget: with a budget b and
    a share s of IVC tokens the host gets (b - s) / (1 - s), which makes the union b if the two
    choose independently of each other. Below b = 0.5 the fractions shrink with it.

    Attributes:
        host: the method to extend.
        coordinates: the IVC tokens, or as many others by the name of a rule; their positions are
            absolute, on all axes.
    """

    suffix: ClassVar[str] = "ivc"

    host: Method
    coordinates: Coordinates = Coordinates()

    def __post_init__(self) -> None:
        parts = unwrap(self.host)
        if any(isinstance(part, IVCPrune | ProgressiveIVC | WithIVC) for part in parts):
            raise MethodError(f"{self.host.name} keeps the IVC tokens already; drop the +ivc")
        if isinstance(parts[-1], QuoTA) and parts[-1].ivc != "none":
            raise MethodError("ivc of quota prunes what +ivc would keep; drop one of them")
        if any(isinstance(part, IVCRemoval) for part in parts):
            raise MethodError(f"{self.host.name} drops tokens that +ivc would keep; drop the +ivc")
        if type(parts[-1]) is Method:
            raise MethodError("dense keeps every token; +ivc needs a method that prunes")

    def resolve(self, config: ModelConfig) -> "WithIVC":
        """Share the budget, if there is one, with the host; check the planes against the model."""
        self.coordinates.check_planes(config.decoder.rope)
        host, budget = self.host, getattr(unwrap(self.host)[-1], "budget", None)
        coordinates = fill_in(self.coordinates, config.released).shrink(budget)
        if budget is not None:
            added = sum(coordinates.fractions)
            if added >= budget:
                raise BudgetError(f"{self.name}: IVC tokens alone exceed budget={budget:g}")
            host = _change_budget(host, (budget - added) / (1 - added))
        try:
            host = host.resolve(config)
        except BudgetError as error:
            message = f"{self.name}: budget={budget:g} is shared with the IVC tokens; {error}"
            raise BudgetError(message) from None
        return dataclasses.replace(self, host=host, coordinates=coordinates)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for what the host asks for, and the rotary settings or, later on, what was marked."""
        own = RopeSettings() if self._is_first(stage) else Carry()
        return tuple(dict.fromkeys((*self.host.requests(stage), own)))

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Add the largest IVC set to the bound of the host."""
        cosine, sine = self.coordinates.count(visual_slots)
        added = bound_total(cosine + sine, num_images)
        return min(visual_slots, self.host.capacity(stage, visual_slots, num_images) + added)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Unite the host's selection with the IVC tokens of the first cut."""
        if self._is_first(stage):
            marked, carry = self.coordinates.mark(layout, signals[RopeSettings()]), None
        else:
            marked, carry = signals[Carry()]  # ours, [B, V unpruned], and the host's own
        signals = {**signals, Carry(): carry}
        capacity = self.host.capacity(stage, layout.visual_slots, layout.num_images)
        # No more than it keeps alone: the slots above that are for the IVC tokens.
        selection = self.host.select(signals, layout, stage, min(num_keep, capacity))
        if selection.place is not None:
            united = unite(selection, recall(marked, layout), num_keep, layout.visual_count)
            return united.replace(carry=(marked, selection.carry))
        chosen = to_mask(selection, layout.visual_index.shape[1])  # [B, V]
        united = from_mask(chosen | recall(marked, layout), num_keep)
        if selection.weights is not None:
            united = united.replace(weights=_widen(selection, united, chosen))
        if selection.becomes_class is not None:
            of_class = selection.replace(valid=selection.becomes_class & selection.valid)
            of_class = to_mask(of_class, chosen.shape[1])  # [B, V]
            becomes = jnp.take_along_axis(of_class, united.index, axis=1) & united.valid
            united = united.replace(becomes_class=becomes)
        return united.replace(carry=(marked, selection.carry))

    def take_apart(self, signals: Signals, layout: Layout, stage: Stage) -> dict[str, jax.Array]:
        """Return V, U and the IVC tokens, beside the parts of the host's choice."""
        parts = self.host.take_apart(signals, layout, stage)
        if self._is_first(stage):
            parts |= self.coordinates.take_apart(layout, signals[RopeSettings()])
        return parts

    def _is_first(self, stage: Stage) -> bool:
        return stage == self.stages[0]


def _widen(selection: Selection, united: Selection, chosen: jax.Array) -> jax.Array:
    """Give the weights of a selection rows for added tokens, which stay as they are: [B, K, V]."""
    # token  0 1 2 3 4      the host keeps 0 and 3 in rows 0 and 1 of its weights
    # row    0 0 0 1 1      token 2 is added, and what row 0 says of it is not taken
    row_of = jnp.cumsum(chosen, axis=1) - 1  # [B, V]
    row = jnp.take_along_axis(row_of, united.index, axis=1)
    row = jnp.clip(row, 0, selection.weights.shape[1] - 1)  # [B, K]
    weights = jnp.take_along_axis(selection.weights, row[..., None], axis=1)
    own = jnp.take_along_axis(chosen, united.index, axis=1) & united.valid
    alone = keep_weights(united, chosen.shape[1])
    return jnp.where(own[..., None], weights, alone)


def _change_budget(method: Method, budget: float) -> Method:
    """Return the same method with another budget of its innermost host."""
    if isinstance(method, Modifier):
        return dataclasses.replace(method, host=_change_budget(method.host, budget))
    return dataclasses.replace(method, budget=budget)
