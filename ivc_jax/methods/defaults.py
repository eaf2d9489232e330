"""What depends on the model if a method does not name it: where to cut, to merge, which ids."""

import dataclasses
import functools
import logging
from typing import TypeVar

from ivc_jax.config import ModelConfig, Released
from ivc_jax.methods.base import MethodError

_log = logging.getLogger(__name__)
_S = TypeVar("_S")
_USUAL = Released()


def fill_in(settings: _S, released: Released = _USUAL) -> _S:
    """Return settings, a dataclass, whose fields that are not given (None) are those released.

    Args:
        released: for which model; by default the code for Qwen2.5-VL, which is what settings mean
            that no model has resolved.
    """
    known = vars(released)
    open_fields = [n for n, value in vars(settings).items() if value is None and n in known]
    return dataclasses.replace(settings, **{name: known[name] for name in open_fields})


def choose_layer(config: ModelConfig) -> int:
    """Return the released layer of a known model, else two thirds of the depth, with a log note."""
    return config.released.layer or _take_two_thirds(config.family, config.decoder.num_layers)


def choose_positions(positions: str | None, config: ModelConfig) -> str:
    """Return the rule for position ids: original ones with M-RoPE, which has no other, if None."""
    return positions or ("reindex" if config.decoder.rope.sections is None else "original")


def choose_merge(merge_in: str | None, config: ModelConfig) -> str | None:
    """Return where tokens merge before the decoder: in the tower if a token is one patch, if None.

    None elsewhere: as tokens of the decoder, the only way there.

    Raises:
        MethodError: in the tower, where a token is made of several patches.
    """
    single = config.vision.merge_area == 1
    if merge_in == "tower" and not single:
        raise MethodError(
            f"merge_in=tower needs a token for each patch, and one of {config.family} is made of"
            f" {config.vision.merge_area}; leave it out"
        )
    return merge_in or ("tower" if single else None)


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
