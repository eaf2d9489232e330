"""Turn (number of layers, method) into a static tuple of steps.

    ivc:layer=16 on 28 layers       Span(0, 16)  Cut(16)  Span(16, 28)
    fastv:layer=2 on 28 layers      Span(0, 1)  Span(1, 2, alone)  Cut(2)  Span(2, 28)
    the same, with 2 features       Span(0, 1)  Add(0)  Span(1, 2, alone)  Add(1)  Cut(2)  ...

Blocks whose queries, or what enters them, are asked for run alone; keys and values come out of any
span, so asking for them costs nothing. A cut may also ask for attention and keys of the block right
behind it: then the projections of that block are applied once more, to the sequence as it stands
before the cut.
"""

import dataclasses

from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.requests import (
    AttentionReceived,
    AttentionRows,
    Keys,
    LayerRequest,
    RawValues,
    Request,
    TowerFeatures,
)

_NEED_QUERIES = AttentionRows | AttentionReceived
_ALONE = _NEED_QUERIES | RawValues
_OF_NEXT_BLOCK = _NEED_QUERIES | Keys


@dataclasses.dataclass(frozen=True)
class Span:
    """Run blocks start..stop-1; `alone` marks a single block that also returns its queries."""

    start: int
    stop: int
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Cut:
    """Select and compact with the method's `stage`."""

    stage: Stage


@dataclasses.dataclass(frozen=True)
class Add:
    """Add feature `index` of the visual tokens to what the block of that number has made."""

    index: int


Plan = tuple[Span | Cut | Add, ...]


def make_plan(num_layers: int, method: Method, features: int = 0) -> Plan:
    """Lay out the steps of a prefill.

    Args:
        num_layers: of the decoder.
        method: already resolved against the model.
        features: how many are added between blocks (`VisionConfig.deepstack`).

    Raises:
        MethodError: a stage or a request outside the model or in the wrong order.
    """
    steps: list[Span | Cut | Add] = []
    done = 0  # blocks that have run
    for stage in method.stages:
        _check_stage(stage, done, num_layers)
        requests = method.requests(stage)
        _check_requests(requests, done, stage)
        # The block behind the cut is projected before it runs, so it need not run alone.
        alone = {request.layer for request in requests if isinstance(request, _ALONE)}
        steps += _lay_spans(done, stage.layer, alone - {stage.layer}, features)
        steps.append(Cut(stage))
        done = stage.layer
    return tuple(steps + _lay_spans(done, num_layers, set(), features))


def _lay_spans(start: int, stop: int, alone: set[int], features: int) -> list[Span | Add]:
    """Cover blocks start..stop-1, those of `alone` by themselves, and add features on the way."""
    steps: list[Span | Add] = []
    for layer in range(start, stop):
        # the last block of a span: something happens behind it, or the next one runs alone
        last = layer < features or layer in alone or layer + 1 in alone or layer + 1 == stop
        if last:
            steps.append(Span(start, layer + 1, alone=layer in alone))
            start = layer + 1
        if layer < features:
            steps.append(Add(layer))
    return steps


def _check_stage(stage: Stage, done: int, num_layers: int) -> None:
    stage.check()
    if not 0 <= stage.layer < num_layers:
        raise MethodError(
            f"layer={stage.layer} is outside the model: it has layers 0 to {num_layers - 1}"
        )
    if stage.layer < done:
        raise MethodError(f"stages must not go back: layer {stage.layer} follows layer {done}")


def _check_requests(requests: tuple[Request, ...], done: int, stage: Stage) -> None:
    if stage.merge_in == "tower" and (stage.layer or TowerFeatures() not in requests):
        raise MethodError(
            f"merge_in=tower of the cut before layer {stage.layer}: only one before layer 0 that"
            " asks for TowerFeatures() merges there"
        )
    # Signals must describe the sequence as it stands at the cut: a block before the last cut saw
    # other tokens.
    for request in requests:
        if not isinstance(request, LayerRequest):
            continue
        last = stage.layer if isinstance(request, _OF_NEXT_BLOCK) else stage.layer - 1
        if not done <= request.layer <= last:
            raise MethodError(
                f"{request} cannot be had for a cut before layer {stage.layer}: "
                f"blocks {done} to {stage.layer - 1} have run on the present tokens"
            )
