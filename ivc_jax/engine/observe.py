"""What a method would be told at a cut, without pruning anything."""

import dataclasses
from functools import partial
from typing import Any

import jax

from ivc_jax.config import ModelConfig
from ivc_jax.engine.modules import with_modules
from ivc_jax.engine.plan import make_plan
from ivc_jax.engine.prefill import place, trace_prefill
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.requests import Request, Signals
from ivc_jax.model import Model
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.types import Inputs, Layout, Selection


@dataclasses.dataclass(frozen=True)
class _Observer(Method):
    """Asks and keeps everything."""

    layer: int
    asked: tuple[Request, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer, 1.0),)  # nothing is cut: signals are those of the whole prompt

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        return self.asked

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        return Selection(index=layout.visual_origin, valid=layout.visual_valid)


def observe(model: Model, inputs: Inputs, layer: int, *requests: Request) -> tuple[Any, ...]:
    """Return signals of the unpruned model at a cut before decoder block `layer`.

    Args:
        inputs: a collated batch with visuals.
        requests: such as `AttentionRows(layer - 1)`; not `TowerAttention`, which is a function.

    Raises:
        MethodError: a request that cannot be had there.
    """
    method = _Observer(layer, requests)
    make_plan(model.config.decoder.num_layers, method)
    inputs = place(model, inputs)
    params = with_modules(model, method)
    with on_mesh(model.mesh):
        return _run(model.config, method, params, inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    config: ModelConfig, method: _Observer, params: dict[str, Any], inputs: Inputs
) -> tuple[Any, ...]:
    # What the blocks behind the cut compute is not returned, so that it is not compiled either.
    _, signals, _ = trace_prefill(config, method, params, inputs)
    return tuple(signals[request] for request in method.asked)
