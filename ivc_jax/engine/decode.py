"""Greedy decode in one compiled loop over per-span caches.

A span's cache has S prompt slots, of which the first `lengths[b]` are valid; generated tokens are
written behind them, at the same slot for every sample:

    prompt slots          generated
    k k k k k - - -       g g g . . .        -: padding, never attended
    k k k k k k k -       g g g . . .
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.engine.prefill import Prefill, prefill, with_rope
from ivc_jax.inputs.batch import Batch
from ivc_jax.methods.base import DENSE, Method
from ivc_jax.model import Model
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.attention import attend
from ivc_jax.parallel.constraints import constrain_cache, on_mesh
from ivc_jax.types import Inputs, KVSpan


@dataclasses.dataclass(frozen=True)
class Output:
    """Generated tokens and what the prompt kept.

    Attributes:
        tokens: [B, T] int32, 0 behind the end of a sample.
        lengths: [B] int32, generated tokens of each sample, the stop token included.
        kept: per sample, ascending positions of the unpadded prompt that survived.
        kv_bytes: bytes of the cache arrays after prefill, all samples together.
    """

    tokens: jax.Array
    lengths: jax.Array
    kept: list[np.ndarray]
    kv_bytes: int


def generate(
    model: Model,
    batch: Batch | Inputs,
    method: Method = DENSE,
    max_new_tokens: int = 64,
    stop_ids: tuple[int, ...] = (),
) -> Output:
    """Answer prompts greedily; ties go to the lowest token id.

    Args:
        method: how visual tokens are pruned; the default prunes nothing.
        max_new_tokens: T, a static size.
        stop_ids: tokens that end a sample; none means that all T tokens are generated.

    Raises:
        MethodError, InputError: as `prefill`.
        ValueError: max_new_tokens below 1.
    """
    return decode(model, prefill(model, batch, method), max_new_tokens, stop_ids)


def decode(
    model: Model, prompt: Prefill, max_new_tokens: int = 64, stop_ids: tuple[int, ...] = ()
) -> Output:
    """Continue from a prefill; arguments as in `generate`."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    config = with_rope(model.config, prompt.rope)
    # NumPy: an array on one device could not join those of several processes
    stop = np.asarray(stop_ids, np.int32).reshape(-1)
    with on_mesh(model.mesh):
        tokens, lengths = run_decode(
            config,
            max_new_tokens,
            model.params["decoder"],
            prompt.logits,
            prompt.cache,
            prompt.next_position,
            stop,
        )
    return Output(tokens=tokens, lengths=lengths, kept=prompt.kept, kv_bytes=prompt.kv_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def run_decode(
    config: ModelConfig,
    max_new_tokens: int,
    params: dict[str, Any],
    logits: jax.Array,
    cache: tuple[KVSpan, ...],
    next_position: jax.Array,
    stop_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Compiled body of `decode`; returns tokens [B, T] and lengths [B]."""
    B = logits.shape[0]
    # The last generated token is never fed back, so it needs no slot.
    grow = ((0, 0), (0, 0), (0, max_new_tokens - 1), (0, 0), (0, 0))
    grown = tuple(
        tuple(constrain_cache(jnp.pad(x, grow)) for x in (span.keys, span.values)) for span in cache
    )

    def emit(step, logits, tokens, lengths, done):
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        tokens = tokens.at[:, step].set(jnp.where(done, 0, token))
        return token, tokens, lengths + ~done, done | jnp.isin(token, stop_ids)

    def unfinished(state: tuple) -> jax.Array:
        step, _, _, _, done, _ = state
        return (step < max_new_tokens) & ~done.all()

    def advance(state: tuple) -> tuple:
        step, token, tokens, lengths, done, grown = state
        logits, grown = _step(config, params, token, next_position, step - 1, cache, grown)
        return step + 1, *emit(step, logits, tokens, lengths, done), grown

    nothing = jnp.zeros((B, max_new_tokens), jnp.int32)
    first = emit(0, logits, nothing, jnp.zeros(B, jnp.int32), jnp.zeros(B, bool))
    state = jax.lax.while_loop(unfinished, advance, (jnp.int32(1), *first, grown))
    return state[2], state[3]


def _step(
    config: ModelConfig,
    params: dict[str, Any],
    token: jax.Array,
    next_position: jax.Array,
    written: jax.Array,
    cache: tuple[KVSpan, ...],
    grown: tuple[tuple[jax.Array, jax.Array], ...],
) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]:
    """Run one token [B] through all layers; `written` generated tokens are cached already."""
    sizes = config.decoder
    hidden = decoder.embed(params, token[:, None])
    layer, results = 0, []
    for span, (keys, values) in zip(cache, grown, strict=True):
        place = next_position + written - (0 if span.shift is None else span.shift)
        angles = rope.angles(sizes.rope, jnp.broadcast_to(place, (3, *token.shape))[..., None])
        count, prompt_slots = span.keys.shape[0], span.keys.shape[2]
        column = jnp.arange(keys.shape[2])
        mask = (column < span.lengths[:, None]) | (
            (column >= prompt_slots) & (column <= prompt_slots + written)
        )
        body = partial(
            _cached_layer, sizes, params["layers"], angles, mask[:, None, None], layer,
            prompt_slots + written,
        )  # fmt: skip
        (hidden, keys, values), _ = jax.lax.scan(body, (hidden, keys, values), jnp.arange(count))
        results.append((keys, values))
        layer += count
    return decoder.logits(sizes, params, hidden[:, 0]), tuple(results)


def _cached_layer(sizes, layers, angles, mask, first, slot, carry, index):
    """Write one token's key and value at `slot` of the stacked cache, then attend to the cache."""
    hidden, keys, values = carry
    block = decoder.DecoderBlock(sizes)
    params = {"params": decoder.layer_params(layers, first + index)}
    query, key, value = block.apply(params, hidden, angles, method="qkv")
    start = (index, 0, slot, 0, 0)
    # One small in-place write into the loop's own buffer, never a copy of a layer's cache.
    keys = jax.lax.dynamic_update_slice(keys, key[None], start)
    values = jax.lax.dynamic_update_slice(values, value[None], start)
    at_layer = partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
    mixed = attend(query, at_layer(keys), at_layer(values), mask=mask)
    return (block.apply(params, hidden, mixed, method="mix"), keys, values), None
