"""What a trait of the config changes: shapes and values, on tiny random parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import tiny_config

from ivc_jax.config import DecoderConfig, RopeConfig
from ivc_jax.families import parse_config
from ivc_jax.nn import rope
from ivc_jax.nn import tower as towers
from ivc_jax.nn.decoder import DecoderBlock, attend_whole

CONFIG = parse_config(tiny_config())
PATCHES = np.random.default_rng(0).standard_normal((1, 16, CONFIG.vision.patch_values), np.float32)
PLACES = np.stack(np.indices((4, 4)), axis=-1).reshape(1, 16, 2).astype(np.int32)


def tower(places=PLACES, change=None, **traits):
    """Run a random tower with these traits; return tokens [4, D] and parameters."""
    config = dataclasses.replace(CONFIG.vision, **traits)
    params = jax.jit(lambda key: towers.init_params(config, key))(jax.random.key(0))
    if change is not None:
        change(params)
    encode = jax.jit(lambda *inputs: towers.encode(config, *inputs)[0])
    tokens = encode(params, jnp.asarray(PATCHES), jnp.asarray(places))
    return np.asarray(tokens[0]), params


def test_the_patch_embedding_may_have_a_bias():
    def set_bias(params):
        params["patch_embed"]["bias"] = jnp.linspace(-1, 1, CONFIG.vision.embed_dim)

    plain, params = tower()
    assert "bias" not in params["patch_embed"]
    zero, params = tower(patch_bias=True)
    assert params["patch_embed"]["bias"].shape == (CONFIG.vision.embed_dim,)
    np.testing.assert_array_equal(zero, plain)
    moved, _ = tower(patch_bias=True, change=set_bias)
    assert np.abs(moved - plain).max() > 1e-3


def test_without_rotary_places_say_nothing():
    turned, _ = tower(rotary=False)
    elsewhere, _ = tower(PLACES[:, ::-1], rotary=False)
    np.testing.assert_array_equal(turned, elsewhere)
    assert np.abs(tower()[0] - tower(PLACES[:, ::-1])[0]).max() > 1e-4


def test_norms_of_the_tower_read_their_epsilon():
    small, large = tower()[0], tower(norm_eps=1.0)[0]
    np.testing.assert_array_equal(small, tower(norm_eps=1e-6)[0])
    assert np.abs(small - large).max() > 1e-3


def test_a_block_with_normed_heads_and_no_biases_is_that_of_transformers(highest_precision):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen3 import modeling_qwen3 as modeling

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    theirs = transformers.Qwen3Config(**sizes, attn_implementation="eager")
    layer = modeling.Qwen3DecoderLayer(theirs, 0).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for name, weight in layer.named_parameters():
        noise = torch.randn(weight.shape, generator=draw)
        weight.copy_(1 + noise / 3 if "norm" in name else noise / weight.shape[-1] ** 0.5)
    hidden, N = torch.randn(2, 5, 32, generator=draw), 5
    places = torch.arange(N)[None].expand(2, N)
    turn = modeling.Qwen3RotaryEmbedding(theirs)(hidden, places)
    mask = torch.full((1, 1, N, N), float("-inf")).triu(1)
    expected = layer(hidden, attention_mask=mask, position_embeddings=turn)

    theta = theirs.rope_parameters["rope_theta"]
    config = DecoderConfig(1, 32, 48, 4, 2, 8, RopeConfig(16, theta), qkv_bias=False, qk_norm=True)
    params = {}
    for name, weight in layer.named_parameters():
        folder, leaf = name.removeprefix("self_attn.").removesuffix(".weight"), weight.numpy()
        scale = "norm" in folder
        inner = params.setdefault("mlp", {}) if folder.startswith("mlp.") else params
        inner[folder.removeprefix("mlp.")] = {"scale" if scale else "weight": leaf}
    angles = rope.angles(config.rope, jnp.broadcast_to(jnp.asarray(places, jnp.int32), (3, 2, N)))
    block = DecoderBlock(config)
    found, (keys, _) = block.apply({"params": params}, hidden.numpy(), angles, attend_whole)
    np.testing.assert_allclose(
        found, expected[0] if isinstance(expected, tuple) else expected, rtol=0, atol=1e-5
    )
    assert keys.shape == (2, N, 2, 16)
    shapes = jax.eval_shape(
        lambda: block.init(jax.random.key(0), hidden.numpy(), angles, attend_whole)["params"]
    )
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)


def test_interleaved_sections_take_turns():
    taking_turns = RopeConfig(16, 1e4, (4, 2, 2), interleaved=True)
    assert taking_turns.axis_of_plane.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    plain = dataclasses.replace(taking_turns, interleaved=False)
    assert plain.axis_of_plane.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert np.bincount(RopeConfig(128, 5e6, (24, 20, 20), None, True).axis_of_plane).tolist() == [
        24, 20, 20,
    ]  # fmt: skip


def test_interleaved_sections_turn_as_in_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    ours = RopeConfig(32, 1e4, (6, 5, 5), interleaved=True)
    settings = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}
    theirs = transformers.Qwen3VLTextConfig(head_dim=32, rope_parameters=settings)
    positions = np.random.default_rng(0).integers(0, 60, (3, 2, 7))
    cos, sin = Qwen3VLTextRotaryEmbedding(theirs)(torch.zeros(1), torch.from_numpy(positions))
    angles = np.asarray(rope.angles(ours, jnp.asarray(positions, jnp.int32)))
    np.testing.assert_allclose(np.cos(angles), cos[..., :16].numpy(), atol=1e-5)
    np.testing.assert_allclose(np.sin(angles), sin[..., :16].numpy(), atol=1e-5)
