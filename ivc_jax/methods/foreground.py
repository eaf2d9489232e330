"""Foreground by value similarity: what text and seeds look at (IVC-Prune, arXiv 2602.03060).

Values carry no rotation, so these rows measure content alone.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods import scoring
from ivc_jax.methods.base import TokenVectors
from ivc_jax.types import Layout, typed


@typed
def fill(
    foreground: Float[Array, "B V"],
    priority: Bool[Array, "B V"],
    target: Int[Array, "B V"],
    layout: Layout,
) -> Bool[Array, "B V"]:
    """Keep the priority tokens and top up with foreground until each image has its target.

    One ranking does both: foreground scores are probabilities, priority tokens get 2.
    """
    order = jnp.where(priority, 2.0, foreground)
    rank = scoring.rank_in_segment(order, layout.image_id, layout.visual_valid)
    return layout.visual_valid & ((rank < target) | priority)


@typed
def foreground_scores(
    values: TokenVectors,
    layout: Layout,
    seed_count: Int[Array, "B V"],
    num_seeds: int,
    query_offset: int,
) -> tuple[Float[Array, "B V"], Bool[Array, "B V"]]:
    """Score tokens by how much the text, and the tokens it likes best, resemble their values.

    P[q, j] = mean over heads of softmax_j(v[q] . v[j] / sqrt(C)) runs over the tokens j of one
    image. The text after that image gives s = mean of P[q, j]; the best tokens by s are the
    seeds; f is the mean over text and seed rows together, each row weighing the same.

    Args:
        seed_count: seeds of the image that the token is in.
        num_seeds: bound on the seeds of a sample.

    Returns:
        f, and the mask of the seeds. An image with no text after it has s = 0 everywhere.
    """
    visual, text = values.visual.astype(jnp.float32), values.text.astype(jnp.float32)
    queries = _text_queries(layout, query_offset)  # [B, M, T]
    from_text = _text_mass(visual, text, layout, queries)
    text_rows = scoring.spread(queries.sum(axis=2), layout.image_id)  # [B, V]

    mean = from_text / jnp.maximum(text_rows, 1)
    rank = scoring.rank_in_segment(mean, layout.image_id, layout.visual_valid)
    seeds = layout.visual_valid & (rank < seed_count)

    chosen = scoring.from_mask(seeds, num_seeds)
    rows = jnp.take_along_axis(visual, chosen.index[..., None, None], axis=1)  # [B, A, G, C]
    image = jnp.where(chosen.valid, jnp.take_along_axis(layout.image_id, chosen.index, axis=1), -1)
    same_image = (image[:, :, None] == layout.image_id[:, None]) & chosen.valid[:, :, None]
    from_seeds = _softmax(_similarity(rows, visual), same_image[:, None]).mean(axis=1).sum(axis=1)
    return (from_text + from_seeds) / jnp.maximum(text_rows + seed_count, 1), seeds


def _text_queries(layout: Layout, query_offset: int) -> jax.Array:
    """Mark the text tokens that act as queries of each image: bool [B, M, T].

    slot   0   1   2   3   4   5   6   7
    token <s> <v>  i   i  </v> Q   Q   Q      offset 2 skips </v> and the first Q
    """
    images = jnp.arange(layout.num_images)
    member = layout.image_id[:, None] == images[:, None]  # [B, M, V]
    last = jnp.where(member, layout.visual_index[:, None], -1).max(axis=2, initial=-1)[..., None]
    later = layout.text_index[:, None] >= last + 1 + query_offset
    return (last >= 0) & later & layout.text_valid[:, None]


def _text_mass(visual: jax.Array, text: jax.Array, layout: Layout, queries: jax.Array) -> jax.Array:
    """Add up the text rows of P over the queries of each image: [B, V]."""
    logits = _similarity(text, visual)  # [B, G, T, V]

    def add_image(total: jax.Array, image: tuple) -> tuple[jax.Array, None]:
        number, asked = image
        member = (layout.image_id == number) & layout.visual_valid
        rows = _softmax(logits, member[:, None, None]).mean(axis=1)  # [B, T, V]
        return total + jnp.where(asked[:, :, None], rows, 0.0).sum(axis=1), None

    empty = jnp.zeros(layout.image_id.shape, jnp.float32)
    images = (jnp.arange(layout.num_images), jnp.moveaxis(queries, 1, 0))
    return jax.lax.scan(add_image, empty, images)[0]


def _similarity(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return v[q] . v[j] / sqrt(C) for each key/value head: float32 [B, G, Q, V]."""
    exact = jax.lax.Precision.HIGHEST  # accelerators would multiply in half precision
    return jnp.einsum("bqgc,bvgc->bgqv", rows, columns, precision=exact) * rows.shape[-1] ** -0.5


def _softmax(logits: jax.Array, member: jax.Array) -> jax.Array:
    """Normalise over the members of the last axis; everything else gets 0."""
    member = jnp.broadcast_to(member, logits.shape)
    logits = jnp.where(member, logits, -jnp.inf)
    top = logits.max(axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
    raised = jnp.exp(logits - top)
    # Masked again: NaN of one image must not reach another.
    total = raised.sum(axis=-1, keepdims=True)
    return jnp.where(member, raised / jnp.maximum(total, jnp.finfo(jnp.float32).tiny), 0.0)
