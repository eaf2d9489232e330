"""What depends on the model if a method does not name it: the block to cut at, position ids."""

import functools
import logging

from ivc_jax.config import ModelConfig

_log = logging.getLogger(__name__)


def choose_layer(config: ModelConfig) -> int:
    """Return the released layer of a known model, else two thirds of the depth, with a log note."""
    return config.released_layer or _take_two_thirds(config.family, config.decoder.num_layers)


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
