"""Value vectors and attention for the tests of methods with one cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.drawn import lay_out
from ivc_jax.methods.requests import AttentionRows, Objects, RopeSettings, TokenVectors, Values
from ivc_jax.methods.testing import ROPE, listed
from ivc_jax.types import Layout, Selection

G, C = 2, 4


def token_values(sample, seed) -> np.ndarray:
    """Draw value vectors of every token of a sample: [slots, G, C]."""
    length = len(lay_out(sample)["positions"])
    return np.random.default_rng(seed).normal(size=(length, G, C)).astype(np.float32)


def gather_values(layout: Layout, values=()) -> TokenVectors:
    """Split value vectors by the layout; padding slots hold nines."""
    table = np.full((len(layout.lengths), layout.positions.shape[2], G, C), 9, np.float32)
    for target, source in zip(table, values, strict=False):
        target[: len(source)] = source
    rows = np.arange(len(table))[:, None]
    return TokenVectors(
        jnp.asarray(table[rows, layout.visual_index]), jnp.asarray(table[rows, layout.text_index])
    )


def draw_attention(layout: Layout) -> jax.Array:
    """Draw attention [B, H, 1, V] as a function of head and slot alone."""
    table = np.random.default_rng(7).random((3, 1024), np.float32)
    return jnp.asarray(np.moveaxis(table[:, layout.visual_index], 0, 1)[:, :, None])


# These programs run once: compiling them well would cost more than it saves.
@partial(
    jax.jit,
    static_argnums=(0, 1, 2),
    compiler_options={"xla_backend_optimization_level": 0},
)
def run_select(
    method: Method,
    stage: Stage,
    num_keep: int,
    layout: Layout,
    values: TokenVectors,
    attention: jax.Array,
    objects: jax.Array,
) -> Selection:
    """Call `select` with every signal that a method here may ask for."""
    signals = {
        RopeSettings(): ROPE,
        Values(stage.layer - 1): values,
        AttentionRows(stage.layer - 1): attention,
        Objects(): objects,
    }
    return method.select(signals, layout, stage, num_keep)


def kept_sets(
    method, layout, values=(), attention=None, num_keep=None, objects=None
) -> list[list[int]]:
    """Run the only stage of a method with its own capacity; check the form of the selection."""
    (stage,) = method.stages
    V = layout.visual_index.shape[1]
    K = num_keep or method.capacity(stage, V, layout.num_images)
    assert K <= V
    attention = draw_attention(layout) if attention is None else attention
    objects = jnp.zeros_like(layout.visual_valid) if objects is None else objects
    values = gather_values(layout, values)
    chosen = run_select(method, stage, K, layout, values, attention, objects)
    assert chosen.index.shape == chosen.valid.shape == (len(layout.lengths), K)
    return listed(chosen)
