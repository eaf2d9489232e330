"""What depends on the model if a method does not name it: the block to cut at, position ids."""

import functools
import logging

from ivc_jax.config import ModelConfig

_log = logging.getLogger(__name__)

# (family, blocks) -> first pruned block, as released (VLMEvalKit/vlmeval/config.py, "ivcp_k").
_RELEASED_LAYERS = {("qwen2_5_vl", 28): 16, ("qwen2_5_vl", 36): 22}


def choose_layer(config: ModelConfig) -> int:
    """Return the released layer of a known model, else two thirds of the depth, with a log note."""
    depth = config.decoder.num_layers
    released = _RELEASED_LAYERS.get((config.family, depth))
    return released or _take_two_thirds(config.family, depth)


def choose_positions(positions: str | None, config: ModelConfig) -> str:
    """Return the rule for position ids: original ones with M-RoPE, which has no other, if None."""
    return positions or ("reindex" if config.decoder.rope.sections is None else "original")


@functools.cache  # the note appears once for each kind of model
def _take_two_thirds(family: str, depth: int) -> int:
    layer = min(max(1, round(2 * depth / 3)), depth - 1)
    _log.info(
        "no released layer for %s with %d blocks: pruning before block %d, two thirds of the depth",
        family,
        depth,
        layer,
    )
    return layer
