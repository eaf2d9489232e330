"""Visual tokens read as words (EmbedLens, arXiv 2603.00510): nearest input embeddings, classes."""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8

from ivc_jax.methods.select import normalize
from ivc_jax.types import typed

ALIVE, VIT_SINK, LLM_SINK, DEAD = range(4)
CLASSES = ("alive", "vit_sink", "llm_sink", "dead")
_CHUNK = 8192  # words compared at a time: no [B, V, vocabulary] array


@flax.struct.dataclass
class Nearest:
    """The words nearest to every visual token by cosine, and how near two parts of them are."""

    ids: jax.Array  # [B, V, k] int32, the nearest first
    cosines: jax.Array  # [B, V, k] float32, falling
    inside: jax.Array  # [B, V] float32, largest cosine to one of the words asked about
    outside: jax.Array  # [B, V] float32, largest cosine to another word


@typed
def probe(
    hidden: Float[Array, "B V D"],
    table: Float[Array, "W D"],
    k: int = 3,
    words: tuple[int, ...] = (),
) -> Nearest:
    """Find the k words of largest cosine to each token, the first of equal ones.

    The vocabulary passes by in chunks, with the k best so far: V W D products, float32 throughout.

    Args:
        hidden: any dtype; padding may hold anything, and its own results are anything.
        table: embeddings of the W words; a zero vector has cosine 0 to everything.
        words: ids that `inside` and `outside` tell apart. Without any, or without others, the
            largest cosine is -1.
    """
    B, V, _ = hidden.shape
    W = len(table)
    k, size = min(k, W), min(_CHUNK, W)
    units = normalize(hidden)  # [B, V, D]
    asked = np.zeros(W, bool)
    asked[list(words)] = True

    def step(number: jax.Array, best: Nearest) -> Nearest:
        # The last chunk reaches back into the one before, whose words have been seen.
        start = jnp.minimum(number * size, W - size)
        rows = jax.lax.dynamic_slice_in_dim(table, start, size)  # [C, D]
        ids = start + jnp.arange(size, dtype=jnp.int32)  # [C]
        exact = jax.lax.Precision.HIGHEST
        cosine = jnp.einsum("bvd,cd->bvc", units, normalize(rows[None])[0], precision=exact)
        cosine = jnp.where(ids >= number * size, cosine, -jnp.inf)  # [B, V, C]
        # The best so far have lower ids and stand first: `top_k` takes the first of equals.
        cosines = jnp.concatenate([best.cosines, cosine], axis=2)
        every = jnp.concatenate([best.ids, jnp.broadcast_to(ids, cosine.shape)], axis=2)
        cosines, place = jax.lax.top_k(cosines, k)
        mine = jax.lax.dynamic_slice_in_dim(jnp.asarray(asked), start, size)  # [C]
        return Nearest(
            jnp.take_along_axis(every, place, axis=2),
            cosines,
            jnp.maximum(best.inside, jnp.where(mine, cosine, -jnp.inf).max(axis=2)),
            jnp.maximum(best.outside, jnp.where(mine, -jnp.inf, cosine).max(axis=2)),
        )

    least = jnp.full((B, V), -1.0)
    best = Nearest(jnp.zeros((B, V, k), jnp.int32), jnp.full((B, V, k), -jnp.inf), least, least)
    return jax.lax.fori_loop(0, -(-W // size), step, best)


@typed
def classify(ids: Int[Array, "B V k"], words: Sequence[Sequence[int]]) -> Int8[Array, "B V"]:
    """Say what each token is, by its nearest words: `ALIVE`, `VIT_SINK`, `LLM_SINK` or `DEAD`.

    A token is of a class if one of the class's words is among its own. Of several classes the
    first counts (not published: chosen).

    Args:
        words: ids of the words of ViT sinks, LLM sinks and dead tokens.
    """
    kind = jnp.full(ids.shape[:2], ALIVE, jnp.int8)
    for number, members in reversed(list(enumerate(words, 1))):
        kind = jnp.where(any_of(ids, members), jnp.int8(number), kind)
    return kind


def any_of(ids: jax.Array, members: Sequence[int]) -> jax.Array:
    """Mark the tokens that have one of the words among theirs, [B, V, k] to bool [B, V]."""
    found: list[Bool[Array, "B V"]] = [(ids == member).any(axis=2) for member in members]
    return functools.reduce(jnp.logical_or, found, jnp.zeros(ids.shape[:2], bool))
