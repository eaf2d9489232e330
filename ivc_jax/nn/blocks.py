"""Parameters of blocks that are alike, and the loop over them. The form is the device's choice:

    apart      (block 0, block 1, ...)    an array a block and projection, as in a checkpoint;
                                          the loop is unrolled
    stacked    every leaf [L, ...]        one program for all blocks, in a scan

On CPU a scan copies each block out of the stack before it multiplies: 8 GB/s of weights while
decoding, 21 to 39 apart (two cores, float32). A TPU multiplies straight out of the stack, and
28 blocks apart are a program of 117 MB, compiled in 28 s, where a scan's has 6 MB and 11 s (v5e).
Blocks of int8 weights lie stacked everywhere: they are turned into floats when their turn comes,
which XLA does for all of them at once, and beforehand, where the loop is unrolled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]
Blocks = tuple[Params, ...] | Params


def stacks(platform: str, quantized: bool = False) -> bool:
    """Tell whether blocks lie stacked on devices of a platform ("cpu", "gpu", "tpu")."""
    return platform == "tpu" or quantized


def is_stacked(blocks: Blocks) -> bool:
    """Tell the two forms apart."""
    return not isinstance(blocks, Sequence)


def stack(blocks: Sequence[Any]) -> Any:
    """Put alike trees on top of each other: every leaf [L, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def take_block(blocks: Blocks, index: Any) -> Params:
    """Return one block's parameters; `index` may be traced if blocks are stacked."""
    if not is_stacked(blocks):
        return blocks[index]
    take = jax.lax.dynamic_index_in_dim
    return jax.tree.map(lambda leaf: take(leaf, index, keepdims=False), blocks)


def run_blocks(
    body: Callable[[Any, Params, Any], tuple[Any, Any]],
    carry: Any,
    blocks: Blocks,
    start: int,
    stop: int,
    each: Any,
) -> tuple[Any, Any]:
    """Run `carry, made = body(carry, params, own)` for blocks start..stop-1.

    Args:
        body: traced once, whatever the form.
        carry: goes from block to block.
        blocks: of the whole model.
        start: first block that is run.
        stop: the one behind the last.
        each: what belongs to one block (`own`): a sequence of L trees for blocks apart, a tree
            of leaves [L, ...] for stacked ones.

    Returns:
        The last carry, and what the blocks made, in the form of `each`.
    """
    if is_stacked(blocks):

        def step(carry: Any, index_and_own: tuple) -> tuple[Any, Any]:
            index, own = index_and_own
            return body(carry, take_block(blocks, index), own)

        return jax.lax.scan(step, carry, (jnp.arange(start, stop), each))
    # Inlined by XLA; under jit Python traces the body once and not for every block.
    run, made = jax.jit(body), []
    for params, own in zip(blocks[start:stop], each, strict=True):
        carry, part = run(carry, params, own)
        made.append(part)
    return carry, made
