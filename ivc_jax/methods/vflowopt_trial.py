"""A trial of the search for VFlowOpt's settings: masks, so that all trials are one program."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.requests import (
    Carry,
    Parameters,
    PixelEntropy,
    Request,
    Signals,
    TowerAttention,
    Weights,
)
from ivc_jax.methods.vflowopt import Tables, cut
from ivc_jax.types import Layout, Selection

TABLES = "vflowopt_trial"  # what its tables are called beside the model's parameters


@dataclasses.dataclass(frozen=True)
class Trial(Method):
    """VFlowOpt whose settings are data, `Tables`: every cut keeps all slots and masks some.

    Attributes:
        layers: first block behind each of the three cuts.
        importance: as of VFlowOpt.
    """

    name: ClassVar[str] = "vflowopt_trial"

    layers: tuple[int, ...] = (0, 1, 2)
    importance: str = "mean"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Three cuts, none of known size."""
        return tuple(Stage(layer, 1.0) for layer in self.layers)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for the tables, and for what any setting may want to know."""
        if stage.layer == self.layers[0]:
            return TowerAttention(), PixelEntropy(), Weights(TABLES)
        return Carry(), Weights(TABLES)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Choose as VFlowOpt does."""
        found: Parameters = signals[Weights(TABLES)]
        tables = Tables(**found(_shape(layout.visual_slots)))
        number = self.layers.index(stage.layer)
        return cut(signals, layout, num_keep, number, tables, self.importance)


def _shape(visual_slots: int) -> dict[str, jax.ShapeDtypeStruct]:
    """State the shapes of the tables of a bucket."""
    shapes = {
        "threshold": (),
        "alpha": (),
        "across": (visual_slots,),
        "top": (visual_slots + 1,),
        "left": (3, visual_slots + 1),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
