"""The decoder part of a prefill, traced step by step along its plan.

    plan      Span(0, 2)       Cut(2), earlier caches too    Span(2, 4)
    hidden    [B, N, D]        [B, S, D]                     [B, S, D]         S = N - V + K
    cache     [2, B, N, G, C]  [2, B, S, G, C]               and [2, B, S, G, C]

What a cut asks about is answered on the way, by the blocks before it. Where the tower has features
for the first blocks to add, they go with the visual tokens until their block has run.
"""

from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Any

import jax
import jax.numpy as jnp

from ivc_jax.config import ModelConfig
from ivc_jax.engine.compact import Sequence, add_feature, compact, compact_caches, weigh
from ivc_jax.engine.decoder_signals import answer_layer, split
from ivc_jax.engine.plan import Add, Cut, Span, make_plan
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.requests import (
    Carry,
    ClassFeatures,
    Hidden,
    LayerRequest,
    RawValues,
    Request,
    TowerFeatures,
)
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.blocks import take_block
from ivc_jax.parallel.constraints import constrain_cache, constrain_hidden
from ivc_jax.types import Inputs, KVSpan, Layout, Selection


class Walk:
    """Walks a plan while the prefill is traced; fills `cache`, `computed` and `selection`."""

    def __init__(
        self,
        config: ModelConfig,
        method: Method,
        params: dict[str, Any],
        inputs: Inputs,
        signals: dict[Request, Any],
        project: Callable[[jax.Array], jax.Array],
    ) -> None:
        self.sizes, self.method, self.params = config.decoder, method, params
        self.inputs, self.signals, self.project = inputs, signals, project
        self.cache: list[KVSpan] = []
        self.computed: list[jax.Array] = []  # a block: visual tokens that it ran on, [B]
        self.selection: Selection | None = None  # of the last cut
        self.shift: jax.Array | None = None  # [B], see `KVSpan.shift`

    def run(self, sequence: Sequence) -> Sequence:
        """Take all steps; the sequence is what the last block leaves behind."""
        count = 0 if sequence.features is None else len(sequence.features)
        steps = make_plan(self.sizes.num_layers, self.method, count)
        for number, step in enumerate(steps):
            # A span answers the cut that follows it.
            cut = next((later for later in steps[number:] if isinstance(later, Cut)), None)
            requests = self.method.requests(cut.stage) if cut else ()
            if isinstance(step, Cut):
                sequence = self._run_cut(sequence, step.stage, requests)
            elif isinstance(step, Add):
                sequence = add_feature(sequence)
                sequence = sequence.replace(hidden=constrain_hidden(sequence.hidden))
            else:
                sequence = self._run_span(sequence, step, requests)
        return sequence

    def _run_span(self, sequence: Sequence, span: Span, requests: Several[Request]) -> Sequence:
        """Run the blocks of a span and answer what the next cut asks about them."""
        layers, layout = self.params["layers"], sequence.layout
        angles = rope.angles(self.sizes.rope, layout.positions)  # [B, N, F]
        vectors = None  # queries, keys and values [B, N, H or G, C] of a block that runs alone

        def attend(*vectors: jax.Array) -> tuple[jax.Array, Any]:
            mixed, cached = decoder.attend_whole(*vectors, lengths=layout.lengths)
            return mixed, (vectors[:3], cached) if span.alone else cached

        if span.alone:
            hidden, (vectors, cached) = decoder.run_layer(
                self.sizes, take_block(layers, span.start), sequence.hidden, angles, attend
            )
            keys, values = (each[None] for each in cached)  # [1, B, N, G, C]
        else:
            hidden, (keys, values) = decoder.run_span(
                self.sizes, layers, sequence.hidden, angles, span.start, span.stop, attend
            )  # [B, N, D], [L, B, N, G, C]
        asked = {request.layer for request in requests if isinstance(request, LayerRequest)}
        for layer in sorted(asked.intersection(range(span.start, span.stop))):
            cached = keys[layer - span.start], values[layer - span.start]
            found = vectors or (None, *decoder.expand(self.sizes, layers, layer, *cached))
            self._answer(requests, layer, layout, *found)
        if RawValues(span.start) in requests:
            raw = decoder.project_raw(self.sizes, layers, sequence.hidden, angles, span.start)
            self.signals[RawValues(span.start)] = split(layout, raw)
        keys, values = constrain_cache(keys), constrain_cache(values)
        self.cache.append(KVSpan(keys, values, layout.lengths, self.shift))
        count = layout.visual_valid.sum(axis=1, dtype=jnp.int32)  # [B]
        self.computed += [count] * (span.stop - span.start)
        return sequence.replace(hidden=constrain_hidden(hidden))

    def _answer(
        self, requests: Several[Request], layer: int, layout: Layout, *vectors: jax.Array | None
    ) -> None:
        """Note the signals of one block, made of its queries, keys and values."""
        here = [r for r in requests if isinstance(r, LayerRequest) and r.layer == layer]
        self.signals |= answer_layer(here, layout, *vectors)

    def _run_cut(self, sequence: Sequence, stage: Stage, requests: Several[Request]) -> Sequence:
        """Select and compact."""
        method, layout = self.method, sequence.layout
        with jax.named_scope("selection"):
            self._look_ahead(sequence, stage, requests)
            capacity = method.capacity(stage, layout.visual_slots, layout.num_images)
            num_keep = min(capacity, layout.visual_index.shape[1])  # K, at most the V there are
            chosen = method.select(self.signals, layout, stage, num_keep)
            if chosen.weights is not None and stage.compact_earlier_kv and stage.layer:
                raise MethodError(
                    f"{method.name} merges tokens, which earlier caches cannot follow: its stage"
                    " must not have compact_earlier_kv"
                )
            self.signals[Carry()] = chosen.carry
            merged = None
            if chosen.becomes_class is not None and stage.merge_in != "tower":
                raise MethodError(f"{method.name} keeps class tokens, which needs merge_in=tower")
            if chosen.weights is not None and stage.merge_in == "tower":
                features = self.signals[TowerFeatures()]  # [B, V, E]
                merged = weigh(chosen.weights, features, layout.visual_valid)  # [B, K, E]
                merged = self.project(self._place_class(chosen, merged))
            # order [B, S]
            sequence, order = compact(sequence, chosen, stage.renumber, merged)
            lengths = sequence.layout.lengths
            self.selection = Selection(sequence.layout.visual_origin, chosen.valid)
            if stage.renumber:
                self.shift = self.inputs.next_position - lengths
            if stage.compact_earlier_kv:
                self.cache = compact_caches(self.cache, order, lengths, stage.whole_kv_layers)
        return sequence

    def _place_class(self, chosen: Selection, merged: jax.Array) -> jax.Array:
        """Put class tokens where the selection wants them among merged features [B, K, E]."""
        if chosen.becomes_class is None:
            return merged
        features = self.signals[ClassFeatures()]  # [B, V, E]
        features = jnp.take_along_axis(features, chosen.index[..., None], axis=1)  # [B, K, E]
        return jnp.where(chosen.becomes_class[..., None], features, merged)

    def _look_ahead(self, sequence: Sequence, stage: Stage, requests: Several[Request]) -> None:
        """Answer requests about the sequence as it stands at a cut, and the block behind it."""
        layout = sequence.layout
        for request in requests:
            if isinstance(request, Hidden):
                hidden = sequence.hidden  # [B, N, D]
                if request.normed:
                    hidden = decoder.finish(self.sizes, self.params, hidden)
                self.signals[request] = split(layout, hidden)
        if any(isinstance(r, LayerRequest) and r.layer == stage.layer for r in requests):
            angles = rope.angles(self.sizes.rope, layout.positions)  # [B, N, F]
            layers = self.params["layers"]
            vectors = decoder.project(self.sizes, layers, sequence.hidden, angles, stage.layer)
            self._answer(requests, stage.layer, layout, *vectors)
