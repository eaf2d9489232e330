"""HiRED (arXiv 2408.10945): share a budget over regions, then keep the most attended of each.

The attention of the tower's first block says where there is something, that of its last one which
tokens tell of it. A part of the budget goes to the best tokens of the view of the whole, the rest
to regions, by what of the first attention falls on them. A picture in tiles with a thumbnail has
its tiles for regions; any other is its own view, cut by a grid:

    thumbnail  a b    tiles  a a | b b        no tiles  a a | b b    what the view keeps
               c d           a a | b b                  a a | b b    is kept already
                             ---------                  ---------
                             c c | d d                  c c | d d
"""

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.fields import check_choice, check_fractions, require
from ivc_jax.methods.requests import Request, Signals, TowerAttention
from ivc_jax.methods.select import NEAR, Segments, from_mask, round_counts
from ivc_jax.methods.upfront import Upfront
from ivc_jax.types import Layout, Selection, typed

# Lifts a share that rounding has left just below a whole number.
_LIFT = 1 + NEAR / 4


@dataclasses.dataclass(frozen=True)
class HiRED(Upfront):
    """Keep tokens of the whole view, and of regions as many as they are worth.

    Equations and phases of the paper's section 4 (hasanar1f/HiRED, modeling_llava_next.py). Of n
    tokens T = floor(keep_ratio n) stay, F = floor(alpha T) of them of the whole view. A tower
    without class token is asked for the attention that tokens receive, and a picture without tiles
    for regions of its own: an adaptation of this package, which nobody has published. With
    regions=1x1 and no tiles the choice is FasterVLM's, but for the rounding. A frame of a video,
    and a view of a picture whose tiles nobody names, is a picture of its own.

    Attributes:
        alpha: share of the kept tokens that the view of the whole gets, rounded down.
        regions: rows and columns of the grid over a picture without tiles; None asks `resolve`:
            1x1, a single partition as published for LLaVA-1.5, of a tower with a class token,
            else 2x2.
        allocation: "paper" weighs a region by the first attention within it. "code" counts those of
            the floor((1 - alpha) n) most attended tokens of the view that lie in equal runs of the
            raster, which for 2x2 tiles are horizontal bands and no tiles.
        leftover: give what is rounded down to the largest fractions, and what a region has no
            tokens for to the others. None: as allocation=paper, not as the code, which loses it.
        block: of the tower, for the first attention; None asks `resolve` for the first block that
            sees the whole image.
    """

    name: ClassVar[str] = "hired"

    alpha: float = 0.5
    regions: str | None = None
    allocation: str = "paper"
    leftover: bool | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "alpha", float(self.alpha))
        check_fractions(alpha=self.alpha)
        check_choice("allocation", self.allocation, ("paper", "code"))
        if self.regions is not None and not re.fullmatch(r"[1-9]\d?x[1-9]\d?", self.regions):
            raise MethodError(f"regions are rows x columns, such as 2x2, got {self.regions!r}")

    def resolve(self, config: ModelConfig) -> "HiRED":
        """Fill in keep_ratio, positions, regions, leftover and block."""
        vision = config.vision
        full = vision.full_attention_blocks if vision.window_size else (0,)
        return dataclasses.replace(
            super().resolve(config),
            regions=self.regions or ("1x1" if vision.class_token else "2x2"),
            leftover=self.allocation == "paper" if self.leftover is None else self.leftover,
            block=min(full, default=None) if self.block is None else self.block,
        )

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for attention in the first block and in the last."""
        return TowerAttention(self.block), TowerAttention()

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Keep the best of the view, split the rest of the budget, and fill every region."""
        early, late = (signals[request]() for request in self.requests(stage))  # [B, V] both
        rows, columns = map(int, require(self.regions, self.name, "regions").split("x"))
        parts = cut_pictures(layout, rows, columns)
        pictures = parts.pictures
        total = pictures.look_up(self._count(stage, layout.visual_slots))  # [B, V]
        # a picture without a token would be as good as none; the frames of a video may have none
        total = jnp.maximum(total, parts.needed)
        whole = pictures.sum(parts.view.astype(jnp.int32))  # [B, V], tokens of the view
        share = jnp.asarray(round_counts(self.alpha, layout.visual_slots, "floor"))
        first = jnp.minimum(share[total], whole)
        kept = pictures.rank(late, parts.view) < first
        if self.allocation == "code":
            rest = jnp.asarray(round_counts(1 - self.alpha, layout.visual_slots, "floor"))[whole]
            worth = count_bands(early, parts, rest)
        else:
            worth = parts.regions.total(jnp.where(parts.view & (early > 0), early, 0.0))
        room = parts.open & ~kept
        leftover = require(self.leftover, self.name, "leftover")
        quota = split_budget(worth, total - first, room, parts, leftover)
        keep = kept | (parts.regions.rank(late, room) < quota)
        # Rounding alone may leave nothing, of a picture of few tokens and without leftover.
        empty = pictures.sum(keep.astype(jnp.int32)) < parts.needed
        return from_mask(keep | (empty & (pictures.rank(late, parts.view) == 0)), num_keep)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a picture consists of."""

    pictures: Segments
    regions: Segments  # whose tokens need not be neighbours; `first` means nothing
    view: jax.Array  # [B, V] bool, part of the view of the whole
    open: jax.Array  # [B, V] bool, what a region may keep
    place: jax.Array  # [B, V] int32, number of the region in its picture
    count: jax.Array  # [B, V] int32, regions of the picture
    needed: jax.Array  # [B, V] int32, the least that the picture keeps: 0 or 1


@typed
def cut_pictures(layout: Layout, rows: int, columns: int) -> Parts:
    """Find the regions of every picture: its tiles, or a grid over its only view."""
    images, frames = Segments.by_image(layout), Segments.by_frame(layout)
    valid = layout.visual_valid
    frame, row, column = jnp.moveaxis(layout.grid, -1, 0)  # [B, V] each
    height, width = frames.max(row) + 1, frames.max(column) + 1
    across, down = jnp.moveaxis(layout.tiles, -1, 0)
    # The view of the whole comes last, behind as many tiles as there are.
    tiled = valid & (across * down > 1) & (images.max(frame) == across * down)
    view = valid & (~tiled | (frame == across * down))
    down = jnp.where(tiled, down, jnp.minimum(rows, height))
    across = jnp.where(tiled, across, jnp.minimum(columns, width))
    cell = row * down // jnp.maximum(height, 1) * across + column * across // jnp.maximum(width, 1)
    place = jnp.where(view, cell, frame)
    pictures = Segments.by_runs(valid, layout.image_id, jnp.where(tiled, 0, frame))
    # A picture has a token for each region at least, so that numbers are not used twice.
    number = pictures.first + jnp.clip(place, 0, jnp.maximum(pictures.count - 1, 0))
    regions = Segments.by_number(jnp.where(valid, number, -1), layout.visual_index.shape[1])
    needed = (valid & (tiled | (frame == 0))).astype(jnp.int32)
    return Parts(pictures, regions, view, valid & (~tiled | ~view), place, across * down, needed)


@typed
def count_bands(
    early: Float[Array, "B V"], parts: Parts, most: Int[Array, "B V"]
) -> Float[Array, "B V"]:
    """Count the most attended tokens of the view in runs of its raster, one a region.

    Args:
        early: attention.
        most: so many of the picture count.

    Returns:
        What the run of this token's region holds.
    """
    pictures, view = parts.pictures, parts.view
    counted = pictures.rank(early, view) < most
    before = jnp.cumsum(view, axis=1, dtype=jnp.int32) - view  # [B, V]
    before -= jnp.take_along_axis(before, pictures.first, axis=1)  # tokens of the view before it
    whole = jnp.maximum(pictures.sum(view.astype(jnp.int32)), 1)
    band = before * parts.count // whole  # [B, V]
    number = jnp.where(counted, pictures.first + band, -1)  # [B, V], as `parts.regions` counts
    same = parts.regions.number[:, :, None] == number[:, None]  # [B, V, V]
    return same.sum(axis=2, dtype=jnp.float32)


@typed
def split_budget(
    worth: Float[Array, "B V"],
    budget: Int[Array, "B V"],
    room: Bool[Array, "B V"],
    parts: Parts,
    leftover: bool,
) -> Int[Array, "B V"]:
    """Split the budget of each picture over its regions by what they are worth.

    Args:
        worth: of this token's region, at least 0; where all are worth nothing, all are alike.
        budget: of this token's picture.
        room: tokens that a region can still keep.
        leftover: use the budget up.

    Returns:
        The quota of this token's region, at most what it has room for.
    """
    pictures, regions = parts.pictures, parts.regions
    size = regions.sum(room.astype(jnp.int32))  # [B, V], as all that follows
    exists = regions.sum(parts.open.astype(jnp.int32)) > 0
    # A region is represented by its first token.
    slots = jnp.broadcast_to(jnp.arange(worth.shape[1], dtype=jnp.int32), worth.shape)
    first = regions.valid & (slots == regions.min(slots))

    def give(amount: jax.Array, takers: jax.Array) -> jax.Array:
        """Split an amount over the takers, a number at the first token of each region."""
        weight = jnp.where(first & takers, worth, 0.0)
        alike = pictures.total(weight) <= 0
        weight = jnp.where(alike, first & takers, weight)
        share = amount * weight / jnp.maximum(pictures.total(weight), jnp.finfo(jnp.float32).tiny)
        whole = jnp.floor(share * _LIFT)
        given = whole.astype(jnp.int32)
        if not leftover:
            return given
        # between 1 and 2: there the bound of a tie is 2^-16 of a token
        fraction = 1 + jnp.maximum(share - whole, 0.0)
        rest = amount - pictures.sum(given)
        return given + (pictures.rank(fraction, first & takers) < rest)

    def move(quota: jax.Array) -> jax.Array:
        excess = pictures.sum(jnp.where(first, jnp.maximum(quota - size, 0), 0))
        quota = jnp.minimum(quota, size)
        return quota + give(excess, quota < size)

    def overfull(quota: jax.Array) -> jax.Array:
        return (first & (quota > size)).any()

    quota = give(budget, exists)
    if leftover:
        # Each round fills a region for good, so there are no more rounds than regions.
        quota = jax.lax.while_loop(overfull, move, quota)
    return regions.sum(jnp.where(first, jnp.minimum(quota, size), 0))
