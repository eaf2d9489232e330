"""Hand-made layouts and signals for the tests of methods."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import RopeConfig
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.requests import AttentionRows, Received, RopeSettings, TokenVectors, Values
from ivc_jax.types import Layout, Selection

ROPE = RopeConfig(16, 1e4, (2, 3, 3))
G, C = 2, 4


def make_layout(samples, text_slots=0, visual_slots=0, num_images=0, num_positions=64) -> Layout:
    """Lay out samples by Qwen2-VL's rules; sizes of the bucket are at least those given.

    A sample alternates text (its token count), images (rows, columns) and videos (with frames).
    """
    rows = [lay_out(sample) for sample in samples]
    T = max(text_slots, *(len(row["text"]) for row in rows))
    V = max(visual_slots, *(len(row["image"]) for row in rows))

    def stack(name, width, padding):
        cell = (3,) if name in ("grid", "positions") else ()
        table = np.full((len(rows), width, *cell), padding, np.int32)
        for target, row in zip(table, rows, strict=True):
            target[: len(row[name])] = np.array(row[name], np.int32).reshape(-1, *cell)
        return jnp.asarray(table)

    return Layout(
        visual_index=stack("visual", V, 0),
        visual_valid=stack("image", V, -1) >= 0,
        visual_origin=stack("origin", V, 0),
        image_id=stack("image", V, -1),
        grid=stack("grid", V, -1),
        image_count=stack("count", V, 0),
        visual_count=jnp.array([len(row["image"]) for row in rows], jnp.int32),
        text_index=stack("text", T, 0),
        text_valid=stack("text", T, -1) >= 0,
        positions=jnp.moveaxis(stack("positions", T + V, 0), -1, 0),
        lengths=jnp.array([len(row["positions"]) for row in rows], jnp.int32),
        num_images=max(num_images, *(max([-1, *row["image"]]) + 1 for row in rows)),
        visual_slots=V,
        num_positions=num_positions,
    )


def lay_out(sample) -> dict[str, list]:
    """List slots, image numbers, cells, counts and positions of one sample, unpadded."""
    names = ("visual", "origin", "image", "grid", "count", "text", "positions")
    row = {name: [] for name in names}
    position = images = slot = 0
    for part in sample:
        if isinstance(part, int):
            row["text"] += range(slot, slot + part)
            row["positions"] += [[position + i] * 3 for i in range(part)]
            position, slot = position + part, slot + part
            continue
        frames = part if len(part) == 3 else (1, *part)
        cells = np.stack(np.unravel_index(np.arange(np.prod(part)), frames), axis=1)
        row["origin"] += range(len(row["visual"]), len(row["visual"]) + len(cells))
        row["visual"] += range(slot, slot + len(cells))
        row["image"] += [images] * len(cells)
        row["grid"] += cells.tolist()
        row["count"] += [len(cells)] * len(cells)
        row["positions"] += (cells + position).tolist()
        position, slot, images = position + max(part), slot + len(cells), images + 1
    return row


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
) -> Selection:
    """Call `select` with every signal that a method here may ask for."""
    signals = {
        RopeSettings(): ROPE,
        Values(stage.layer - 1): values,
        AttentionRows(stage.layer - 1): attention,
    }
    return method.select(signals, layout, stage, num_keep)


def kept_sets(method, layout, values=(), attention=None, num_keep=None) -> list[list[int]]:
    """Run the only stage of a method with its own capacity; check the form of the selection."""
    (stage,) = method.stages
    V = layout.visual_index.shape[1]
    K = num_keep or method.capacity(stage, V, layout.num_images)
    assert K <= V
    attention = draw_attention(layout) if attention is None else attention
    chosen = run_select(method, stage, K, layout, gather_values(layout, values), attention)
    assert chosen.index.shape == chosen.valid.shape == (len(layout.lengths), K)
    return listed(chosen)


def listed(chosen: Selection) -> list[list[int]]:
    """List the kept tokens of each sample; check the form of the selection."""
    sets = []
    for index, valid in zip(np.asarray(chosen.index), np.asarray(chosen.valid), strict=True):
        count = valid.sum()
        assert valid[:count].all()
        assert (np.diff(index[:count]) > 0).all()
        assert (index[count:] == 0).all()
        sets.append(index[:count].tolist())
    return sets


def shorten(layout: Layout, chosen: Selection) -> Layout:
    """Drop tokens from visual space; the sequence itself stays as it is."""

    def take(field, padding):
        kept = jnp.take_along_axis(getattr(layout, field), chosen.index, axis=1)
        return jnp.where(chosen.valid, kept, padding)

    return layout.replace(
        visual_index=take("visual_index", 0),
        visual_valid=chosen.valid,
        visual_origin=take("visual_origin", 0),
        image_id=take("image_id", -1),
        image_count=take("image_count", 0),
        grid=jnp.take_along_axis(layout.grid, chosen.index[..., None], axis=1),
    )


@flax.struct.dataclass
class FixedAttention(Received):
    """The signal of `TowerAttention`, given as a matrix a sample [B, V, V], queries first.

    Like the tower's, it stays within an image or a frame of a video.
    """

    matrix: jax.Array
    layout: Layout

    def __call__(self, weights=None):
        valid = self.layout.visual_valid
        weights = jnp.where(valid, 1.0 if weights is None else weights, 0.0)
        row = self.layout.image_id * 1000 + self.layout.grid[..., 0]
        same = row[:, :, None] == row[:, None]
        weights = jnp.where(same & valid[:, None], weights[:, :, None], 0.0)  # [B, query, key]
        total = weights.sum(axis=1)
        return (self.matrix * weights).sum(axis=1) / jnp.where(total > 0, total, 1.0)


def run_stage(method, layout, signals, number=0, num_keep=None) -> Selection:
    """Run one cut of a resolved method, compiled, with signals given by request.

    Args:
        number: which of the cuts.
        num_keep: by default the method's own capacity.
    """
    stage = method.stages[number]
    V = layout.visual_index.shape[1]
    capacity = min(V, method.capacity(stage, layout.visual_slots, layout.num_images))
    wanted = set(method.requests(stage)) - {RopeSettings()}
    assert wanted <= set(signals), f"no signal for {wanted - set(signals)}"
    chosen = _run_stage(
        method, stage, num_keep or capacity, tuple(signals), layout, list(signals.values())
    )
    assert chosen.index.shape == chosen.valid.shape == (len(layout.lengths), num_keep or capacity)
    return chosen


@partial(
    jax.jit,
    static_argnums=(0, 1, 2, 3),
    compiler_options={"xla_backend_optimization_level": 0},
)
def _run_stage(method, stage, num_keep, requests, layout, values):
    signals = dict(zip(requests, values, strict=True)) | {RopeSettings(): ROPE}
    return method.select(signals, layout, stage, num_keep)
