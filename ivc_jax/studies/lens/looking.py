"""Pictures through the undisturbed model: what each visual token is like, block by block."""

import dataclasses
import itertools
from collections.abc import Iterable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.engine.compact import Sequence, add_feature
from ivc_jax.engine.decoder_signals import answer_layer, split
from ivc_jax.engine.prefill import embed_inputs, place
from ivc_jax.methods.requests import AttentionRows, TowerFeatures
from ivc_jax.methods.words import probe
from ivc_jax.model import Model
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.blocks import take_block
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.types import Inputs

_BY_LAYER = ("ids", "norms", "steps", "attention")
WORDS = 3  # nearest words of a token, as the released code looks at them


@flax.struct.dataclass
class Looked:
    """What a batch shows, in visual space; padding holds anything."""

    entering: jax.Array  # [B, V, D] float32, the visual tokens as they enter the decoder
    ids: jax.Array  # [L + 1, B, V, 3], nearest words of what enters each block, and leaves the last
    norms: jax.Array  # [L + 1, B, V], lengths of the same
    steps: jax.Array  # [L, B, V], cosine of what enters a block and what leaves it
    attention: jax.Array  # [L, B, V], from the last token of the prompt, mean over heads
    tower: jax.Array | None  # [B, V], length before the projector, None of a tower without blocks


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The visual tokens of many pictures, one after the other; n in all.

    Attributes:
        entering: [n, D] float32.
        ids: [L + 1, n, 3].
        norms: [L + 1, n].
        steps: [L, n].
        attention: [L, n].
        tower: [n], or None.
        image: [n], which picture.
        grid: [n, 3], frame, row and column.
    """

    entering: np.ndarray
    ids: np.ndarray
    norms: np.ndarray
    steps: np.ndarray
    attention: np.ndarray
    tower: np.ndarray | None
    image: np.ndarray
    grid: np.ndarray

    @property
    def num_images(self) -> int:
        """How many pictures there are."""
        return int(self.image.max(initial=-1)) + 1


def look(model: Model, batches: Iterable[Inputs]) -> Tokens:
    """Run collated batches, one picture a sample, and gather their visual tokens.

    All of them are held: V (D + 6 L) numbers a picture, 9.9 MB with LLaVA-1.5-7B.
    """
    parts: list[dict[str, np.ndarray | None]] = []
    images = 0
    for inputs in batches:
        inputs = place(model, inputs)
        with on_mesh(model.mesh):
            seen = jax.device_get(_look(model.config, model.params, inputs))
        valid = np.asarray(inputs.layout.visual_valid)  # [B, V]
        row = np.broadcast_to(np.arange(len(valid))[:, None], valid.shape)
        parts.append({
            "entering": seen.entering[valid],
            **{name: getattr(seen, name)[:, valid] for name in _BY_LAYER},
            "tower": None if seen.tower is None else seen.tower[valid],
            "image": images + row[valid],
            "grid": np.asarray(inputs.layout.grid)[valid],
        })  # fmt: skip
        images += len(valid)
    joined = {
        name: None if values[0] is None else np.concatenate(values, axis=int(name in _BY_LAYER))
        for name in parts[0]
        if (values := [part[name] for part in parts])
    }
    return Tokens(**joined)


@partial(jax.jit, static_argnums=0)
def _look(config: ModelConfig, params: dict[str, Any], inputs: Inputs) -> Looked:
    asked = [TowerFeatures()] if config.vision.depth else []
    hidden, features, signals = embed_inputs(config, params, inputs, asked)
    layout, own = inputs.layout, params["decoder"]
    table = own["embed_tokens"]["embedding"]
    sequence = Sequence(hidden, layout, jnp.zeros(inputs.tokens.shape, jnp.int32), features)
    angles = rope.angles(config.decoder.rope, layout.positions)
    visual = [split(layout, hidden).visual.astype(jnp.float32)]  # L + 1 arrays [B, V, D]
    attention = []
    for layer in range(config.decoder.num_layers):
        hidden, vectors = decoder.run_layer(
            *(config.decoder, take_block(own["layers"], layer), sequence.hidden, angles),
            partial(_attend, lengths=layout.lengths),
        )
        sequence = sequence.replace(hidden=hidden)
        if sequence.features is not None:
            sequence = add_feature(sequence)
        asked = AttentionRows(layer)
        rows = answer_layer([asked], layout, *vectors)[asked]  # [B, H, 1, V]
        attention.append(rows.mean(axis=1)[:, 0])
        visual.append(split(layout, sequence.hidden).visual.astype(jnp.float32))
    tower = signals.get(TowerFeatures())
    return Looked(
        visual[0],
        jnp.stack([probe(each, table, WORDS).ids for each in visual]),
        jnp.stack([jnp.linalg.norm(each, axis=-1) for each in visual]),
        jnp.stack([_compare(*pair) for pair in itertools.pairwise(visual)]),
        jnp.stack(attention),
        None if tower is None else jnp.linalg.norm(tower, axis=-1),
    )


def _attend(*vectors: jax.Array, lengths: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Attend as the model does; hand on queries, keys and values."""
    return decoder.attend_whole(*vectors, lengths=lengths)[0], vectors[:3]


def _compare(before: jax.Array, after: jax.Array) -> jax.Array:
    """Return cosines [B, V] of vectors [B, V, D]."""
    lengths = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
    return (before * after).sum(axis=-1) / jnp.maximum(lengths, 1e-12)
