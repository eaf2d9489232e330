"""Shared pytrees and the letters that name their dimensions.

B batch, N sequence slots, T text slots, V visual slots, K kept visual slots, R patch rows
(one row per video frame pair or image), P patches in a row, H query heads, G key/value heads,
C head width, D model width, F rotary planes, L layers, M images in a sample, J features that are
added to visual tokens between decoder blocks (`VisionConfig.deepstack`).

A sample sits at the left of its row and padding follows it:

    slot       0   1   2   3   4   5   6   7
    token     <s> <v>  i   i   i  </v> Q   -      i: image placeholder, -: padding
    visual             0   1   2                  index in visual space, 0..V-1
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import jaxtyped

_Function = TypeVar("_Function", bound=Callable)


def typed(function: _Function) -> _Function:
    """Check jaxtyping annotations of `function` while tracing if IVC_JAX_TYPECHECK=1.

    The tests set the variable; without it the function is returned untouched.
    """
    if os.environ.get("IVC_JAX_TYPECHECK") != "1":
        return function
    from beartype import beartype

    return jaxtyped(function, typechecker=beartype)


@flax.struct.dataclass
class Layout:
    """Where the visual tokens of each sample sit in the current sequence.

    Arrays [B, V] describe visual space, the rest describes the sequence. An image or a whole video
    is one segment, numbered from 0 within its sample. Padding has index 0, segment -1, grid -1,
    tiles 0 and count 0. Counts are those of the unpruned prompt and stay as they are when an
    earlier stage has already dropped tokens; `visual_origin` is the place of a token in the visual
    space of the unpruned prompt.
    """

    visual_index: jax.Array  # [B, V] int32, slot in the sequence, ascending over the valid ones
    visual_valid: jax.Array  # [B, V] bool
    visual_origin: jax.Array  # [B, V] int32, ascending over the valid ones
    image_id: jax.Array  # [B, V] int32
    grid: jax.Array  # [B, V, 3] int32, (frame, row, column) of the merged cell; a tile is a frame
    content: jax.Array  # [B, V] bool, shows a part of the picture
    tiles: jax.Array  # [B, V, 2] int32, (columns, rows) of the tiles of this token's image
    image_count: jax.Array  # [B, V] int32, unpruned token count of this token's image
    visual_count: jax.Array  # [B] int32, unpruned visual tokens of the sample
    text_index: jax.Array  # [B, T] int32, slot in the sequence
    text_valid: jax.Array  # [B, T] bool
    positions: jax.Array  # [3, B, N] int32, M-RoPE position ids (time, height, width)
    lengths: jax.Array  # [B] int32, valid slots of each row
    num_images: int = flax.struct.field(pytree_node=False)  # M, bound on segments of a sample
    visual_slots: int = flax.struct.field(pytree_node=False)  # V of the unpruned bucket
    num_positions: int = flax.struct.field(pytree_node=False)  # bound on position ids, exclusive


@flax.struct.dataclass
class Inputs:
    """A padded batch on device, everything that the compiled prefill reads."""

    tokens: jax.Array  # [B, N] int32
    layout: Layout
    next_position: jax.Array  # [B] int32, position id of the first generated token
    patches: jax.Array  # [R, P, patch values] float32, merge blocks together (`inputs.bucket`)
    patch_positions: jax.Array  # [R, P, 2] int32, (row, column) of a patch; -1 is padding
    # [B, V] int32, row in the merged tower output [R * P / merge², D]; below 0 a learned token
    visual_source: jax.Array
    visual: jax.Array | None = None  # [B, V, D], the tower's tokens (`engine.prefill.encode`)
    deepstack: jax.Array | None = None  # [J, B, V, D], added to them on the way
    objects: jax.Array | None = None  # [B, V] bool, holds a part of an object; None if nobody says
    relevance: jax.Array | None = None  # [B, V] float32, of this token's frame; None: nobody says

    def __repr__(self) -> str:
        # Leaves may be anything with the structure of these arrays: shardings, specifications.
        tokens, source, patches = (
            list(getattr(leaf, "shape", "?"))
            for leaf in (self.tokens, self.visual_source, self.patches)
        )
        tower = "" if self.visual is None else ", tower done"
        return f"Inputs(tokens {tokens}, visual tokens {source}, patches {patches}{tower})"


@flax.struct.dataclass
class Blend:
    """Few visual tokens that each kept one is a weighted sum of: what is not named has weight 0."""

    index: jax.Array  # [B, K, M] int32, in visual space
    weights: jax.Array  # [B, K, M] float32, 0 where not valid

    def mix(self, vectors: jax.Array) -> jax.Array:
        """Sum float32 vectors of visual tokens [..., B, V, D] by weight: [..., B, K, D]."""
        parts = []
        for index, weights in zip(*map(_list_last, (self.index, self.weights)), strict=True):
            index = index.reshape(*(1,) * (vectors.ndim - 3), *index.shape, 1)  # [..., B, K, 1]
            parts.append(jnp.take_along_axis(vectors, index, axis=-2) * weights[..., None])
        return sum(parts[1:], parts[0])


def _list_last(array: jax.Array) -> list[jax.Array]:
    return [array[..., part] for part in range(array.shape[-1])]


@flax.struct.dataclass
class Selection:
    """Kept visual tokens: ascending indices in visual space, valid ones first.

    With `weights` the hidden state of a kept token becomes the weighted sum of those of the V
    tokens that it came from, so that dropped tokens can be merged into kept ones. Of a stage that
    merges in the tower, a kept token may give its slot to the class token of its image.

    With `place` a kept token has the position ids of another one, which several may share: an image
    may get more tokens than it had. In the sequence it stands where that one was, or behind the
    kept token before it where that is farther:

        index   0  1  2  3  6      the order of the tokens; which slots they use up
        place   0  1  0  1  6      four stand where tokens 0 and 1 were, in this order
    """

    index: jax.Array  # [B, K] int32, 0 where not valid
    valid: jax.Array  # [B, K] bool
    weights: jax.Array | Blend | None = None  # [B, K, V] float32, 0 where not valid
    becomes_class: jax.Array | None = None  # [B, K] bool, see `methods.requests.ClassFeatures`
    place: jax.Array | None = None  # [B, K] int32, in visual space; None is `index`
    carry: Any = None  # what the next stage of the method wants to read (`methods.requests.Carry`)


@flax.struct.dataclass
class KVSpan:
    """Keys (already rotated) and values of consecutive layers that share one cache length.

    Values of no width are made of the keys, of which there is one for all heads (`nn.latent`).

    While tokens are decoded, heads lie before slots, [L, B, G, S, C]; of blocks apart there are
    L arrays instead.
    """

    keys: jax.Array  # [L, B, S, G, C]
    values: jax.Array  # [L, B, S, G, C]
    lengths: jax.Array  # [B] int32, valid slots; they come first
    shift: jax.Array | None = None  # [B] int32, how far renumbering moved the next position down

    @property
    def nbytes(self) -> int:
        """Bytes held by the key and value arrays."""
        return self.keys.nbytes + self.values.nbytes
