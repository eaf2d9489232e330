"""How relevant frames are to a question -> a number for each visual token.

two images, a video of 3 frames, two a slice     0.1 0.9 | 0.4 0.6 0.2
of images and slices                             0.1 0.9 | 0.5 0.2
of tokens                                        0.1 0.1 ... 0.9 ... 0.5 0.5 ... 0.2
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.footprint import Footprint

_REMEDY = "pass relevance=[[a number for each image and each temporal slice of a video], ...]"


def list_relevance(relevance: Any, num_samples: int) -> tuple[np.ndarray | None, ...]:
    """Return the numbers of each sample, float32 [f], or None where nobody knows; () of none.

    Raises:
        InputError: not one list a sample, or what is no number in [0, 1].
    """
    if relevance is None:
        return ()
    if not isinstance(relevance, list | tuple) or len(relevance) != num_samples:
        raise InputError(f"relevance must be a list with an entry for each prompt; {_REMEDY}")
    return tuple(
        None if own is None else _check(own, f"sample {sample}")
        for sample, own in enumerate(relevance)
    )


def average_slices(relevance: np.ndarray, depth: int) -> np.ndarray:
    """Average the numbers of a video's frames over its temporal slices: float32 [slices].

    Args:
        relevance: [frames].
        depth: frames of a slice; the last frame is repeated where one is not full.
    """
    whole = np.pad(relevance, (0, -len(relevance) % depth), mode="edge")
    return whole.reshape(-1, depth).mean(axis=1, dtype=np.float32)


def spread_relevance(
    relevance: np.ndarray | None, visuals: Sequence[tuple[str, Footprint]], sample: int
) -> np.ndarray | None:
    """Hand every visual token the number of its image or slice: float32 [v], or None.

    Args:
        relevance: [images and slices] in the order of the prompt, or None.
        visuals: kind and footprint of each.
        sample: its number, for errors.

    Raises:
        InputError: not as many numbers as there are images and slices.
    """
    if relevance is None:
        return None
    relevance, parts, start = _check(relevance, f"sample {sample}"), [], 0
    for kind, footprint in visuals:
        # all tiles of an image have its number
        frame = footprint.grid[:, 0] if kind == "video" else np.zeros(footprint.count, np.int32)
        parts.append(frame + start)  # [v of the visual]
        start += int(frame.max()) + 1
    if start != len(relevance):
        raise InputError(
            f"sample {sample}: {len(relevance)} numbers of relevance for {start} images and"
            " temporal slices of videos; give one for each"
        )
    return relevance[np.concatenate([np.zeros(0, np.int32), *parts])]


def _check(relevance: Any, name: str) -> np.ndarray:
    try:
        values = np.asarray(relevance, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name}: its relevance must be numbers; {_REMEDY}") from None
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"{name}: its relevance must be numbers in [0, 1]; {_REMEDY}")
    return values
