"""The one place where attention is computed."""

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
    return jax.nn.dot_product_attention(
        queries,
        keys,
        values,
        mask=mask,
        key_value_seq_lengths=lengths,
        is_causal=causal,
        implementation=_implementation(queries),
    )


def _implementation(queries: jax.Array) -> str | None:
    # cuDNN's kernel takes half precision only and pays off from two queries on (prefill, tower).
    half = queries.dtype in (jnp.bfloat16, jnp.float16)
    on_gpu = jax.default_backend() == "gpu"
    return "cudnn" if half and on_gpu and queries.shape[1] > 1 else None


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
    grouped = queries.reshape(B, Q, G, H // G, C).astype(jnp.float32)
    logits = jnp.einsum("bqgrc,bsgc->bgrqs", grouped, keys.astype(jnp.float32)) * C**-0.5
    visible = mask[:, None, None]
    rows = jax.nn.softmax(logits, axis=-1, where=visible)
    return jnp.where(visible, rows, 0.0).reshape(B, H, Q, -1)
