"""Raters: the text tokens that fit the image (SparseVLM, arXiv 2410.04417, section 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ivc_jax.methods.base import TokenVectors
from ivc_jax.types import Layout, typed


@typed
def match(
    embeddings: TokenVectors, layout: Layout
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Measure how much of the visual tokens' similarity each text token draws .

    A softmax of the plain products over the text after the first visual token, averaged over the
    visual tokens; 0 for other text.

    Returns:
        The match, and the text that it runs over.
    """
    far = jnp.iinfo(jnp.int32).max  # a sample without visual tokens asks nothing
    first = jnp.where(layout.visual_valid, layout.visual_index, far).min(axis=1, initial=far)
    asked = layout.text_valid & (layout.text_index > first[:, None])
    visual, text = (part.astype(jnp.float32) for part in (embeddings.visual, embeddings.text))
    exact = jax.lax.Precision.HIGHEST
    logits = jnp.einsum("bvd,btd->bvt", visual, text, precision=exact)
    both = asked[:, None] & layout.visual_valid[..., None]
    logits = jnp.where(both, logits, -jnp.inf)
    raised = jnp.exp(logits - logits.max(axis=2, keepdims=True, initial=jnp.finfo(jnp.float32).min))
    rows = raised / jnp.maximum(raised.sum(axis=2, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return rows.sum(axis=1) / jnp.maximum(layout.visual_valid.sum(axis=1), 1)[:, None], asked


@typed
def raters(embeddings: TokenVectors, layout: Layout) -> Bool[Array, "B T"]:
    """Mark the text that matches the visual tokens better than average; all of it if none does."""
    score, asked = match(embeddings, layout)
    mean = score.sum(axis=1) / jnp.maximum(asked.sum(axis=1), 1)
    chosen = asked & (score > mean[:, None])
    return jnp.where(chosen.any(axis=1, keepdims=True), chosen, asked)
