"""Parameters of a model's blocks, and the loop over them. The form is the device's choice:

    apart      (block 0, block 1, ...)    an array a block and projection, as in a checkpoint;
                                          the loop is unrolled
    stacked    every leaf [L, ...]        one program for all blocks, in a scan

Blocks that are not all alike are stacked in `Sections`, one behind the other, with a scan each.

On CPU a scan copies each block out of the stack before it multiplies: 8 GB/s of weights while
decoding, 21 to 39 apart (two cores, float32). A TPU multiplies straight out of the stack, and
28 blocks apart are a program of 117 MB, compiled in 28 s, where a scan's has 6 MB and 11 s (v5e).
Blocks of int8 weights lie stacked everywhere: they are turned into floats when their turn comes,
which XLA does for all of them at once, and beforehand, where the loop is unrolled.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Params = dict[str, Any]


@flax.struct.dataclass
class Sections:
    """Stacks of blocks that are alike, in the order in which they run."""

    parts: tuple[Params, ...]  # every leaf [blocks of the section, ...]

    def split(self, start: int, stop: int) -> Iterator[tuple[Params, int, int]]:
        """Yield the sections that hold blocks start..stop-1, and which of their own these are."""
        first = 0  # block of the section
        for part in self.parts:
            count = len(jax.tree.leaves(part)[0])
            here = max(start - first, 0), min(stop - first, count)
            if here[0] < here[1]:
                yield part, *here
            first += count


Blocks = tuple[Params, ...] | Params | Sections


def stacks(platform: str, quantized: bool = False) -> bool:
    """Tell whether blocks lie stacked on devices of a platform ("cpu", "gpu", "tpu")."""
    return platform == "tpu" or quantized


def is_stacked(blocks: Blocks) -> bool:
    """Tell the two forms apart."""
    return not isinstance(blocks, Sequence)


def stack(blocks: Sequence[Any]) -> Any:
    """Put alike trees on top of each other: every leaf [L, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def find_sections(blocks: Sequence[Any]) -> list[range]:
    """Find the runs of blocks whose parameters are alike in structure and shape."""
    kinds = [jax.tree.map(lambda leaf: leaf.shape, block) for block in blocks]
    starts = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    return [range(*ends) for ends in itertools.pairwise([*starts, len(kinds)])]


def stack_sections(blocks: Sequence[Any], stack: Callable[[Sequence[Any]], Any] = stack) -> Blocks:
    """Stack blocks apart: one stack if all are alike, else `Sections`.

    Args:
        stack: puts alike trees on top of each other.
    """
    parts = [stack(blocks[run.start : run.stop]) for run in find_sections(blocks)]
    return parts[0] if len(parts) == 1 else Sections(tuple(parts))


def peek(blocks: Blocks) -> Params:
    """Return parameters of the first block or blocks, in whatever form they are."""
    if isinstance(blocks, Sections):
        return blocks.parts[0]
    return blocks if is_stacked(blocks) else blocks[0]


def take_block(blocks: Blocks, index: Any) -> Params:
    """Return one block's parameters; `index` may be traced if all blocks are in one stack."""
    if not is_stacked(blocks):
        return blocks[index]
    if isinstance(blocks, Sections):
        ((blocks, index, _),) = blocks.split(index, index + 1)
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
        body: traced once for blocks that are alike, whatever the form.
        carry: goes from block to block.
        blocks: of the whole model.
        start: first block that is run.
        stop: the one behind the last.
        each: what belongs to one block (`own`): a sequence of L trees for blocks apart, a tree
            of leaves [L, ...] for stacked ones.

    Returns:
        The last carry, and what the blocks made, in the form of `each`.
    """
    if isinstance(blocks, Sections):
        return _run_sections(body, carry, blocks.split(start, stop), each)
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


def _run_sections(
    body: Callable, carry: Any, sections: Iterator[tuple[Params, int, int]], each: Any
) -> tuple[Any, Any]:
    """Run one section after the other; arguments and results as in `run_blocks`."""
    made, done = [], 0
    for part, start, stop in sections:
        own = jax.tree.map(lambda leaf: leaf[done : done + stop - start], each)  # noqa: B023
        carry, parts = run_blocks(body, carry, part, start, stop, own)
        made.append(parts)
        done += stop - start
    if len(made) == 1:
        return carry, made[0]
    return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *made)
