"""Latent attention: both forms are one, caches hold vectors, and values may be narrow."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.config import DecoderConfig, RopeConfig
from ivc_jax.decoder_parts import LatentConfig
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.attention import attend, attend_cached
from ivc_jax.nn.latent import LatentHeads
from ivc_jax.nn.splash import splash_attend
from ivc_jax.nn.stepwise import attend_stepwise

pytestmark = pytest.mark.usefixtures("highest_precision")

CONFIG = DecoderConfig(
    *(2, 32, 48, 4, 4, 16),
    rope=RopeConfig(head_dim=8, theta=100.0),
    latent=LatentConfig(rank=12, query_rank=None, plain_dim=6, value_dim=10),
)
LENGTH = 9


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def make_heads(config):
    """Return a bound module and the angles of LENGTH slots."""
    heads, x = LatentHeads(config), draw(2, LENGTH, 32)
    places = jnp.broadcast_to(jnp.arange(LENGTH), (3, 2, LENGTH))
    angles = rope.angles(config.rope, places)
    params = heads.init(jax.random.key(0), x, angles, method=forms)
    return heads.bind(params), x, angles


def forms(heads, x, angles):
    """Touch every projection, so that `init` makes them all."""
    queries, latents = heads.project(x, angles)
    return heads.expand(latents), queries


@pytest.mark.parametrize("query_rank", [None, 5])
def test_both_forms_attend_alike(query_rank):
    latent = dataclasses.replace(CONFIG.latent, query_rank=query_rank)
    heads, x, angles = make_heads(dataclasses.replace(CONFIG, latent=latent))
    queries, latents = heads.project(x, angles)
    assert queries.shape == (2, LENGTH, 4, 14)
    assert latents.shape == (2, LENGTH, 1, 20)
    keys, values = heads.expand(latents)
    assert (keys.shape, values.shape) == ((2, LENGTH, 4, 14), (2, LENGTH, 4, 10))
    expanded = attend(queries, keys, values, causal=True)
    mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None, None]
    cache = latents.swapaxes(1, 2)  # [B, 1, S, rank + F2]
    mixed = attend_cached(heads.absorb(queries), cache, cache[..., :0], mask)
    np.testing.assert_allclose(heads.release(mixed), expanded, rtol=0, atol=1e-5)
    # and one query alone, which takes another way
    last = attend_cached(heads.absorb(queries[:, -1:]), cache, cache[..., :0], mask[:, :, -1:])
    np.testing.assert_allclose(heads.release(last), expanded[:, -1:], rtol=0, atol=1e-5)


def test_a_vector_is_normed_and_the_shared_key_turned():
    heads, x, angles = make_heads(CONFIG)
    _, latents = heads.project(x, angles)
    _, unturned = heads.project(x, jnp.zeros_like(angles))
    np.testing.assert_array_equal(latents[..., :12], unturned[..., :12])
    np.testing.assert_allclose(jnp.mean(latents[..., :12] ** 2, -1), 1.0, atol=1e-4)
    turned = rope.rotate(unturned[..., 12:], angles)
    np.testing.assert_array_equal(latents[..., 12:], turned)


def test_a_block_hands_on_what_caches_hold():
    layers = tuple(
        decoder.DecoderBlock(CONFIG).init(
            jax.random.key(i), draw(1, 1, 32), jnp.zeros((1, 1, 4)), decoder.attend_whole
        )["params"]
        for i in range(2)
    )
    hidden = draw(2, LENGTH, 32)
    angles = rope.angles(CONFIG.rope, jnp.broadcast_to(jnp.arange(LENGTH), (3, 2, LENGTH)))
    _, (keys, values) = decoder.run_span(CONFIG, layers, hidden, angles, 0, 2)
    assert keys.shape == (2, 2, LENGTH, 1, 20)
    assert values.shape == (2, 2, LENGTH, 1, 0)
    _, wanted_keys, wanted_values = decoder.project(CONFIG, layers, hidden, angles, 0)
    found = decoder.expand(CONFIG, layers, 0, keys[0], values[0])
    np.testing.assert_allclose(found[0], wanted_keys, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1], wanted_values, rtol=0, atol=1e-6)


def plain_attention(queries, keys, values):
    """Causal attention, written out."""
    logits = jnp.einsum("bnhc,bshc->bhns", queries, keys) * queries.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    return jnp.einsum("bhns,bshe->bnhe", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), values)


WAYS = {
    "in steps": partial(attend_stepwise, causal=True, step_bytes=2**14),
    "library": partial(attend, causal=True),
    "kernel of TPUs": partial(splash_attend, causal=True, interpret=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_values_may_be_narrower_than_keys(way):
    slots = 20 if way == "library" else 256
    queries, keys = draw(2, slots, 2, 24), draw(2, slots, 2, 24, seed=1)
    values = draw(2, slots, 2, 16, seed=2)
    found = WAYS[way](queries, keys, values)
    np.testing.assert_allclose(found, plain_attention(queries, keys, values), rtol=0, atol=1e-5)
