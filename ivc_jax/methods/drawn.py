"""Prompts laid out by hand and signals drawn at random: what methods are tested on.

(3, (2, 2), 1)      text, an image of 2 x 2 tokens, text
slot      0   1   2   3   4   5   6   7
token     t   t   t   i   i   i   i   t
"""

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.methods import requests as asks
from ivc_jax.types import Layout

Sample = Sequence[int | tuple[int, ...]]  # text (its token count), images, videos (with frames)

_H, _G, _C, _D, _E = 3, 2, 4, 6, 5  # query heads, key heads, head width, decoder and tower width
_MOST = 400  # visual tokens of a sample, whose attention is cut to the bucket
_WORDS = 20  # of a vocabulary
_LONGEST = 64  # text of a sample whose attention is asked for


def make_layout(
    samples: Sequence[Sample],
    text_slots: int = 0,
    visual_slots: int = 0,
    num_images: int = 0,
    num_positions: int = 64,
) -> Layout:
    """Lay out samples by Qwen2-VL's rules; sizes of the bucket are at least those given.

    Args:
        samples: each alternates text (its token count), images (rows, columns) and videos (frames,
            rows, columns).
    """
    rows = [lay_out(sample) for sample in samples]
    T = max(text_slots, *(len(row["text"]) for row in rows))
    V = max(visual_slots, *(len(row["image"]) for row in rows))

    def stack(name: str, width: int, padding: int) -> jax.Array:
        cell = (3,) if name in ("grid", "positions") else ()
        table = np.full((len(rows), width, *cell), padding, np.int32)
        for target, row in zip(table, rows, strict=True):
            target[: len(row[name])] = np.array(row[name], np.int32).reshape(-1, *cell)
        return jnp.asarray(table)

    valid = stack("image", V, -1) >= 0  # [B, V]
    return Layout(
        visual_index=stack("visual", V, 0),
        visual_valid=valid,
        visual_origin=stack("origin", V, 0),
        image_id=stack("image", V, -1),
        grid=stack("grid", V, -1),
        content=valid,
        tiles=jnp.repeat(valid[..., None], 2, axis=-1).astype(jnp.int32),
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


def lay_out(sample: Sample) -> dict[str, list]:
    """List slots, image numbers, cells, counts and positions of one sample, unpadded."""
    names = ("visual", "origin", "image", "grid", "count", "text", "positions")
    row: dict[str, list] = {name: [] for name in names}
    position = images = slot = 0
    for part in sample:
        if isinstance(part, int):
            row["text"] += range(slot, slot + part)
            row["positions"] += [[position + i] * 3 for i in range(part)]
            position, slot = position + part, slot + part
            continue
        frames = part if len(part) == 3 else (1, *part)
        cells = np.stack(np.unravel_index(np.arange(np.prod(part)), frames), axis=1)  # [n, 3]
        row["origin"] += range(len(row["visual"]), len(row["visual"]) + len(cells))
        row["visual"] += range(slot, slot + len(cells))
        row["image"] += [images] * len(cells)
        row["grid"] += cells.tolist()
        row["count"] += [len(cells)] * len(cells)
        row["positions"] += (cells + position).tolist()
        position, slot, images = position + max(part), slot + len(cells), images + 1
    return row


def draw_signals(
    requests: Iterable[asks.Request],
    layout: Layout,
    unpruned: Layout,
    carry: Any = None,
    padding: float = np.nan,
    spoilt: int | None = None,
    kinds: int | None = None,
) -> dict[asks.Request, Any]:
    """Draw one signal for each request, as the engine would give it at this cut.

    What is drawn for a token depends on its sample, told by its sizes, and on the request: not on
    batch mates, padding or what earlier cuts have dropped. `RopeSettings` is left out.

    Args:
        layout: of the current sequence.
        unpruned: the layout before any cut.
        carry: what the cut before has left.
        padding: what padding holds, where the request does not say that it is zero.
        spoilt: a visual token of every sample, by its place in the unpruned prompt, of which all
            signals are NaN.
        kinds: visual tokens of a sample are of so many kinds, alike in all signals; 1 is a blank
            picture. None draws every token anew.
    """
    signals: dict[asks.Request, Any] = {}
    for request in requests:
        if isinstance(request, asks.Carry):
            signals[request] = carry
        elif not isinstance(request, asks.RopeSettings):
            draw = _Draw(request, layout, unpruned, padding, spoilt, kinds)
            signals[request] = draw.answer()
    return signals


@dataclasses.dataclass(frozen=True, eq=False)
class _Draw:
    """One signal; the fields are the arguments of `draw_signals`."""

    request: asks.Request
    layout: Layout
    unpruned: Layout
    padding: float
    spoilt: int | None
    kinds: int | None

    @property
    def seed(self) -> int:
        """Of this request, in every run alike."""
        return zlib.crc32(repr(self.request).encode())

    def answer(self) -> Any:
        """Draw what the request asks for."""
        layout, unpruned = self.layout, self.unpruned
        match self.request:
            case asks.Objects():
                return self.visual(unpruned) > 1  # of about a quarter of the tokens
            case asks.Relevance():
                return self.of_frames()
            case asks.Learned():
                return jnp.zeros_like(unpruned.visual_valid)
            case asks.Values() | asks.RawValues() | asks.Keys():
                return self.vectors(layout, _G, _C)
            case asks.Hidden():
                return self.vectors(layout, _D)
            case asks.Embeddings():
                return self.vectors(unpruned, _D)
            case asks.WordEmbeddings():
                return self.words()
            case asks.AttentionRows(queries="text"):
                return self.rows(layout.text_valid)
            case asks.AttentionRows(count=count):
                return self.rows(np.ones((len(layout.lengths), count), bool))  # the last ones
            case asks.AttentionReceived():
                return self.visual(layout) ** 2
            case asks.TowerAttention():
                return self.tower_attention()
            case asks.TowerKeys() | asks.TowerFeatures() | asks.ClassFeatures():
                return self.visual(unpruned, _E)
            case asks.PixelEntropy():
                return abs(self.visual(unpruned))
            case asks.Weights():
                return DrawnParameters(self.seed)
        raise NotImplementedError(f"nothing is drawn for {self.request}")

    def generator(self, row: int, *more: int) -> np.random.Generator:
        """Make the generator of a sample, which is told by its sizes before any cut."""
        sizes = np.asarray(self.unpruned.visual_count)[row], np.asarray(self.unpruned.lengths)[row]
        return np.random.default_rng([self.seed, *map(int, sizes), *more])

    def visual(self, layout: Layout, *shape: int) -> jax.Array:
        """Draw vectors of the visual tokens of a layout: [B, V, ...]."""
        origin, valid = np.asarray(layout.visual_origin), np.asarray(layout.visual_valid)
        table = np.full((*origin.shape, *shape), self.padding, np.float32)
        for row, count in enumerate(np.asarray(layout.visual_count)):
            drawn = self.generator(row).normal(size=(count, *shape)) + 0.3
            if self.kinds is not None and count:
                # Which kind a token is of, does not depend on the request.
                drawn = drawn[np.random.default_rng(count).integers(self.kinds, size=count) % count]
            if self.spoilt is not None:
                drawn[self.spoilt] = np.nan
            table[row, valid[row]] = drawn[origin[row, valid[row]]]
        return jnp.asarray(table)

    def of_frames(self) -> jax.Array:
        """Draw a number in [0, 1] for each image, and each frame of a video: [B, V]."""
        drawn, layout = np.asarray(self.visual(self.unpruned)), self.unpruned
        frames = np.asarray(layout.image_id) * 1000 + np.asarray(layout.grid)[..., 0]  # [B, V]
        if not drawn.size:
            return jnp.asarray(drawn)
        first = (frames[:, :, None] == frames[:, None]).argmax(axis=2)  # [B, V], token of its frame
        return jnp.asarray(np.take_along_axis(1 / (1 + np.exp(-3 * drawn)), first, axis=1))

    def text(self, *shape: int) -> jax.Array:
        """Draw vectors of the text: [B, T, ...]."""
        valid = np.asarray(self.layout.text_valid)
        table = np.full((*valid.shape, *shape), self.padding, np.float32)
        for row, count in enumerate(valid.sum(axis=1)):
            table[row, :count] = self.generator(row, 1).normal(size=(count, *shape)) + 0.3
        return jnp.asarray(table)

    def vectors(self, layout: Layout, *shape: int) -> asks.TokenVectors:
        return asks.TokenVectors(self.visual(layout, *shape), self.text(*shape))

    def words(self) -> jax.Array:
        """Draw the embeddings of a vocabulary, alike for all samples: [W, D]."""
        drawn = np.random.default_rng(self.seed).normal(size=(_WORDS, _D))
        return jnp.asarray(drawn, jnp.float32)

    def rows(self, queries: Any) -> jax.Array:
        """Draw attention [B, H, Q, V]; rows of padding are zero."""
        valid = np.asarray(queries)  # [B, Q]
        of_token = np.moveaxis(np.asarray(self.visual(self.layout, _H, _LONGEST)) ** 2, 1, -1)
        rows = of_token[:, :, : valid.shape[1]]
        return jnp.asarray(np.where(valid[:, None, :, None], rows, 0.0))

    def tower_attention(self) -> "FixedAttention":
        """Draw what each token gives each of its sample; nothing comes from padding."""
        columns = np.asarray(self.visual(self.unpruned, _MOST)) ** 2  # [B, key, query]
        matrix = np.moveaxis(columns, 1, 2)[:, : columns.shape[1]]
        asked = np.asarray(self.unpruned.visual_valid)[..., None]
        return FixedAttention(jnp.asarray(np.where(asked, matrix, 0.0)), self.unpruned)


@flax.struct.dataclass
class DrawnParameters(asks.Parameters):
    """The signal of `Weights`: whatever is asked for, drawn at random; nothing is said of it.

    Matrices are scaled so that they leave the size of vectors as it is.
    """

    seed: int = flax.struct.field(pytree_node=False)

    @property
    def settings(self) -> dict:
        """Nothing: the method's own fields tell the sizes."""
        return {}

    def __call__(self, like: Any) -> Any:
        """Draw parameters as a tree like this one."""
        leaves, structure = jax.tree.flatten(like)
        random = np.random.default_rng(self.seed)
        drawn = [
            random.normal(size=leaf.shape) * np.sqrt(leaf.shape[0] if leaf.ndim > 1 else 1.0) ** -1
            for leaf in leaves
        ]
        return jax.tree.unflatten(structure, [jnp.asarray(x, jnp.float32) for x in drawn])


@flax.struct.dataclass
class FixedAttention(asks.Received):
    """The signal of `TowerAttention`, given as a matrix a sample [B, V, V], queries first.

    Like the tower's, it stays within an image or a frame of a video.
    """

    matrix: jax.Array
    layout: Layout

    def __call__(self, weights: jax.Array | None = None) -> jax.Array:
        """Return the attention that tokens receive, averaged over queries: float32 [B, V]."""
        valid = self.layout.visual_valid
        weights = jnp.where(valid, 1.0 if weights is None else weights, 0.0)  # [B, V]
        row = self.layout.image_id * 1000 + self.layout.grid[..., 0]  # [B, V]
        same = row[:, :, None] == row[:, None]  # [B, V, V]
        weights = jnp.where(same & valid[:, None], weights[:, :, None], 0.0)  # [B, query, key]
        total = weights.sum(axis=1)  # [B, V]
        return (self.matrix * weights).sum(axis=1) / jnp.where(total > 0, total, 1.0)
