"""The whole vision tower: patch embedding, blocks in a loop over stacked parameters, merger.

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


class VisionTower(nn.Module):
    """Patch embedding, transformer blocks (parameters stacked over blocks), merger."""

    config: VisionConfig

    def __call__(self, patches: jax.Array, patch_positions: jax.Array) -> jax.Array:
        """Encode patch rows; see `encode`."""
        return self.encode(patches, patch_positions)[0]

    @nn.compact
    @typed
    def encode(
        self,
        patches: Float[Array, "R P E"],
        patch_positions: Int[Array, "R P 2"],
        taps: Sequence[Tap] = (),
    ) -> tuple[Float[Array, "R W D"], dict[Tap, Any]]:
        """Encode patch rows.

        Args:
            patches: flattened pixels, merge-block order, window by window if the tower has
                windows; zeros at padding. P is a multiple of `config.row_unit`.
            patch_positions: (row, column) of each patch, -1 at padding.
            taps: what else to return.

        Returns:
            Visual tokens [R, P / merge², out_dim] in the order of the row, those of padding are
            meaningless; and what was tapped.
        """
        config = self.config
        embed = nn.Dense(config.embed_dim, use_bias=config.patch_bias, name="patch_embed")
        x = embed(patches)  # [R, P, D]
        angles = rope.vision_angles(
            config.head_dim, patch_positions, config.rope_theta
        )  # [R, P, F]
        if not config.rotary:
            angles = jnp.zeros_like(angles)  # turns nothing
        block, merger = VisionBlock(config, parent=None), PatchMerger(config, parent=None)
        shape = (1, config.row_unit, config.embed_dim)  # the smallest row
        layers = self.param("blocks", partial(_init_blocks, block, config, shape))
        last = self.param("merger", lambda key: merger.init(key, jnp.zeros(shape))["params"])
        merge = partial(merger.apply, {"params": last})
        valid = patch_positions[..., 0] >= 0  # [R, P]
        windowed = config.window_size is not None
        loop = _Loop(
            block=block,
            layers=layers,
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


def _init_blocks(
    block: VisionBlock, config: VisionConfig, shape: tuple[int, ...], key: jax.Array
) -> dict[str, Any]:
    angles = jnp.zeros((*shape[:2], config.head_dim // 2))
    attend = partial(attend_rows, lengths=jnp.ones(1, jnp.int32))

    def init(block_key: jax.Array) -> dict[str, Any]:
        return block.init(block_key, jnp.zeros(shape), angles, attend)["params"]

    return jax.vmap(init)(jax.random.split(key, config.depth))


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What stays the same from block to block."""

    block: VisionBlock
    layers: dict[str, Any]  # every leaf [L, ...]
    angles: jax.Array  # [R, P, F]
    lengths: jax.Array  # [R], real patches of each row
    windows: Windows | None
    full: tuple[int, ...]  # blocks that see the whole row all the same

    def params(self, index: jax.Array | int) -> dict[str, Any]:
        """Take one block's parameters out of the stack."""
        take = partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
        return {"params": jax.tree.map(take, self.layers)}

    def run(
        self, x: jax.Array, totals: list[jax.Array], start: int, stop: int
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Run blocks start..stop-1; add each output to the totals, [R, P, D] as x."""

        def step(carry: tuple, index_and_full: tuple) -> tuple:
            x, totals = carry
            index, full = index_and_full
            # One loop for both kinds of blocks: the choice is data.
            full = full if self.full else None
            see = {"lengths": self.lengths, "windows": self.windows, "full": full}
            x = self.block.apply(self.params(index), x, self.angles, partial(attend_rows, **see))
            return (x, [total + x for total in totals]), None

        is_full = np.isin(np.arange(start, stop), self.full)  # [stop - start]
        return jax.lax.scan(step, (x, totals), (jnp.arange(start, stop), jnp.asarray(is_full)))[0]


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
