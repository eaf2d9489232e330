"""The compiled prefill: tower, embedding, decoder spans with cuts between them, last logits."""

from collections.abc import Sequence as Several
from functools import cached_property, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.engine.compact import Sequence, compact, compact_caches
from ivc_jax.engine.plan import Cut, Span, make_plan
from ivc_jax.engine.signals import layer_signals, split
from ivc_jax.engine.tower import tap_of, tower_signals
from ivc_jax.inputs.batch import Batch
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods.base import (
    DENSE,
    Carry,
    Embeddings,
    Hidden,
    LayerRequest,
    Method,
    MethodError,
    Request,
    RopeSettings,
    TowerRequest,
)
from ivc_jax.model import Model
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.tower import VisionTower
from ivc_jax.parallel import place_inputs
from ivc_jax.types import Inputs, KVSpan, Selection


@flax.struct.dataclass
class Prefill:
    """What the prompt leaves behind.

    `selection` is in the visual space of the unpruned prompt; it is None for a method without
    stages and for a batch without images.
    """

    logits: jax.Array  # [B, vocab] float32, after the last valid token
    cache: tuple[KVSpan, ...]  # consecutive layers, first to last
    selection: Selection | None
    next_position: jax.Array  # [B] int32, position id of the first generated token
    origin: jax.Array  # [B, S] int32, prompt slot of each surviving token
    lengths: jax.Array  # [B] int32, surviving tokens
    text_count: jax.Array  # [B] int32, text tokens
    visual_count: jax.Array  # [B] int32, visual tokens of the unpruned prompt
    visual_computed: jax.Array  # [B, L] int32, visual tokens that each block ran on

    @cached_property
    def kept(self) -> list[np.ndarray]:
        """Ascending positions in each sample's unpadded prompt that survive the last stage."""
        origin, lengths = np.asarray(self.origin), np.asarray(self.lengths)
        return [row[:length] for row, length in zip(origin, lengths, strict=True)]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache arrays of the whole batch."""
        return sum(span.nbytes for span in self.cache)

    @property
    def cached_share(self) -> np.ndarray:
        """Mean over layers of the share of visual tokens in the cache: float64 [B], 1 without."""
        lengths = np.stack([np.asarray(span.lengths) for span in self.cache], axis=1)
        layers = [span.keys.shape[0] for span in self.cache]
        visual = np.average(lengths, axis=1, weights=layers) - np.asarray(self.text_count)
        count = np.asarray(self.visual_count)
        return np.where(count > 0, visual / np.maximum(count, 1), 1.0)


def prefill(model: Model, batch: Batch | Inputs, method: Method = DENSE) -> Prefill:
    """Run the prompt through the model, pruning as `method` says.

    Args:
        batch: prompts as the processor returns them, or already collated inputs.
        method: see `ivc_jax.methods.parse`; the default prunes nothing.

    Returns:
        Last-token logits, the shortened cache and what was kept.

    Raises:
        MethodError: the method does not fit the model.
        InputError: prompts and images do not match, or a prompt is too long.
    """
    method = method.resolve(model.config)
    make_plan(model.config.decoder.num_layers, method)  # complain before any device work
    inputs = collate(batch, model.config) if isinstance(batch, Batch) else batch
    return run_prefill(model.config, method, model.params, place_inputs(inputs, model.mesh))


def compiled_programs() -> int:
    """Count the prefill programs compiled so far in this process."""
    return run_prefill._cache_size()


@partial(jax.jit, static_argnums=(0, 1))
def run_prefill(
    config: ModelConfig, method: Method, params: dict[str, Any], inputs: Inputs
) -> Prefill:
    """Compiled body of `prefill`; `method` is resolved, `inputs` are collated."""
    layout = inputs.layout
    # Without a single image in the bucket there is nothing to cut.
    method = method if inputs.visual_source.shape[1] else DENSE
    asked = dict.fromkeys(r for stage in method.stages for r in method.requests(stage))
    hidden, signals = _embed(config, params, inputs, list(asked))
    slots = jnp.broadcast_to(jnp.arange(inputs.tokens.shape[1]), inputs.tokens.shape)
    walk = _Walk(config, method, params["decoder"], inputs, list(asked), signals)
    sequence = walk.run(Sequence(hidden=hidden, layout=layout, origin=slots.astype(jnp.int32)))
    last = (sequence.layout.lengths - 1)[:, None, None]
    hidden = jnp.take_along_axis(sequence.hidden, last, axis=1)[:, 0]
    return Prefill(
        logits=decoder.logits(config.decoder, params["decoder"], hidden),
        cache=tuple(walk.cache),
        selection=walk.selection,
        next_position=inputs.next_position,
        origin=sequence.origin,
        lengths=sequence.layout.lengths,
        text_count=layout.lengths - layout.visual_count,
        visual_count=layout.visual_count,
        visual_computed=jnp.stack(walk.computed, axis=1),
    )


def embed_inputs(config: ModelConfig, params: dict[str, Any], inputs: Inputs) -> jax.Array:
    """Embed text and put the tower's tokens into their slots: [B, N, D]."""
    return _embed(config, params, inputs, ())[0]


def _embed(
    config: ModelConfig, params: dict[str, Any], inputs: Inputs, asked: Several[Request]
) -> tuple[jax.Array, dict[Request, Any]]:
    """Embed the inputs; answer what is asked about the tower and the embeddings."""
    hidden = decoder.embed(params["decoder"], inputs.tokens)
    signals: dict[Request, Any] = {RopeSettings(): config.decoder.rope, Carry(): None}
    if inputs.visual_source.shape[1] == 0:
        return hidden, signals
    with jax.named_scope("vision_tower"):
        tower = VisionTower(config.vision)
        patches = inputs.patches.astype(hidden.dtype)
        requests = [request for request in asked if isinstance(request, TowerRequest)]
        taps = dict.fromkeys(tap for r in requests if (tap := tap_of(r, config.vision)))
        merged, tapped = tower.apply(
            {"params": params["vision"]}, patches, inputs.patch_positions, tuple(taps),
            method="encode",
        )  # fmt: skip
        signals |= tower_signals(requests, inputs, tapped, config.vision)
        visual = merged.reshape(-1, merged.shape[-1])[inputs.visual_source]  # [B, V, D]
    B, N = inputs.tokens.shape
    slot = jnp.where(inputs.layout.visual_valid, inputs.layout.visual_index, N)
    rows = jnp.arange(B)[:, None]
    hidden = hidden.at[rows, slot].set(visual.astype(hidden.dtype), mode="drop")
    if Embeddings() in asked:
        signals[Embeddings()] = split(inputs.layout, hidden)
    return hidden, signals


class _Walk:
    """Walks a plan while the prefill is traced; fills `cache`, `computed` and `selection`."""

    def __init__(
        self,
        config: ModelConfig,
        method: Method,
        params: dict[str, Any],
        inputs: Inputs,
        asked: Several[Request],
        signals: dict[Request, Any],
    ) -> None:
        self.sizes, self.method, self.params = config.decoder, method, params
        self.inputs, self.asked, self.signals = inputs, asked, signals
        self.cache: list[KVSpan] = []
        self.computed: list[jax.Array] = []
        self.selection: Selection | None = None
        self.shift: jax.Array | None = None

    def run(self, sequence: Sequence) -> Sequence:
        """Take all steps."""
        for step in make_plan(self.sizes.num_layers, self.method):
            sequence = (
                self._cut(sequence, step) if isinstance(step, Cut) else self._span(sequence, step)
            )
        return sequence

    def _span(self, sequence: Sequence, span: Span) -> Sequence:
        """Run the blocks of a span and answer requests about them."""
        layers, layout = self.params["layers"], sequence.layout
        angles = rope.angles(self.sizes.rope, layout.positions)
        queries = None
        if span.alone:
            hidden, (queries, keys, values) = decoder.run_layer(
                self.sizes, layers, sequence.hidden, angles, span.start, lengths=layout.lengths
            )
            keys, values = keys[None], values[None]
        else:
            hidden, keys, values = decoder.run_span(
                self.sizes, layers, sequence.hidden, angles, span.start, span.stop,
                lengths=layout.lengths,
            )  # fmt: skip
        for layer in range(span.start, span.stop):
            offset = layer - span.start
            self._answer(layer, layout, queries, keys[offset], values[offset])
        self.cache.append(KVSpan(keys, values, layout.lengths, self.shift))
        count = layout.visual_valid.sum(axis=1, dtype=jnp.int32)
        self.computed += [count] * (span.stop - span.start)
        return sequence.replace(hidden=hidden)

    def _answer(self, layer: int, layout: Any, *projections: jax.Array | None) -> None:
        of_layer = [r for r in self.asked if isinstance(r, LayerRequest) and r.layer == layer]
        self.signals |= layer_signals(of_layer, layout, *projections)

    def _cut(self, sequence: Sequence, cut: Cut) -> Sequence:
        """Select and compact; with `jax.named_scope`, so that profiles show what it costs."""
        method, stage, layout = self.method, cut.stage, sequence.layout
        with jax.named_scope("selection"):
            requests = method.requests(stage)
            if any(isinstance(r, LayerRequest) and r.layer == stage.layer for r in requests):
                angles = rope.angles(self.sizes.rope, layout.positions)
                layers = self.params["layers"]
                projections = decoder.project(
                    self.sizes, layers, sequence.hidden, angles, stage.layer
                )
                self._answer(stage.layer, layout, *projections)
            if Hidden() in requests:
                self.signals[Hidden()] = split(layout, sequence.hidden)
            capacity = method.capacity(stage, layout.visual_slots, layout.num_images)
            num_keep = min(capacity, layout.visual_index.shape[1])
            chosen = method.select(self.signals, layout, stage, num_keep)
            if chosen.weights is not None and stage.compact_earlier_kv and stage.layer:
                raise MethodError(
                    f"{method.name} merges tokens, which earlier caches cannot follow: its stage"
                    " must not have compact_earlier_kv"
                )
            self.signals[Carry()] = chosen.carry
            sequence, order = compact(sequence, chosen, stage.renumber)
            lengths = sequence.layout.lengths
            self.selection = Selection(sequence.layout.visual_origin, chosen.valid)
            if stage.renumber:
                self.shift = self.inputs.next_position - lengths
            if stage.compact_earlier_kv:
                self.cache = compact_caches(self.cache, order, lengths, stage.whole_kv_layers)
        return sequence
