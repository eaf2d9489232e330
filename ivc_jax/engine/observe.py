"""What a method would be told at a cut, without pruning anything."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.engine.modules import with_modules
from ivc_jax.engine.plan import make_plan
from ivc_jax.engine.prefill import place, trace_prefill
from ivc_jax.methods.base import DENSE, Method, Stage
from ivc_jax.methods.requests import Carry, Request, Signals
from ivc_jax.model import Model
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.types import Inputs, Layout, Selection

_Asked = tuple[tuple[int, tuple[Request, ...]], ...]  # layers, and what is asked before each


@dataclasses.dataclass(frozen=True)
class _Observer(Method):
    """Asks, hands on what it is told, and keeps everything."""

    asked: _Asked
    turned: Method  # the method whose rotary embedding the blocks use

    @property
    def stages(self) -> tuple[Stage, ...]:
        # nothing is cut: signals are those of the whole prompt
        return tuple(Stage(layer, 1.0) for layer, _ in self.asked)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        return dict(self.asked)[stage.layer]

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        # here and not at the end: a later cut asks for hidden states under the same name
        told = tuple(signals[request] for request in self.requests(stage))
        carry = (*(signals[Carry()] or ()), told)
        return Selection(index=layout.visual_origin, valid=layout.visual_valid, carry=carry)

    def rope(self, rope: RopeConfig) -> RopeConfig:
        return self.turned.rope(rope)


def observe(model: Model, inputs: Inputs, layer: int, *requests: Request) -> tuple[Any, ...]:
    """Return signals of the unpruned model at a cut before decoder block `layer`.

    Args:
        inputs: a collated batch with visuals.
        requests: such as `AttentionRows(layer - 1)`; not `TowerAttention`, which is a function.

    Raises:
        MethodError: a request that cannot be had there.
    """
    return observe_layers(model, inputs, {layer: requests})[layer]


def observe_layers(
    model: Model,
    inputs: Inputs,
    asked: Mapping[int, tuple[Request, ...]],
    turned: Method = DENSE,
) -> dict[int, tuple[Any, ...]]:
    """Return signals of the unpruned model at cuts before several blocks, all in one pass.

    Args:
        model: that is looked into.
        inputs: a collated batch with visuals.
        asked: requests, as for `observe`, by the layer of the cut.
        turned: a method whose rotary embedding the decoder's attention uses.

    Raises:
        MethodError: a request that cannot be had at its cut: a block before the cut before it.
    """
    listed = tuple((layer, tuple(asked[layer])) for layer in sorted(asked))
    method = _Observer(listed, turned)
    make_plan(model.config.decoder.num_layers, method)
    inputs = place(model, inputs)
    params = with_modules(model, method)
    with on_mesh(model.mesh):
        told = _run(model.config, method, params, inputs)
    return {layer: signals for (layer, _), signals in zip(listed, told, strict=True)}


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    config: ModelConfig, method: _Observer, params: dict[str, Any], inputs: Inputs
) -> tuple[tuple[Any, ...], ...]:
    # What the blocks behind the last cut compute is not returned, so that it is not compiled.
    _, signals, _ = trace_prefill(config, method, params, inputs)
    return signals[Carry()]
