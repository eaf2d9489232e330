"""What depends on the model if a method does not name it: the block to cut at, position ids."""

import functools
import logging
from typing import TypeVar

from ivc_jax.config import ModelConfig
from ivc_jax.methods.base import MethodError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# (family, blocks) -> first pruned block, as released (VLMEvalKit/vlmeval/config.py, "ivcp_k").
_RELEASED_LAYERS = {("qwen2_5_vl", 28): 16, ("qwen2_5_vl", 36): 22}


def default_layer(config: ModelConfig) -> int:
    """Return the released layer of a known model, else two thirds of the depth, with a log note."""
    depth = config.decoder.num_layers
    released = _RELEASED_LAYERS.get((config.family, depth))
    return released or _two_thirds(config.family, depth)


def resolved(value: _T | None, name: str, field: str = "layer") -> _T:
    """Return the value of a field, or raise MethodError if it still depends on the model."""
    if value is None:
        raise MethodError(f"{name}: {field} is not set; give {field}=... or call resolve(config)")
    return value


def check_positions(positions: str | None) -> None:
    """Raise MethodError unless `positions` is "original", "reindex" or None."""
    if positions not in (None, "original", "reindex"):
        raise MethodError(f"positions must be one of ('original', 'reindex'), got {positions!r}")


def chosen_positions(positions: str | None, config: ModelConfig) -> str:
    """Return the rule for position ids: original ones with M-RoPE, which has no other, if None."""
    return positions or ("reindex" if config.decoder.rope.sections is None else "original")


@functools.cache  # the note appears once for each kind of model
def _two_thirds(family: str, depth: int) -> int:
    layer = min(max(1, round(2 * depth / 3)), depth - 1)
    _log.info(
        "no released layer for %s with %d blocks: pruning before block %d, two thirds of the depth",
        family,
        depth,
        layer,
    )
    return layer
