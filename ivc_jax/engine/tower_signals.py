"""What the vision tower can tell a method, in the visual space of the unpruned prompt.

The tower works on rows of patches; the patches of a merged token lie next to each other, and
`visual_source` says which merged cell is which visual token:

    patches     a a a a  b b b b  c c c c  - - - -        a row, -: padding
    cells          0        1        2        3
    visual_source  [0, 2, 1]                              tokens a, c, b (a tower with windows)
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import VisionConfig
from ivc_jax.methods.base import MethodError
from ivc_jax.methods.requests import (
    ClassFeatures,
    PixelEntropy,
    Received,
    Request,
    TowerAttention,
    TowerFeatures,
    TowerKeys,
    TowerRequest,
)
from ivc_jax.nn.attention import attention_received, attention_rows
from ivc_jax.nn.tower import Features, Projections, Tap, drop_class
from ivc_jax.parallel.batch import gather_cells
from ivc_jax.types import Inputs

_GREY_LEVELS = 256  # of 8-bit pixels


def choose_tap(request: TowerRequest, vision: VisionConfig) -> Tap | None:
    """Say what of the tower a request needs; None is nothing but the pixels.

    Raises:
        MethodError: a block that the tower does not have, or one without attention over the
            whole image.
    """
    if isinstance(request, PixelEntropy):
        return None
    if vision.depth == 0:
        raise MethodError(f"the vision tower has no blocks: it cannot answer {request}")
    if isinstance(request, TowerFeatures):
        first, last = _find_block(request.first, vision), _find_block(request.last, vision)
        if first > last:
            raise MethodError(f"{request} asks for no block of the tower's {vision.depth}")
        return Features(first, last, request.merged)
    if isinstance(request, ClassFeatures):
        if not vision.class_token:
            raise MethodError(f"the vision tower has no class token: it cannot answer {request}")
        block = _find_block(request.block, vision)
        return Features(block, block, of_class=True)
    # blocks that see the whole image
    full = vision.full_attention_blocks if vision.window_size else range(vision.depth)
    if request.block is None:
        return Projections(max(full, default=vision.depth - 1))
    block = _find_block(request.block, vision)
    if isinstance(request, TowerAttention) and block not in full:
        raise MethodError(
            f"block {block} of the tower attends within windows; choose one of {tuple(full)}"
        )
    return Projections(block)


def _find_block(block: int, vision: VisionConfig) -> int:
    """Count a block from the front; -1 is the last."""
    if not -vision.depth <= block < vision.depth:
        raise MethodError(f"the vision tower has blocks 0 to {vision.depth - 1}, asked for {block}")
    return block % vision.depth


def answer_tower(
    requests: Iterable[TowerRequest], inputs: Inputs, tapped: dict[Tap, Any], vision: VisionConfig
) -> dict[Request, Any]:
    """Turn what was tapped into signals."""
    cells = _Cells(inputs, vision.merge_area, vision.cuts_cells)
    signals: dict[Request, Any] = {}
    for request in requests:
        tap = choose_tap(request, vision)
        if isinstance(request, PixelEntropy):
            signals[request] = cells.pool(_measure_entropy(inputs.patches, vision))
        elif isinstance(request, TowerFeatures):
            gather = cells.gather if request.merged else cells.pool
            signals[request] = gather(tapped[tap])
        elif isinstance(request, TowerKeys):
            keys = drop_class(vision, tapped[tap][1 if request.rotated else 2])  # [R, P, H, C]
            if request.heads == "joined":
                keys = keys.reshape(*keys.shape[:2], -1)  # [R, P, H * C]
            else:
                keys = keys.astype(jnp.float32).mean(axis=2)  # [R, P, C]
            signals[request] = cells.pool(keys)  # [B, V, ...]
        elif isinstance(request, ClassFeatures):
            of_row = tapped[tap][:, None]  # [R, 1, E]
            shape = len(of_row), inputs.patches.shape[1] // vision.merge_area, of_row.shape[2]
            signals[request] = cells.gather(jnp.broadcast_to(of_row, shape))
        else:
            vectors = tapped[tap][:2]  # queries and keys [R, P, H, C]
            if request.heads == "joined":
                vectors = [x.reshape(*x.shape[:2], 1, -1) for x in vectors]  # [R, P, 1, H * C]
            added = request.patches == "sum"
            signals[request] = _ReceivedInTower(cells, *vectors, vision.class_token, added)
    return signals


@dataclasses.dataclass(frozen=True)
class _Cells:
    """Moves between patch rows, merged cells and visual tokens."""

    inputs: Inputs
    area: int
    cut: bool  # cells at borders lack patches

    def gather(self, cells: jax.Array) -> jax.Array:
        """Take the merged cells [R, W, ...] of the visual tokens: float32 [B, V, ...].

        Learned tokens, which no cell becomes, get 0.
        """
        source = self.inputs.visual_source
        made = (source >= 0).reshape(*source.shape, *(1,) * (cells.ndim - 2))
        return jnp.where(made, gather_cells(cells, source), 0).astype(jnp.float32)

    def pool(self, patches: jax.Array) -> jax.Array:
        """Average patches [R, P, ...] over each visual token: float32 [B, V, ...]."""
        R, P = patches.shape[:2]
        rest = patches.shape[2:]
        # [R, W, area, ...]
        by_cell = patches.astype(jnp.float32).reshape(R, P // self.area, self.area, *rest)
        if not self.cut:
            return self.gather(by_cell.mean(axis=2))
        real = self._mark_real()
        real = real.reshape(*real.shape, *(1,) * len(rest))
        total = jnp.where(real, by_cell, 0).sum(axis=2)  # [R, W, ...]
        return self.gather(total / jnp.maximum(real.sum(axis=2), 1))

    def add(self, patches: jax.Array) -> jax.Array:
        """Add up patches [R, P] over each visual token: float32 [B, V]."""
        size = self.gather(self._mark_real().sum(axis=2)) if self.cut else self.area
        return self.pool(patches) * size

    def _mark_real(self) -> jax.Array:
        """Mark the patches of cells that are no padding: [R, W, area]."""
        real = self.inputs.patch_positions[..., 0] >= 0  # [R, P]
        return real.reshape(len(real), -1, self.area)

    def spread(self, tokens: jax.Array) -> jax.Array:
        """Hand each patch the value of its visual token: [B, V] to [R, P], 0 at padding."""
        R, P = self.inputs.patches.shape[:2]
        source = self.inputs.visual_source
        tokens = jnp.where(self.inputs.layout.visual_valid & (source >= 0), tokens, 0.0)
        cells = jnp.zeros(R * P // self.area, jnp.float32)  # [R * W]
        # padding and learned tokens add 0 to cell 0
        cells = cells.at[jnp.maximum(source, 0)].add(tokens)
        return jnp.repeat(cells.reshape(R, -1), self.area, axis=1)  # [R, P]


@flax.struct.dataclass
class _ReceivedInTower(Received):
    """Attention received within each row of patches, formed when it is asked for."""

    cells: _Cells = flax.struct.field(pytree_node=False)
    queries: jax.Array  # [R, P, H, C], rotated; with a class token [R, 1 + P, H, C], it first
    keys: jax.Array  # alike
    class_token: bool = flax.struct.field(pytree_node=False)
    added: bool = flax.struct.field(pytree_node=False)  # over the patches of a token

    def __call__(self, weights: jax.Array | None = None) -> jax.Array:
        layout = self.cells.inputs.layout
        pool = self.cells.add if self.added else self.cells.pool
        visible = self.cells.inputs.patch_positions[..., 0] >= 0  # [R, P]
        if self.class_token:
            visible = jnp.pad(visible, ((0, 0), (1, 0)), constant_values=True)  # [R, 1 + P]
        if weights is None and self.class_token:
            # the class token asks alone: [R, H, 1, 1 + P]
            rows = attention_rows(self.queries[:, :1], self.keys, visible[:, None])
            received = pool(rows[:, :, 0, 1:].mean(axis=1))  # [B, V]
        else:
            weights = jnp.ones(layout.visual_valid.shape) if weights is None else weights
            asking = self.cells.spread(weights.astype(jnp.float32))  # [R, P]
            if self.class_token:
                asking = jnp.pad(asking, ((0, 0), (1, 0)))  # [R, 1 + P]: it asks nothing
            mass = attention_received(self.queries, self.keys, visible, asking)
            total = asking.sum(axis=1, keepdims=True)  # [R, 1], of the queries
            mass = mass[:, 1:] if self.class_token else mass  # [R, P]
            received = pool(mass / jnp.where(total > 0, total, 1.0))  # [B, V]
        return jnp.where(layout.visual_valid, received, 0.0)


def _measure_entropy(patches: jax.Array, vision: VisionConfig) -> jax.Array:
    """Return the entropy in bits of the grey levels of each patch: [R, P]."""
    R, P, _ = patches.shape
    # Patches are channel by channel: [R, P, 3, pixels].
    channels = patches.reshape(R, P, vision.in_channels, -1).astype(jnp.float32)
    # [channels, 1]: back to values in [0, 1], as they were before they were normalised
    mean, std = (np.array(x, np.float32)[:, None] for x in (vision.pixel_mean, vision.pixel_std))
    grey = jnp.round((channels * std + mean).mean(axis=2) * (_GREY_LEVELS - 1))  # [R, P, pixels]

    def add_level(total: jax.Array, level: jax.Array) -> tuple[jax.Array, None]:
        share = (grey == level).mean(axis=2, dtype=jnp.float32)  # [R, P]
        return total - jax.scipy.special.xlogy(share, share) / np.log(2), None

    # A scan over the levels: a histogram at once would be [R, P, 256, pixels].
    levels = jnp.arange(_GREY_LEVELS, dtype=jnp.float32)
    return jax.lax.scan(add_level, jnp.zeros((R, P), jnp.float32), levels)[0]
