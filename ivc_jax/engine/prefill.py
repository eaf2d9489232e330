"""The compiled prefill: tower, embedding, decoder spans with cuts between them, last logits."""

from functools import cached_property, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.engine.compact import Sequence, compact, compact_caches
from ivc_jax.engine.plan import Span, make_plan
from ivc_jax.inputs.batch import Batch
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods.base import DENSE, AttentionRows, Method, RopeSettings, TokenVectors, Values
from ivc_jax.model import Model
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.attention import attention_rows
from ivc_jax.nn.vision import VisionTower
from ivc_jax.parallel import place_inputs
from ivc_jax.types import Inputs, KVSpan, Layout, Selection


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

    @cached_property
    def kept(self) -> list[np.ndarray]:
        """Ascending positions in each sample's unpadded prompt that survive the last stage."""
        origin, lengths = np.asarray(self.origin), np.asarray(self.lengths)
        return [row[:length] for row, length in zip(origin, lengths, strict=True)]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache arrays of the whole batch."""
        return sum(span.nbytes for span in self.cache)


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
    slots = jnp.broadcast_to(jnp.arange(inputs.tokens.shape[1]), inputs.tokens.shape)
    visual = inputs.layout.visual_index
    sequence = Sequence(
        hidden=embed_inputs(config, params, inputs),
        layout=inputs.layout,
        origin=slots.astype(jnp.int32),
        visual_origin=jnp.broadcast_to(jnp.arange(visual.shape[1]), visual.shape),
    )
    sequence, cache, selection = _decode_prompt(config, method, params["decoder"], sequence)
    last = (sequence.layout.lengths - 1)[:, None, None]
    hidden = jnp.take_along_axis(sequence.hidden, last, axis=1)[:, 0]
    return Prefill(
        logits=decoder.logits(config.decoder, params["decoder"], hidden),
        cache=cache,
        selection=selection,
        next_position=inputs.next_position,
        origin=sequence.origin,
        lengths=sequence.layout.lengths,
    )


def embed_inputs(config: ModelConfig, params: dict[str, Any], inputs: Inputs) -> jax.Array:
    """Embed text and put the tower's tokens into their slots: [B, N, D]."""
    hidden = decoder.embed(params["decoder"], inputs.tokens)
    if inputs.visual_source.shape[1] == 0:
        return hidden
    with jax.named_scope("vision_tower"):
        tower = VisionTower(config.vision)
        patches = inputs.patches.astype(hidden.dtype)
        merged = tower.apply({"params": params["vision"]}, patches, inputs.patch_positions)
        visual = merged.reshape(-1, merged.shape[-1])[inputs.visual_source]  # [B, V, D]
    B, N = inputs.tokens.shape
    slot = jnp.where(inputs.layout.visual_valid, inputs.layout.visual_index, N)
    return hidden.at[jnp.arange(B)[:, None], slot].set(visual.astype(hidden.dtype), mode="drop")


def _decode_prompt(
    config: ModelConfig, method: Method, params: dict[str, Any], sequence: Sequence
) -> tuple[Sequence, tuple[KVSpan, ...], Selection | None]:
    """Walk the plan."""
    visual_slots = sequence.layout.visual_index.shape[1]
    # Without a single image in the bucket there is nothing to cut.
    method = method if visual_slots else DENSE
    cache: list[KVSpan] = []
    selection, signals = None, {RopeSettings(): config.decoder.rope}
    requests = {stage: method.requests(stage) for stage in method.stages}
    for step in make_plan(config.decoder.num_layers, method):
        if isinstance(step, Span):
            asked = {request for wanted in requests.values() for request in wanted}
            sequence, span, new = _run_span(config, params, sequence, step, asked)
            cache.append(span)
            signals |= new
            continue
        with jax.named_scope("selection"):
            current = sequence.layout.visual_index.shape[1]
            capacity = method.capacity(step.stage, visual_slots, sequence.layout.num_images)
            chosen = method.select(signals, sequence.layout, step.stage, min(capacity, current))
            sequence, order = compact(sequence, chosen)
            selection = Selection(index=sequence.visual_origin, valid=chosen.valid)
            if step.stage.compact_earlier_kv:
                lengths, whole = sequence.layout.lengths, step.stage.whole_kv_layers
                cache = compact_caches(cache, order, lengths, whole)
    return sequence, tuple(cache), selection


def _run_span(
    config: ModelConfig, params: dict[str, Any], sequence: Sequence, span: Span, asked: set
) -> tuple[Sequence, KVSpan, dict]:
    """Run the blocks of a span; return also the signals that it can answer."""
    sizes, layers, layout = config.decoder, params["layers"], sequence.layout
    angles = rope.angles(sizes.rope, layout.positions)
    queries = None
    if span.alone:
        hidden, (queries, keys, values) = decoder.run_layer(
            sizes, layers, sequence.hidden, angles, span.start, lengths=layout.lengths
        )
        keys, values = keys[None], values[None]
    else:
        hidden, keys, values = decoder.run_span(
            sizes, layers, sequence.hidden, angles, span.start, span.stop, lengths=layout.lengths
        )
    signals = {}
    for request in asked:
        if isinstance(request, RopeSettings) or not span.start <= request.layer < span.stop:
            continue
        offset = request.layer - span.start
        if isinstance(request, Values):
            signals[request] = _split(layout, values[offset])
        elif isinstance(request, AttentionRows):
            signals[request] = _last_rows(layout, queries, keys[offset])
    cached = KVSpan(keys=keys, values=values, lengths=layout.lengths)
    return sequence.replace(hidden=hidden), cached, signals


def _split(layout: Layout, vectors: jax.Array) -> TokenVectors:
    """Gather per-token vectors [B, N, G, C] of visual and text slots."""

    def take(index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(vectors, index[..., None, None], axis=1)

    return TokenVectors(visual=take(layout.visual_index), text=take(layout.text_index))


def _last_rows(layout: Layout, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the last token's attention over the visual tokens: [B, H, 1, V]."""
    last = (layout.lengths - 1)[:, None]
    query = jnp.take_along_axis(queries, last[..., None, None], axis=1)
    visible = jnp.arange(keys.shape[1]) < layout.lengths[:, None]
    rows = attention_rows(query, keys, visible[:, None])  # [B, H, 1, N]
    columns = jnp.take_along_axis(rows, layout.visual_index[:, None, None], axis=3)
    return jnp.where(layout.visual_valid[:, None, None], columns, 0.0)
