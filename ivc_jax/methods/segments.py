"""Which visual tokens are ranked together and share a budget: images, samples, or video frames.

A segment is a run of neighbours in visual space, so its first and last token are found by one
running maximum instead of comparisons with every segment number.

token            a a a a b b - -        two images and padding
image_id         0 0 0 0 1 1 -1 -1
first            0 0 0 0 4 4 6 6
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ivc_jax.types import Layout, typed


@flax.struct.dataclass
class Segments:
    """A partition of the visual tokens of every sample."""

    number: jax.Array  # [B, V] int32, -1 for padding
    count: jax.Array  # [B, V] int32, tokens of this token's segment
    bound: int = flax.struct.field(pytree_node=False)  # exclusive bound on `number`


def images(layout: Layout) -> Segments:
    """Make every image, and every whole video, a segment."""
    return Segments(layout.image_id, layout.image_count, layout.num_images)


def samples(layout: Layout) -> Segments:
    """Pool all images of a sample in one segment."""
    number = jnp.where(layout.visual_valid, 0, -1)
    count = jnp.where(layout.visual_valid, layout.visual_count[:, None], 0)
    return Segments(number, count, 1)


def frames(layout: Layout) -> Segments:
    """Make every frame a segment; an image is one frame."""
    time = layout.grid[..., 0]
    B, V = time.shape
    if V == 0:
        return images(layout)
    # Frames and images both count up, so that a change of either begins a new frame.
    begins = _begins(layout.image_id) | _begins(time)
    number = jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1
    slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), (B, V))
    ends = jnp.concatenate([begins[:, 1:], jnp.ones((B, 1), bool)], axis=1)
    last = jax.lax.cummin(jnp.where(ends, slots, V), axis=1, reverse=True)
    count = last - _first(begins) + 1
    valid = layout.visual_valid
    return Segments(jnp.where(valid, number, -1), jnp.where(valid, count, 0), V)


@typed
def first_of_image(layout: Layout) -> Int[Array, "B V"]:
    """Return the visual index of the first token of each token's image."""
    return _first(_begins(layout.image_id))


def _begins(key: jax.Array) -> jax.Array:
    """Mark where a run of equal keys [B, V] begins."""
    changed = key[:, 1:] != key[:, :-1]
    return jnp.concatenate([jnp.ones_like(key[:, :1], bool), changed], axis=1)


def _first(begins: jax.Array) -> jax.Array:
    slots = jnp.arange(begins.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)
