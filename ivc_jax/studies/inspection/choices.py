"""The sets that methods of one cut would keep at it, many at a time, without pruning anything."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.engine.modules import with_modules
from ivc_jax.engine.plan import make_plan
from ivc_jax.engine.prefill import place, trace_prefill
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.requests import Carry, Hidden, LayerRequest, Request, RopeSettings, Signals
from ivc_jax.methods.select import to_mask
from ivc_jax.model import Model
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.studies.inspection.grid import with_values
from ivc_jax.types import Inputs, Layout, Selection

Methods = tuple[Method, ...]
_ANY_LAYER = 1  # every method can cut there


@flax.struct.dataclass
class Choices:
    """What several methods of one layer keep of the same prompts."""

    kept: jax.Array  # [R, B, V] bool, by method
    parts: dict[str, jax.Array]  # [B, V] each: `Method.take_apart` of the first method


@dataclasses.dataclass(frozen=True)
class _Chooser(Method):
    """Lets methods choose at their common cut, hands their choices on, and keeps everything."""

    methods: Methods

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.methods[0].stages[0].layer, 1.0),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        return list_requests(self.methods)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        carry = _choose(self.methods, signals, layout)
        return Selection(index=layout.visual_origin, valid=layout.visual_valid, carry=carry)

    def rope(self, rope: RopeConfig) -> RopeConfig:
        return self.methods[0].rope(rope)


def list_requests(methods: Methods) -> tuple[Request, ...]:
    """List what methods of one cut ask for there, each request once."""
    asked = (request for method in methods for request in method.requests(method.stages[0]))
    return tuple(dict.fromkeys(asked))


def list_observed(methods: Methods) -> tuple[Request, ...]:
    """List those of their requests that a model answers with arrays, for `observe_layers`.

    Raises:
        MethodError: one of them has another kind of answer.
    """
    asked = [request for request in list_requests(methods) if request != RopeSettings()]
    for request in asked:
        if not isinstance(request, LayerRequest | Hidden):
            raise MethodError(f"{methods[0].name} asks for {request}, which is of no block")
    return tuple(asked)


def choose(model: Model, inputs: Inputs, methods: Methods) -> Choices:
    """Let methods choose in the pass that answers what they ask.

    Args:
        model: that answers.
        inputs: a collated batch with visuals.
        methods: resolved, of one cut each, before the same block, with one rotary embedding.

    Raises:
        MethodError: a request that cannot be had there.
    """
    chooser = _Chooser(methods)
    make_plan(model.config.decoder.num_layers, chooser)
    inputs = place(model, inputs)
    params = with_modules(model, chooser)
    with on_mesh(model.mesh):
        return _run(model.config, chooser, params, inputs)


def choose_by_layer(
    model: Model, layout: Layout, layers: Sequence[Methods], signals: Sequence[tuple[Any, ...]]
) -> list[Choices]:
    """Let methods choose by what `observe_layers` returned, one program for all layers.

    What a method does with its layer is to name requests by it; so methods of the first layer
    choose for every other, and are told what was asked there.

    Args:
        model: that was observed.
        layout: of the inputs.
        layers: equal methods but for their layer, as in `choose`, for each layer.
        signals: what `list_observed` of each layer was answered with.
    """
    rope, found = model.config.decoder.rope, []
    with on_mesh(model.mesh):
        for methods, told in zip(layers, signals, strict=True):
            alike = _forget_layer(methods) == _forget_layer(layers[0])
            found.append(_run_told(rope, layers[0] if alike else methods, told, layout))
    return found


def _forget_layer(methods: Methods) -> tuple[list[Method], list[tuple[type, dict[str, Any]]]]:
    """Describe methods and their requests as seen from their cut."""
    cut = methods[0].stages[0].layer
    asked = [
        (type(each), vars(each) | {"layer": getattr(each, "layer", cut) - cut})
        for each in list_observed(methods)
    ]
    return [with_values(method, layer=_ANY_LAYER) for method in methods], asked


def _choose(methods: Methods, signals: Signals, layout: Layout) -> Choices:
    kept = []
    for method in methods:
        (stage,) = method.stages
        capacity = method.capacity(stage, layout.visual_slots, layout.num_images)
        num_keep = min(capacity, layout.visual_slots)
        kept.append(to_mask(method.select(signals, layout, stage, num_keep), layout.visual_slots))
    parts = methods[0].take_apart(signals, layout, methods[0].stages[0])
    return Choices(jnp.stack(kept), parts)


@partial(jax.jit, static_argnums=(0, 1))
def _run(config: ModelConfig, chooser: _Chooser, params: dict[str, Any], inputs: Inputs) -> Choices:
    _, signals, _ = trace_prefill(config, chooser, params, inputs)
    return signals[Carry()]


@partial(jax.jit, static_argnums=(0, 1))
def _run_told(rope: RopeConfig, methods: Methods, told: tuple[Any, ...], layout: Layout) -> Choices:
    signals = dict(zip(list_observed(methods), told, strict=True))
    return _choose(methods, {RopeSettings(): rope, Carry(): None, **signals}, layout)
