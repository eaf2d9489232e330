"""The compiled prefill: tower, embedding, decoder spans with cuts between them, last logits."""

import dataclasses
import logging
from collections.abc import Sequence as Several
from functools import cached_property, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.engine.compact import Sequence
from ivc_jax.engine.decoder_signals import split
from ivc_jax.engine.modules import answer_modules, with_modules
from ivc_jax.engine.plan import make_plan
from ivc_jax.engine.tower_signals import answer_tower, choose_tap
from ivc_jax.engine.walk import Walk
from ivc_jax.inputs.batch import Batch
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods.base import DENSE, Method, MethodError, find_method
from ivc_jax.methods.requests import (
    Carry,
    Embeddings,
    Learned,
    Objects,
    Relevance,
    Request,
    RopeSettings,
    TowerRequest,
    WordEmbeddings,
)
from ivc_jax.model import Model
from ivc_jax.nn import decoder, tower
from ivc_jax.nn.tower import Deep
from ivc_jax.parallel.batch import align_rows, fetch, gather_cells, place_inputs
from ivc_jax.parallel.constraints import constrain, constrain_hidden, on_mesh
from ivc_jax.types import Inputs, KVSpan, Selection

_log = logging.getLogger(__name__)


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
    rope: RopeConfig = flax.struct.field(pytree_node=False)  # that turned the keys in the cache

    @cached_property
    def kept(self) -> list[np.ndarray]:
        """Ascending positions in each sample's unpadded prompt that survive the last stage."""
        origin, lengths = fetch((self.origin, self.lengths))
        # a picture that got more tokens than it had uses up slots of others, behind its own text
        return [np.sort(row[:length]) for row, length in zip(origin, lengths, strict=True)]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache arrays of the whole batch."""
        return sum(span.nbytes for span in self.cache)

    def __repr__(self) -> str:
        if not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self)):
            return "Prefill(of no arrays)"
        spans = ", ".join(f"{s.keys.shape[0]} x {s.keys.shape[2]}" for s in self.cache)
        return (
            f"Prefill({len(self.logits)} samples, vocabulary {self.logits.shape[1]}, cache of"
            f" {self.kv_bytes / 1e6:.3g} MB {self.cache[0].keys.dtype}, blocks x slots: {spans})"
        )

    @property
    def cached_share(self) -> np.ndarray:
        """Mean over layers of the share of visual tokens in the cache: float64 [B], 1 without."""
        lengths = np.stack([np.asarray(span.lengths) for span in self.cache], axis=1)  # [B, spans]
        # [spans], blocks of each: a long span weighs more
        layers = [span.keys.shape[0] for span in self.cache]
        visual = np.average(lengths, axis=1, weights=layers) - np.asarray(self.text_count)  # [B]
        count = np.asarray(self.visual_count)  # [B]
        return np.where(count > 0, visual / np.maximum(count, 1), 1.0)


def prefill(model: Model, batch: Batch | Inputs, method: Method | str = DENSE) -> Prefill:
    """Run the prompt through the model, pruning as `method` says.

    Args:
        batch: prompts as the processor returns them, or already collated inputs.
        method: itself, or its specification as `ivc_jax.methods.parse` reads it; the default
            prunes nothing.

    Returns:
        Last-token logits, the shortened cache and what was kept.

    Raises:
        MethodError: an unknown method, or one that does not fit the model.
        InputError: prompts and images do not match, or a prompt is too long.
    """
    method = find_method(method).resolve(model.config)
    make_plan(model.config.decoder.num_layers, method)  # complain before any device work
    inputs = place(model, batch)
    if inputs.visual_source.shape[1]:
        method.check(inputs.layout)
    params = with_modules(model, method)
    with on_mesh(model.mesh):
        return run_prefill(model.config, method, params, inputs)


def encode(model: Model, batch: Batch | Inputs) -> Inputs:
    """Run the vision tower once for all prefills of this model on the same prompts.

    `prefill` takes what this returns and runs the tower only for what a method asks it.

    Args:
        batch: as for `prefill`. Visual tokens that inputs hold already are computed anew.

    Returns:
        Collated inputs on the devices of the model, with `visual` (and `deepstack`, if the model
        has such features) filled in if there are visual slots.

    Raises:
        InputError: as `prefill`.
    """
    # What was encoded before is forgotten. Placed at once: many prefills will read it.
    inputs = place_inputs(place(model, batch), model.mesh).replace(visual=None, deepstack=None)
    if inputs.visual_source.shape[1] == 0:
        return inputs
    with on_mesh(model.mesh):
        visual, features = run_tower(model.config, model.params, inputs)
    return place_inputs(inputs.replace(visual=visual, deepstack=features), model.mesh)


def with_rope(config: ModelConfig, rope: RopeConfig) -> ModelConfig:
    """Return the same model with another rotary embedding of its decoder."""
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, rope=rope))


def count_programs() -> int:
    """Count the prefill programs compiled so far in this process."""
    return run_prefill._cache_size()


def place(model: Model, batch: Batch | Inputs) -> Inputs:
    """Collate a batch, unless it is, and put it on the mesh of the model.

    Without a mesh it stays where it is: a compiled function takes NumPy arrays along, the 16 of a
    batch in 0.1 ms, where `jax.device_put` takes 0.8.
    """
    inputs = collate(batch, model.config) if isinstance(batch, Batch) else batch
    if model.mesh is None:
        return inputs
    aligned = align_rows(inputs, model.mesh, model.config.vision.merge_area)
    return place_inputs(aligned, model.mesh)


@partial(jax.jit, static_argnums=0)
def run_tower(
    config: ModelConfig, params: dict[str, Any], inputs: Inputs
) -> tuple[jax.Array, jax.Array | None]:
    """Compiled body of `encode`: visual tokens [B, V, D], features [J, B, V, D]."""
    return _encode(config, params, inputs, ())[:2]


@partial(jax.jit, static_argnums=(0, 1))
def run_prefill(
    config: ModelConfig, method: Method, params: dict[str, Any], inputs: Inputs
) -> Prefill:
    """Compiled body of `prefill`; `method` is resolved, `inputs` are collated."""
    return trace_prefill(config, method, params, inputs)[0]


def trace_prefill(
    config: ModelConfig, method: Method, params: dict[str, Any], inputs: Inputs
) -> tuple[Prefill, dict[Request, Any], jax.Array]:
    """Trace a prefill.

    Returns:
        It, the last signals that the method was given, and what the last block makes of the last
        valid token, [B, D].
    """
    layout, rope = inputs.layout, method.rope(config.decoder.rope)
    # Without a single image in the bucket there is nothing to cut.
    method = method if inputs.visual_source.shape[1] else DENSE
    # A dict for a set that stays in order: equal methods must trace equal programs.
    asked = dict.fromkeys(r for stage in method.stages for r in method.requests(stage))
    hidden, features, signals = embed_inputs(config, params, inputs, list(asked))
    signals |= answer_modules(params, asked)
    slots = jnp.broadcast_to(jnp.arange(inputs.tokens.shape[1]), inputs.tokens.shape)  # [B, N]
    # Methods are told of the model's own embedding, the blocks turn by that of the method.
    project = partial(tower.project, config.vision, params.get("vision"))
    walk = Walk(with_rope(config, rope), method, params["decoder"], inputs, signals, project)
    origin = slots.astype(jnp.int32)
    sequence = walk.run(Sequence(constrain_hidden(hidden), layout, origin, features))
    last = (sequence.layout.lengths - 1)[:, None, None]  # [B, 1, 1], slot of the last valid token
    hidden = jnp.take_along_axis(sequence.hidden, last, axis=1)[:, 0]  # [B, D]
    prompt = Prefill(
        logits=decoder.logits(config.decoder, params["decoder"], hidden),  # [B, vocab]
        cache=tuple(walk.cache),
        selection=walk.selection,
        next_position=inputs.next_position,
        origin=sequence.origin,
        lengths=sequence.layout.lengths,
        text_count=layout.lengths - layout.visual_count,
        visual_count=layout.visual_count,
        visual_computed=jnp.stack(walk.computed, axis=1),  # [B, L]
        rope=rope,
    )
    return prompt, walk.signals, hidden


def embed_inputs(
    config: ModelConfig, params: dict[str, Any], inputs: Inputs, asked: Several[Request] = ()
) -> tuple[jax.Array, jax.Array | None, dict[Request, Any]]:
    """Embed text and put the tower's tokens into their slots.

    Returns:
        Hidden states [B, N, D], features [J, B, V, D] that the first blocks add to visual tokens,
        and the answers to what is asked about tower and embeddings.
    """
    hidden = decoder.embed(params["decoder"], inputs.tokens)  # [B, N, D]
    signals: dict[Request, Any] = {RopeSettings(): config.decoder.rope, Carry(): None}
    if inputs.visual_source.shape[1] == 0:
        return hidden, None, signals
    visual, features, seen = _encode(config, params, inputs, asked)  # [B, V, D], [J, B, V, D]
    signals |= seen
    signals |= _answer_batch(inputs, asked)
    B, N = inputs.tokens.shape
    # [B, V]; padding is sent to slot N, which `drop` discards.
    slot = jnp.where(inputs.layout.visual_valid, inputs.layout.visual_index, N)
    rows = jnp.arange(B)[:, None]  # [B, 1]
    hidden = hidden.at[rows, slot].set(visual.astype(hidden.dtype), mode="drop")
    if Embeddings() in asked:
        signals[Embeddings()] = split(inputs.layout, hidden)
    signals[WordEmbeddings()] = params["decoder"]["embed_tokens"]["embedding"]  # [vocab, D]
    return hidden, features, signals


def _answer_batch(inputs: Inputs, asked: Several[Request]) -> dict[Request, jax.Array]:
    """Answer what is asked about the batch itself: [B, V] each."""
    answers: dict[Request, jax.Array] = {}
    if Objects() in asked:
        if inputs.objects is None:
            raise MethodError(
                "this method spares tokens that hold an object, and the batch does not say where"
                " objects are: call the processor with objects=[[boxes of each image], ...]"
            )
        answers[Objects()] = inputs.objects
    if Relevance() in asked:
        answers[Relevance()] = inputs.relevance
        if inputs.relevance is None:
            # while a program is traced, so once for each
            _log.warning(
                "the batch does not say how relevant its frames are: all count alike; rate them by"
                " ivc_jax.rate_frames and call the processor with relevance=..."
            )
            answers[Relevance()] = jnp.zeros(inputs.visual_source.shape, jnp.float32)
    if Learned() in asked:
        answers[Learned()] = inputs.layout.visual_valid & (inputs.visual_source < 0)
    return answers


def _encode(
    config: ModelConfig, params: dict[str, Any], inputs: Inputs, asked: Several[Request]
) -> tuple[jax.Array, jax.Array | None, dict[Request, Any]]:
    """Return visual tokens [B, V, D], features [J, B, V, D] and what is asked about the tower.

    The tower is traced if something needs it; blocks whose outputs nobody reads are not compiled.
    """
    requests = [request for request in asked if isinstance(request, TowerRequest)]
    taps = dict.fromkeys(tap for r in requests if (tap := choose_tap(r, config.vision)))
    visual, features, tapped = inputs.visual, inputs.deepstack, {}
    deep = list(map(Deep, range(len(config.vision.deepstack)))) if visual is None else []
    if visual is None or taps:
        with jax.named_scope("vision_tower"):
            # [R, P, patch values]
            patches = inputs.patches.astype(params["decoder"]["embed_tokens"]["embedding"].dtype)
            merged, tapped = tower.encode(
                config.vision, params["vision"], patches, inputs.patch_positions, (*taps, *deep)
            )
        if visual is None:
            visual = gather_cells(merged, inputs.visual_source)
            visual = tower.place_learned(
                config.vision, params["vision"], visual, inputs.visual_source
            )
        if deep:
            features = [gather_cells(tapped[each], inputs.visual_source) for each in deep]
            features = constrain(jnp.stack(features), None, "data")  # [J, B, V, D]
    return visual, features, answer_tower(requests, inputs, tapped, config.vision)
