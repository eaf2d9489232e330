"""The one place where attention is computed."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.types import typed


@typed
def attend(
    queries: Float[Array, "B N H C"],
    keys: Float[Array, "B S G C"],
    values: Float[Array, "B S G C"],
    *,
    mask: Bool[Array, "#B 1 N S"] | None = None,
    lengths: Int[Array, "B"] | None = None,
    causal: bool = False,
) -> Float[Array, "B N H C"]:
    """Run grouped-query attention through the library kernel.

    Args:
        mask: True where a query may look at a key.
        lengths: valid keys of each row, counted from the left.
        causal: a query sees no key in a later slot.
    """
    plain = partial(_attend_plainly, mask=mask, causal=causal)
    if mask is None and keys.shape[1] == queries.shape[1] >= _SPLASH_SLOTS:
        from ivc_jax.nn.splash import splash_attend  # waits for Pallas, which small models never do

        return jax.lax.platform_dependent(
            queries, keys, values, lengths, tpu=partial(splash_attend, causal=causal), default=plain
        )
    return plain(queries, keys, values, lengths)


# Shorter sequences would leave most of the TPU kernel's blocks empty.
_SPLASH_SLOTS = 256


def _attend_plainly(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    lengths: jax.Array | None,
    *,
    mask: jax.Array | None,
    causal: bool,
) -> jax.Array:
    """Attend through XLA, or through cuDNN on GPU."""
    implementation = _implementation(queries)
    if implementation is None and mask is None and not causal:
        return _attend_in_chunks(queries, keys, values, lengths)
    return jax.nn.dot_product_attention(
        queries,
        keys,
        values,
        mask=mask,
        key_value_seq_lengths=lengths,
        is_causal=causal,
        implementation=implementation,
    )


# XLA's own attention holds all float32 scores at once: 2.3 GB a block for the tower's 16 heads and
# 6,000 patches. More than this many bytes are worked off in chunks of queries.
_SCORE_BYTES = 2**28


def _attend_in_chunks(
    queries: jax.Array, keys: jax.Array, values: jax.Array, lengths: jax.Array | None
) -> jax.Array:
    """Attend without a mask between queries and keys, few enough queries at a time."""
    B, N, H, C = queries.shape
    chunks = min(N, -(-4 * B * H * N * keys.shape[1] // _SCORE_BYTES))  # 4 bytes a score

    def attend_chunk(chunk: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            chunk, keys, values, key_value_seq_lengths=lengths, implementation="xla"
        )

    if chunks <= 1:
        return attend_chunk(queries)
    size = -(-N // chunks)  # queries of a chunk
    # [B, chunks * size, H, C]
    padded = jnp.pad(queries, ((0, 0), (0, chunks * size - N), (0, 0), (0, 0)))
    split = jnp.moveaxis(padded.reshape(B, chunks, size, H, C), 1, 0)  # [chunks, B, size, H, C]
    mixed = jnp.moveaxis(jax.lax.map(attend_chunk, split), 0, 1)  # [B, chunks, size, H, C]
    return mixed.reshape(B, chunks * size, H, C)[:, :N]


def _implementation(queries: jax.Array) -> str | None:
    # cuDNN's kernel takes half precision only and pays off from two queries on (prefill, tower).
    half = queries.dtype in (jnp.bfloat16, jnp.float16)
    on_gpu = jax.default_backend() == "gpu"
    return "cudnn" if half and on_gpu and queries.shape[1] > 1 else None


@typed
def attend_cached(
    queries: Float[Array, "B N H C"],
    keys: Float[Array, "B G S C"],
    values: Float[Array, "B G S C"],
    mask: Bool[Array, "#B 1 N S"],
) -> Float[Array, "B N H C"]:
    """Attend from a few queries to a cache whose slots lie behind its heads.

    Args:
        mask: True where a query may look at a key; every query at one key or more.
    """
    B, N, H, C = queries.shape
    G = keys.shape[1]
    if N > 1:
        return attend(queries, keys.swapaxes(1, 2), values.swapaxes(1, 2), mask=mask)
    # One query: the products read the cache as it lies. The library's function copies it to this
    # order, 1.9 ms against 0.4 (4,200 slots, 12 heads, 2 key heads of 128, two cores).
    batch = ((0, 1), (0, 1))
    grouped = queries.reshape(B, G, H // G, C)
    logits = jax.lax.dot_general(
        grouped, keys, (((3,), (3,)), batch), preferred_element_type=jnp.float32
    )  # [B, G, H / G, S]
    shares = jax.nn.softmax(jnp.where(mask, logits * C**-0.5, _NEVER), axis=-1)
    mixed = jax.lax.dot_general(shares.astype(values.dtype), values, (((3,), (2,)), batch))
    return mixed.reshape(B, 1, H, C)


@typed
def attention_rows(
    queries: Float[Array, "B Q H C"],
    keys: Float[Array, "B S G C"],
    mask: Bool[Array, "B Q S"],
) -> Float[Array, "B H Q S"]:
    """Return the float32 attention probabilities of a few chosen queries.

    Pruning methods read these; only the asked rows are formed, never an N x N map. A row whose
    mask is empty is all zeros.
    """
    B, Q, H, C = queries.shape
    G = keys.shape[2]
    # [B, Q, G, H / G, C]: consecutive query heads share a key head
    grouped = queries.reshape(B, Q, G, H // G, C).astype(jnp.float32)
    # [B, G, H / G, Q, S]
    logits = jnp.einsum("bqgrc,bsgc->bgrqs", grouped, keys.astype(jnp.float32)) * C**-0.5
    visible = mask[:, None, None]  # [B, 1, 1, Q, S]
    rows = jax.nn.softmax(logits, axis=-1, where=visible)
    return jnp.where(visible, rows, 0.0).reshape(B, H, Q, -1)  # [B, H, Q, S]


# Scores of one key head at a time, this many bytes of them: plain matrix products over few enough
# rows for a CPU's cache, 2.5 times faster there than all heads at once (4,096 patches, 16 heads).
_RECEIVED_BYTES = 2**23
_NEVER = -1e30  # a logit; finite, because a row of nothing but infinities would be NaN


@typed
def attention_received(
    queries: Float[Array, "B Q H C"],
    keys: Float[Array, "B S G C"],
    visible: Bool[Array, "B S"],
    weights: Float[Array, "B Q"],
    ends: Int[Array, "B Q"] | None = None,
) -> Float[Array, "B S"]:
    """Sum attention probabilities over queries, weighted, and average over heads: float32.

    Quadratic in time, linear in memory: chunks of queries pass by, no map is kept.

    Args:
        visible: keys that may be seen at all.
        weights: of the queries; one of weight 0 counts nowhere.
        ends: a query sees only keys in slots below its own end.
    """
    B, Q, H, C = queries.shape
    S, G = keys.shape[1:3]
    chunks = min(Q, -(-4 * B * Q * S // _RECEIVED_BYTES))
    size = -(-Q // chunks)  # queries of a chunk
    ends = jnp.full((B, Q), S) if ends is None else ends
    by_head = jnp.moveaxis(keys.astype(jnp.float32), 2, 0).swapaxes(2, 3)  # [G, B, C, S]

    def cut(array: jax.Array) -> jax.Array:
        """Cut along axis 1: [chunks, B, size, ...]."""
        padding = ((0, 0), (0, chunks * size - Q), *((0, 0),) * (array.ndim - 2))
        # Queries added to fill the last chunk have weight 0 and end 0.
        padded = jnp.pad(array, padding).reshape(B, chunks, size, *array.shape[2:])
        return jnp.moveaxis(padded, 1, 0)

    queries_of = jnp.moveaxis(cut(queries.astype(jnp.float32)), 3, 0)  # [H, chunks, B, size, C]
    weights_of, ends_of = cut(weights), cut(ends)  # [chunks, B, size] both

    def add(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
        head, chunk = part
        rows = queries_of[head, chunk] * C**-0.5  # [B, size, C]
        logits = jnp.einsum("bqc,bcs->bqs", rows, by_head[head // (H // G)])  # [B, size, S]
        seen = visible[:, None] & (jnp.arange(S) < ends_of[chunk][..., None])  # [B, size, S]
        logits = jnp.where(seen, logits, _NEVER)
        # A row that sees nothing has weight 0, or its shares of nothing would count.
        raised = jnp.exp(logits - logits.max(axis=-1, keepdims=True))  # [B, size, S]
        share = weights_of[chunk] / raised.sum(axis=-1)  # [B, size]
        return total + jnp.einsum("bq,bqs->bs", share, raised), None

    # [H * chunks] both: head by head
    parts = jnp.repeat(jnp.arange(H), chunks), jnp.tile(jnp.arange(chunks), H)
    total = jax.lax.scan(add, jnp.zeros((B, S), jnp.float32), parts)[0] / H
    return jnp.where(visible, total, 0.0)
