"""Similarity to the question: the cosine of visual tokens with the mean vector of the text."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ivc_jax.methods.requests import TokenVectors
from ivc_jax.methods.select import normalize
from ivc_jax.types import Layout, typed


@typed
def mark_question(layout: Layout) -> Bool[Array, "B T"]:
    """Mark the text after the first visual token of a sample, chat marks included.

    slot    0   1   2   3   4   5   6
    token  sys <v>  i   i  </v> Q   -       marked: </v> and Q
    """
    end = layout.positions.shape[2]  # N
    slots = jnp.where(layout.visual_valid, layout.visual_index, end)
    return layout.text_valid & (layout.text_index > slots.min(axis=1, initial=end)[:, None])


@typed
def mark_behind(layout: Layout) -> Bool[Array, "B T"]:
    """Mark the text after the last visual token of a sample."""
    last = jnp.where(layout.visual_valid, layout.visual_index, -1).max(axis=1, initial=-1)  # [B]
    return layout.text_valid & (layout.text_index > last[:, None])


@typed
def compare_with_question(vectors: TokenVectors, layout: Layout) -> Float[Array, "B V"]:
    """Compare every visual token with the mean of the text that `mark_question` marks.

    Without such text all cosines are 0.
    """
    asked = mark_question(layout)[..., None]  # [B, T, 1]
    text = jnp.where(asked, vectors.text.astype(jnp.float32), 0.0)  # [B, T, D]
    mean = text.sum(axis=1) / jnp.maximum(asked.sum(axis=1), 1)  # [B, D]
    exact = jax.lax.Precision.HIGHEST
    visual, mean = normalize(vectors.visual), normalize(mean[:, None])[:, 0]
    return jnp.einsum("bvd,bd->bv", visual, mean, precision=exact)
