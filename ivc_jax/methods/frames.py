"""Numbers of a segment known to each of its tokens, and the part of a budget that a frame gets.

Nothing static says how many frames a video has, so that nothing here compares tokens with every
segment number, as `scoring.segment_sum` does for images.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from ivc_jax.methods import segments
from ivc_jax.methods.segments import Segments
from ivc_jax.types import Layout, typed


@typed
def over_segment(
    reduce: Callable[..., jax.Array], values: Shaped[Array, "B V"], within: Segments
) -> Shaped[Array, "B V"]:
    """Reduce the values of each segment and hand the result to all of its tokens.

    Args:
        reduce: `jax.ops.segment_sum`, `segment_max` or `segment_min`. A sum of floats depends on
            the order of the tokens, which accelerators do not fix.
    """
    V = values.shape[1]
    number = jnp.where(within.number < 0, V, within.number)  # padding is a segment of its own
    table = jax.vmap(lambda row, segment: reduce(row, segment, V + 1))(values, number)
    return jnp.take_along_axis(table, number, axis=1)


@typed
def frame_targets(layout: Layout, counts: np.ndarray) -> Int[Array, "B V"]:
    """Split what a video keeps over its frames; an image is one frame.

    Frames of a video are of one size and count from 0. Each gets the same number, the first ones
    one more where a rest is left.

    Args:
        counts: tokens kept of an image or a whole video of each size 0 .. V.

    Returns:
        The number of tokens to keep in this token's frame.
    """
    total, time = jnp.asarray(counts)[layout.image_count], layout.grid[..., 0]
    in_frame = jnp.maximum(segments.frames(layout).count, 1)
    num_frames = jnp.maximum(layout.image_count // in_frame, 1)
    one_more = layout.visual_valid & (time < total % num_frames)
    return total // num_frames + one_more
