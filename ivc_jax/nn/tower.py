"""The whole vision tower: patch embedding, blocks, merger.

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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivc_jax.config import VisionConfig
from ivc_jax.nn import rope
from ivc_jax.nn.blocks import Blocks, Params, is_stacked, run_blocks, take_block
from ivc_jax.nn.layers import Linear
from ivc_jax.nn.vision import PatchMerger, VisionBlock, Windows, attend_rows, find_windows
from ivc_jax.types import typed


@dataclasses.dataclass(frozen=True)
class Features:
    """Tap: the mean of the outputs of blocks `first` to `last`.

    [R, P, E]; with `merged` the mean goes through the merger, once: [R, P / merge², D].
    """

    first: int
    last: int
    merged: bool = False


@dataclasses.dataclass(frozen=True)
class Projections:
    """Tap: queries and keys of a block's attention, not rotated, and the rotary angles.

    [R, P, H, C] twice and [R, P, F].
    """

    block: int


Tap = Features | Projections


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
    x = _embedding(config).apply({"params": params["patch_embed"]}, patches)  # [R, P, D]
    angles = rope.vision_angles(config.head_dim, patch_positions, config.rope_theta)  # [R, P, F]
    if not config.rotary:
        angles = jnp.zeros_like(angles)  # turns nothing
    merge = partial(PatchMerger(config).apply, {"params": params["merger"]})
    valid = patch_positions[..., 0] >= 0  # [R, P]
    windowed = config.window_size is not None
    loop = _Loop(
        block=VisionBlock(config),
        blocks=params["blocks"],
        angles=angles,
        # A row of padding alone still needs one key, or its softmax is 0 / 0.
        lengths=valid.sum(axis=1).clip(min=1),  # [R]
        windows=find_windows(valid, config.row_unit) if windowed else None,
        full=config.full_attention_blocks if windowed else (),
    )
    x, tapped = _run_tapped(loop, x, taps, config.depth)
    for tap in tapped:
        if isinstance(tap, Features) and tap.merged:
            tapped[tap] = merge(tapped[tap])  # [R, W, out_dim]
    return merge(x), tapped


def init_params(config: VisionConfig, key: jax.Array) -> Params:
    """Draw random float32 parameters of a tower, blocks apart: patch_embed, blocks, merger."""
    embed_key, block_key, merger_key = jax.random.split(key, 3)
    patches = jnp.zeros((1, config.row_unit, config.patch_values))  # the smallest row
    x = jnp.zeros((1, config.row_unit, config.embed_dim))
    angles = jnp.zeros((1, config.row_unit, config.head_dim // 2))
    attend = partial(attend_rows, lengths=jnp.ones(1, jnp.int32))

    @jax.jit  # traced once for all blocks
    def init_block(key: jax.Array) -> Params:
        return VisionBlock(config).init(key, x, angles, attend)["params"]

    return {
        "patch_embed": _embedding(config).init(embed_key, patches)["params"],
        "blocks": tuple(map(init_block, jax.random.split(block_key, config.depth))),
        "merger": PatchMerger(config).init(merger_key, x)["params"],
    }


def _embedding(config: VisionConfig) -> Linear:
    return Linear(config.embed_dim, use_bias=config.patch_bias)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What stays the same from block to block."""

    block: VisionBlock
    blocks: Blocks
    angles: jax.Array  # [R, P, F]
    lengths: jax.Array  # [R], real patches of each row
    windows: Windows | None
    full: tuple[int, ...]  # blocks that see the whole row all the same

    def params(self, index: int) -> dict[str, Params]:
        """Take one block's parameters."""
        return {"params": take_block(self.blocks, index)}

    def run(
        self, x: jax.Array, totals: list[jax.Array], start: int, stop: int
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Run blocks start..stop-1; add each output to the totals, [R, P, D] as x."""

        def step(carry: tuple, params: Params, full: jax.Array) -> tuple:
            x, totals = carry
            # One body for both kinds of blocks: the choice is data, and a constant for XLA in
            # blocks apart, where it takes the other branch away.
            full = full if self.full else None
            see = {"lengths": self.lengths, "windows": self.windows, "full": full}
            attend = partial(attend_rows, **see)
            x = self.block.apply({"params": params}, x, self.angles, attend)
            return (x, [total + x for total in totals]), None

        full = np.isin(np.arange(start, stop), self.full)  # [stop - start]
        each = jnp.asarray(full) if is_stacked(self.blocks) else list(full)
        return run_blocks(step, (x, totals), self.blocks, start, stop, each)[0]


def _run_tapped(
    loop: _Loop, x: jax.Array, taps: Sequence[Tap], depth: int
) -> tuple[jax.Array, dict[Tap, Any]]:
    """Run all blocks, in as many loops as the taps need."""
    means = [tap for tap in taps if isinstance(tap, Features)]
    # A loop ends where a tap begins or ends, so that what is summed is the same all through it.
    borders = {0, depth, *(tap.block for tap in taps if isinstance(tap, Projections))}
    borders |= {border for tap in means for border in (tap.first, tap.last + 1)}
    tapped: dict[Tap, Any] = {}
    for start, stop in itertools.pairwise(sorted(borders)):
        if (tap := Projections(start)) in taps:
            queries, keys, _ = loop.block.apply(loop.params(start), x, method="project")
            tapped[tap] = queries, keys, loop.angles
        here = [tap for tap in means if tap.first <= start <= tap.last]
        # What earlier loops have added up, [R, P, D] each.
        totals = [tapped.get(tap, jnp.zeros_like(x)) for tap in here]
        x, totals = loop.run(x, totals, start, stop)
        tapped |= dict(zip(here, totals, strict=True))
    for tap in means:
        tapped[tap] = tapped[tap] / (tap.last - tap.first + 1)
    return x, tapped
