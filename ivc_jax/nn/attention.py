"""The one place where attention is computed."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.nn.stepwise import attend_stepwise, raise_logits
from ivc_jax.parallel.constraints import axis_size, partition
from ivc_jax.types import typed

# Shorter sequences would leave most of the TPU kernel's blocks empty.
_SPLASH_SLOTS = 256

# XLA's own attention holds all float32 scores at once. More than this many bytes go in steps.
_SCORE_BYTES = 2**28

# Rows so short are mostly moved and hardly multiplied: 1,024 windows of 16 patches and 16 heads
# take 0.32 s at once and 0.45 s in steps on CPU; 256 windows of 64 patches 0.69 and 0.38 s.
_SHORT_SLOTS = 32

# Scores of a step on CPU. 4,159 tokens and 12 heads of 128 take 1.04 s with 8 MB and 1.14 with 4
# (torch 0.72 in the same run, on cores that others used too); short sequences do not mind.
_CPU_STEP_BYTES = 2**23


# Traced once for all calls of equal shapes, in whatever program: three platforms are a third of the
# time that it takes to trace a prefill.
@partial(jax.jit, static_argnames="causal", inline=True)
@typed
def attend(
    queries: Float[Array, "B N H C"],
    keys: Float[Array, "B S G C"],
    values: Float[Array, "B S G E"],
    *,
    mask: Bool[Array, "#B 1 N S"] | None = None,
    lengths: Int[Array, "B"] | None = None,
    causal: bool = False,
) -> Float[Array, "B N H E"]:
    """Run grouped-query attention: a library's kernel where there is one, else in steps.

    Outputs of queries that may look at nothing, and of causal ones in slots of padding, are finite
    and mean nothing. Heads of values may be narrower than those of keys.

    Args:
        mask: True where a query may look at a key.
        lengths: valid keys of each row, counted from the left.
        causal: a query sees no key in a later slot.
    """
    if not queries.size:
        return jnp.zeros((*queries.shape[:3], values.shape[3]), queries.dtype)
    on_tpu = library = partial(_attend_by_library, causal=causal)
    if mask is None and keys.shape[1] == queries.shape[1] >= _SPLASH_SLOTS:
        on_tpu = partial(_run_locally, partial(_attend_by_splash, causal=causal))
    on_cpu = library
    if keys.shape[1] > _SHORT_SLOTS:
        in_steps = partial(attend_stepwise, causal=causal, step_bytes=_CPU_STEP_BYTES)
        on_cpu = partial(_run_locally, in_steps)
    return jax.lax.platform_dependent(
        *(queries, keys, values, lengths, mask),
        cpu=on_cpu,
        tpu=on_tpu,
        default=library,
    )


def _attend_by_library(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    lengths: jax.Array | None,
    mask: jax.Array | None,
    *,
    causal: bool,
) -> jax.Array:
    """Attend through cuDNN on GPU, else through XLA."""
    (B, N, H, _), S = queries.shape, keys.shape[1]
    implementation = _implementation(queries)
    if implementation is None and 4 * B * H * N * S > _SCORE_BYTES:
        in_steps = partial(attend_stepwise, causal=causal, step_bytes=_SCORE_BYTES)
        return _run_locally(in_steps, queries, keys, values, lengths, mask)
    width = values.shape[3]
    # The library wants values as wide as keys.
    wide = jnp.pad(values, ((0, 0), (0, 0), (0, 0), (0, queries.shape[3] - width)))
    mixed = jax.nn.dot_product_attention(
        queries,
        keys,
        wide,
        mask=mask,
        key_value_seq_lengths=lengths,
        is_causal=causal,
        implementation=implementation,
    )
    return mixed[..., :width]


def _implementation(queries: jax.Array) -> str | None:
    # cuDNN's kernel takes half precision only and pays off from two queries on (prefill, tower).
    half = queries.dtype in (jnp.bfloat16, jnp.float16)
    on_gpu = jax.default_backend() == "gpu"
    return "cudnn" if half and on_gpu and queries.shape[1] > 1 and _fits(queries) else None


def _fits(queries: jax.Array) -> bool:
    """Tell whether cuDNN's kernel takes heads so wide: up to 128, from Hopper on up to 256."""
    width = queries.shape[3]
    return width <= 128 or (
        width <= 256 and float(jax.local_devices()[0].compute_capability) >= 9.0
    )


def _attend_by_splash(*vectors: jax.Array | None, causal: bool) -> jax.Array:
    from ivc_jax.nn.splash import splash_attend  # waits for Pallas, which small models never do

    return splash_attend(*vectors[:4], causal=causal)  # without a mask


def _run_locally(
    run: Callable[..., jax.Array],
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    lengths: jax.Array | None,
    mask: jax.Array | None,
) -> jax.Array:
    """Run on each device of a mesh with its own samples and heads.

    The compiler cannot split a kernel, and would gather everywhere what a loop takes in steps.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return run(queries, keys, values, lengths, mask)
    if keys.shape[2] % axis_size("model"):
        # Fewer key heads than devices: with a key head to each query head, either split alike.
        repeats = queries.shape[2] // keys.shape[2]
        keys, values = (jnp.repeat(x, repeats, axis=2) for x in (keys, values))
    heads = partition(queries.shape, "data", None, "model", None)
    samples = partition(queries.shape[:1], "data")
    masks = samples if mask is not None and len(mask) > 1 else PartitionSpec()
    # A kernel does not say over which axes its results vary, so that cannot be checked.
    run = jax.shard_map(
        run,
        in_specs=(heads, heads, heads, samples, masks),
        out_specs=heads,
        check_vma=False,
    )
    return run(queries, keys, values, lengths, mask)


@typed
def attend_biased(
    queries: Float[Array, "B N H C"],
    keys: Float[Array, "B S G C"],
    values: Float[Array, "B S G E"],
    mask: Bool[Array, "#B 1 #N S"],
    bias: Float[Array, "#B 1 #N S"] | None = None,
) -> Float[Array, "B N H E"]:
    """Attend with something added to the logits; what modules are trained through.

    All scores at once, and derivatives of everything: not for long sequences.

    Args:
        mask: True where a query may look at a key.
        bias: added to the scaled logits of all heads.
    """
    width = values.shape[3]
    # the library wants values as wide as keys
    wide = jnp.pad(values, ((0, 0), (0, 0), (0, 0), (0, queries.shape[3] - width)))
    shape = jnp.broadcast_shapes(mask.shape, (1, 1, queries.shape[1], 1))
    mask = jnp.broadcast_to(mask, shape)
    return jax.nn.dot_product_attention(queries, keys, wide, bias, mask)[..., :width]


@typed
def attend_cached(
    queries: Float[Array, "B N H C"],
    keys: Float[Array, "B G S C"],
    values: Float[Array, "B G S E"],
    mask: Bool[Array, "#B 1 N S"],
) -> Float[Array, "B N H _"]:
    """Attend from a few queries to a cache whose slots lie behind its heads.

    Args:
        values: of no width where keys are the values, too (`nn.latent`): [B, N, H, C] comes out.
        mask: True where a query may look at a key; every query at one key or more.
    """
    B, N, H, C = queries.shape
    G = keys.shape[1]
    values = values if values.shape[3] else keys
    if N > 1:
        return attend(queries, keys.swapaxes(1, 2), values.swapaxes(1, 2), mask=mask)
    # One query: the products read the cache as it lies. The library's function copies it to this
    # order, 1.9 ms against 0.4 (4,200 slots, 12 heads, 2 key heads of 128, two cores).
    batch = ((0, 1), (0, 1))
    grouped = queries.reshape(B, G, H // G, C)
    logits = jax.lax.dot_general(
        grouped, keys, (((3,), (3,)), batch), preferred_element_type=jnp.float32
    )  # [B, G, H / G, S]
    raised = raise_logits(logits * C**-0.5, mask)  # [B, G, H / G, S]
    mixed = jax.lax.dot_general(raised.astype(values.dtype), values, (((3,), (2,)), batch))
    mixed = (mixed / raised.sum(axis=-1, keepdims=True)).astype(values.dtype)  # [B, G, H / G, E]
    return mixed.reshape(B, 1, H, -1)


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
    B, S, H = len(queries), keys.shape[1], queries.shape[2]
    weights_of, raise_part = _in_parts(queries, keys, visible, weights, ends)

    def add(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
        raised = raise_part(*part)  # [B, size, S]
        # A row that sees nothing has weight 0, or its shares of nothing would count.
        share = weights_of[part[1]] / raised.sum(axis=-1)  # [B, size]
        return total + jnp.einsum("bq,bqs->bs", share, raised), None

    chunks = len(weights_of)
    # [H * chunks] both: head by head
    parts = jnp.repeat(jnp.arange(H), chunks), jnp.tile(jnp.arange(chunks), H)
    total = jax.lax.scan(add, jnp.zeros((B, S), jnp.float32), parts)[0] / H
    return jnp.where(visible, total, 0.0)


@typed
def largest_attention_received(
    queries: Float[Array, "B Q H C"],
    keys: Float[Array, "B S G C"],
    visible: Bool[Array, "B S"],
    weights: Float[Array, "B Q"],
    ends: Int[Array, "B Q"] | None = None,
) -> Float[Array, "B S"]:
    """Take of each query and key the head that gives most, then sum over queries, weighted.

    As `attention_received`, which averages over heads, in cost and arguments.
    """
    weights_of, raise_part = _in_parts(queries, keys, visible, weights, ends)

    def add(total: jax.Array, chunk: jax.Array) -> tuple[jax.Array, None]:
        def compare(largest: jax.Array, head: jax.Array) -> tuple[jax.Array, None]:
            raised = raise_part(head, chunk)  # [B, size, S]
            return jnp.maximum(largest, raised / raised.sum(axis=-1, keepdims=True)), None

        none = jnp.zeros((*weights_of.shape[1:], keys.shape[1]), jnp.float32)  # [B, size, S]
        largest = jax.lax.scan(compare, none, jnp.arange(queries.shape[2]))[0]
        return total + jnp.einsum("bq,bqs->bs", weights_of[chunk], largest), None

    total = jnp.zeros((len(queries), keys.shape[1]), jnp.float32)
    total = jax.lax.scan(add, total, jnp.arange(len(weights_of)))[0]
    return jnp.where(visible, total, 0.0)


def _in_parts(
    queries: jax.Array,
    keys: jax.Array,
    visible: jax.Array,
    weights: jax.Array,
    ends: jax.Array | None,
) -> tuple[jax.Array, Callable[[jax.Array, jax.Array], jax.Array]]:
    """Cut queries into chunks whose scores of one head are few.

    Returns:
        Their weights [chunks, B, size], and the function that makes of a head and a chunk its
        probabilities [B, size, S], times one positive number a row.
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

    def raise_part(head: jax.Array, chunk: jax.Array) -> jax.Array:
        rows = queries_of[head, chunk] * C**-0.5  # [B, size, C]
        logits = jnp.einsum("bqc,bcs->bqs", rows, by_head[head // (H // G)])  # [B, size, S]
        seen = visible[:, None] & (jnp.arange(S) < ends_of[chunk][..., None])  # [B, size, S]
        return raise_logits(logits, seen)  # [B, size, S]

    return weights_of, raise_part
