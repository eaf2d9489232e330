"""The whole vision tower: patch embedding, what is learned of places, blocks, merger.

A class token, if there is one, is slot 0 of every row from the first block to the last.

Pruning methods may tap it. Taps split the loop, they never change what it computes:

    taps Projections(2), Features(1, 2) on 4 blocks     0 | 1 | 2 | 3
                                                            `-+-'      mean of two outputs
                                                              ^        input of block 2
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivc_jax.config import VisionConfig
from ivc_jax.nn import rope
from ivc_jax.nn.blocks import Blocks, Params, is_stacked, run_blocks, take_block
from ivc_jax.nn.layers import NORMS, Linear
from ivc_jax.nn.vision import (
    PatchMerger,
    VisionBlock,
    Windows,
    attend_rows,
    find_windows,
    order_slots,
)
from ivc_jax.types import typed


@dataclasses.dataclass(frozen=True)
class Features:
    """Tap: the mean of the outputs of blocks `first` to `last`.

    [R, P, E]; with `merged` the mean goes through the merger, once: [R, P / merge², D]; with
    `of_class` it is that of the class token, [R, E].
    """

    first: int
    last: int
    merged: bool = False
    of_class: bool = False


@dataclasses.dataclass(frozen=True)
class Projections:
    """Tap: queries and keys of a block's attention, rotated, and the keys as they were before.

    [R, P, H, C] each; with a class token [R, 1 + P, H, C].
    """

    block: int


@dataclasses.dataclass(frozen=True)
class Deep:
    """Tap: feature `index` of `VisionConfig.deepstack`, [R, P / merge², D]."""

    index: int


Tap = Features | Projections | Deep


@typed
def encode(
    config: VisionConfig,
    params: Params,
    patches: Float[Array, "R P E"],
    patch_positions: Int[Array, "R P 2"],
    taps: Sequence[Tap] = (),
) -> tuple[Float[Array, "R W D"], dict[Tap, Any]]:
    """Encode patch rows.

    Args:
        config: of the tower.
        params: of the tower, blocks in either form of `ivc_jax.nn.blocks`.
        patches: flattened pixels, merge-block order, window by window if the tower has windows;
            zeros at padding. P is a multiple of `config.row_unit`.
        patch_positions: (row, column) of each patch, -1 at padding.
        taps: what else to return.

    Returns:
        Visual tokens [R, P / merge², out_dim] in the order of the row, those of padding are
        meaningless; and what was tapped.
    """
    valid = patch_positions[..., 0] >= 0  # [R, P]
    x = _embedding(config).apply({"params": params["patch_embed"]}, patches)  # [R, P, D]
    x = _place(config, params, x, patch_positions)  # [R, P, D], with a class token [R, 1 + P, D]
    angles = None  # nothing turns
    if config.rotary:
        angles = rope.vision_angles(config.head_dim, patch_positions, config.rope_theta)
    windowed = config.window_size is not None
    # [R, P], with a class token [R, 1 + P]
    seen = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True) if config.class_token else valid
    loop = _Loop(
        block=VisionBlock(config),
        blocks=params["blocks"],
        angles=angles,
        # A row of padding alone still needs one key, or its softmax is 0 / 0.
        lengths=seen.sum(axis=1).clip(min=1),  # [R]
        order=order_slots(seen) if windowed or config.cuts_cells else None,
        windows=find_windows(valid, config.row_unit) if windowed else None,
        full=config.full_attention_blocks if windowed else (),
    )

    def merge(x: jax.Array) -> jax.Array:
        """Turn outputs of a block into visual tokens: [R, W, out_dim]."""
        x = drop_class(config, _finish(config, params, x))
        if config.cuts_cells:
            x = jnp.where(valid[..., None], x, 0)
        return PatchMerger(config).apply({"params": params["merger"]}, x)

    x, tapped = _run_tapped(config, loop, x, taps)
    for tap in tapped:
        if isinstance(tap, Features) and tap.of_class:
            tapped[tap] = tapped[tap][:, 0]
        elif isinstance(tap, Features):
            tapped[tap] = (merge if tap.merged else partial(drop_class, config))(tapped[tap])
        elif isinstance(tap, Deep):
            own = {"params": params["deepstack"][tap.index]}
            tapped[tap] = _deep_merger(config).apply(own, drop_class(config, tapped[tap]))
    return merge(x), tapped


def project(
    config: VisionConfig, params: Params, x: Float[Array, "B K E"]
) -> Float[Array, "B K D"]:
    """Make visual tokens of outputs of the last block, where a token is one patch."""
    x = x.astype(params["merger"]["mlp"]["fc1"]["weight"].dtype)
    return PatchMerger(config).apply({"params": params["merger"]}, _finish(config, params, x))


def _finish(config: VisionConfig, params: Params, x: jax.Array) -> jax.Array:
    """Norm the outputs of the last block, if the tower does: [R, P, D]."""
    return _norm(config).apply({"params": params["final_norm"]}, x) if config.final_norm else x


def drop_class(config: VisionConfig, x: jax.Array) -> jax.Array:
    """Take the class token, if there is one, away from [R, 1 + P, ...]: [R, P, ...]."""
    return x[:, 1:] if config.class_token else x


def _place(
    config: VisionConfig, params: Params, x: jax.Array, patch_positions: jax.Array
) -> jax.Array:
    """Tell embedded patches [R, P, D] where they are; put the class token in front of them."""
    first = int(config.class_token)  # row of the table that is the first patch's
    if config.table_side is not None:
        table = params["positions"][first:]  # [side², D]
        if config.table_interpolated:
            x = x + _interpolate(table, patch_positions, config.table_side).astype(x.dtype)
        else:
            place = patch_positions[..., 0] * config.table_side + patch_positions[..., 1]  # [R, P]
            x = x + table[place.clip(min=0)]
    if config.class_token:
        token = params["class_token"]  # [D]
        if config.table_side is not None:
            token = token + params["positions"][0]
        token = jnp.broadcast_to(token, (len(x), 1, config.embed_dim))
        x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
    if config.stem_norm:
        x = _norm(config).apply({"params": params["stem_norm"]}, x)
    return x


# Learned tokens of a picture's views, by what stands in `visual_source` for them.
_LEARNED = {-1: "image_newline", -2: "view_seperator"}  # in the spelling of checkpoints


def place_learned(
    config: VisionConfig, params: Params, visual: jax.Array, source: jax.Array
) -> jax.Array:
    """Put learned tokens where no cell becomes one of the visual tokens [B, V, out_dim].

    Args:
        source: [B, V], see `types.Inputs`.
    """
    if config.view_size is None:
        return visual
    for number, name in _LEARNED.items():
        visual = jnp.where((source == number)[..., None], params[name], visual)
    return visual


def _interpolate(table: jax.Array, patch_positions: jax.Array, side: int) -> jax.Array:
    """Read a table [side², D] between its places, stretched over each row's patches: [R, P, D].

    A picture of 3 patches across over a table of side 4:

        table     0     1     2     3
        patch     0        1        2          patch 1 lies at 1.5, half 1 and half 2
    """
    real = patch_positions[..., 0] >= 0  # [R, P]
    place = jnp.where(real[..., None], patch_positions, 0)  # [R, P, 2]
    # [R, 1, 2]: steps from the first patch to the last, of rows and of columns
    steps = place.max(axis=1, keepdims=True).clip(min=1)
    at = place.astype(jnp.float32) * (side - 1) / steps  # [R, P, 2], in places of the table
    low = jnp.floor(at)
    total = jnp.zeros((*real.shape, table.shape[1]), jnp.float32)  # [R, P, D]
    for down, across in np.ndindex(2, 2):
        corner = low + np.array([down, across], np.float32)  # [R, P, 2]
        weight = (1 - jnp.abs(at - corner)).prod(axis=-1)  # [R, P]; 0 beyond the border
        row, column = jnp.moveaxis(corner.astype(jnp.int32).clip(max=side - 1), -1, 0)  # [R, P]
        total += weight[..., None] * table[row * side + column]
    return total


def init_params(config: VisionConfig, key: jax.Array) -> Params:
    """Draw random float32 parameters of a tower, blocks apart: patch_embed, blocks, merger.

    Beside them, where the config says so: positions [side², D] and class_token [D], which is the
    first of 1 + side² positions then, stem_norm and final_norm, the learned tokens of views, and
    the mergers of deepstack.
    """
    embed_key, block_key, merger_key, place_key = jax.random.split(key, 4)
    patches = jnp.zeros((1, config.row_unit, config.patch_values))  # the smallest row
    x = jnp.zeros((1, config.row_unit, config.embed_dim))
    angles = jnp.zeros((1, config.row_unit, config.head_dim // 2)) if config.rotary else None
    attend = partial(attend_rows, lengths=jnp.ones(1, jnp.int32))

    @jax.jit  # traced once for all blocks
    def init_block(key: jax.Array) -> Params:
        return VisionBlock(config).init(key, x, angles, attend)["params"]

    params = {
        "patch_embed": _embedding(config).init(embed_key, patches)["params"],
        "blocks": tuple(map(init_block, jax.random.split(block_key, config.depth))),
        "merger": PatchMerger(config).init(merger_key, x)["params"],
    }
    token_key, table_key = jax.random.split(place_key)
    if config.class_token:
        params["class_token"] = 0.02 * jax.random.normal(token_key, (config.embed_dim,))
    if config.table_side is not None:
        shape = config.class_token + config.table_side**2, config.embed_dim
        params["positions"] = 0.02 * jax.random.normal(table_key, shape)
    for name, wanted in (("stem_norm", config.stem_norm), ("final_norm", config.final_norm)):
        if wanted:
            params[name] = _norm(config).init(place_key, x)["params"]
    if config.view_size is not None:
        for name, learned in zip(_LEARNED.values(), jax.random.split(place_key), strict=True):
            params[name] = 0.02 * jax.random.normal(learned, (config.out_dim,))
    if config.deepstack:
        keys = jax.random.split(merger_key, len(config.deepstack))
        params["deepstack"] = tuple(_deep_merger(config).init(each, x)["params"] for each in keys)
    return params


def _embedding(config: VisionConfig) -> Linear:
    return Linear(config.embed_dim, use_bias=config.patch_bias)


def _deep_merger(config: VisionConfig) -> PatchMerger:
    return PatchMerger(dataclasses.replace(config, merge_norm="joined"))


def _norm(config: VisionConfig) -> nn.Module:
    return NORMS[config.norm](epsilon=config.norm_eps)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What stays the same from block to block."""

    block: VisionBlock
    blocks: Blocks
    angles: jax.Array | None  # [R, P, F]
    lengths: jax.Array  # [R], real slots of each row
    order: jax.Array | None  # [R, P], see `attend_rows`
    windows: Windows | None
    full: tuple[int, ...]  # blocks that see the whole row all the same

    def params(self, index: int) -> dict[str, Params]:
        """Take one block's parameters."""
        return {"params": take_block(self.blocks, index)}

    def turn(self, *vectors: jax.Array) -> tuple[jax.Array, ...]:
        """Turn queries and keys by the places of their patches."""
        if self.angles is None:
            return vectors
        return tuple(rope.rotate(each, self.angles) for each in vectors)

    def run(
        self, x: jax.Array, totals: list[jax.Array], start: int, stop: int
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Run blocks start..stop-1; add each output to the totals, [R, P, D] as x."""

        def step(carry: tuple, params: Params, full: jax.Array) -> tuple:
            x, totals = carry
            # One body for both kinds of blocks: the choice is data, and a constant for XLA in
            # blocks apart, where it takes the other branch away.
            full = full if self.full else None
            see = {"lengths": self.lengths, "order": self.order, "windows": self.windows}
            attend = partial(attend_rows, **see, full=full)
            x = self.block.apply({"params": params}, x, self.angles, attend)
            return (x, [total + x for total in totals]), None

        full = np.isin(np.arange(start, stop), self.full)  # [stop - start]
        each = jnp.asarray(full) if is_stacked(self.blocks) else list(full)
        return run_blocks(step, (x, totals), self.blocks, start, stop, each)[0]


def _run_tapped(
    config: VisionConfig, loop: _Loop, x: jax.Array, taps: Sequence[Tap]
) -> tuple[jax.Array, dict[Tap, Any]]:
    """Run all blocks, in as many loops as the taps need."""
    means = [tap for tap in taps if isinstance(tap, Features)]
    # block behind the one whose output is tapped -> tap
    deep = {config.deepstack[tap.index] + 1: tap for tap in taps if isinstance(tap, Deep)}
    # A loop ends where a tap begins or ends, so that what is summed is the same all through it.
    borders = {0, config.depth, *(tap.block for tap in taps if isinstance(tap, Projections)), *deep}
    borders |= {border for tap in means for border in (tap.first, tap.last + 1)}
    tapped: dict[Tap, Any] = {}
    for start, stop in itertools.pairwise(sorted(borders)):
        if (tap := Projections(start)) in taps:
            queries, keys, _ = loop.block.apply(loop.params(start), x, method="project")
            tapped[tap] = *loop.turn(queries, keys), keys
        here = [tap for tap in means if tap.first <= start <= tap.last]
        # What earlier loops have added up, [R, P, D] each.
        totals = [tapped.get(tap, jnp.zeros_like(x)) for tap in here]
        x, totals = loop.run(x, totals, start, stop)
        tapped |= dict(zip(here, totals, strict=True))
        if stop in deep:
            tapped[deep[stop]] = x
    for tap in means:
        tapped[tap] = tapped[tap] / (tap.last - tap.first + 1)
    return x, tapped
