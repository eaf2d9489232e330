"""The decoder against transformers' Qwen2-VL text model, part by part and whole."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.model import load_params, read_config
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.attention import attend
from ivc_jax.nn.layers import GatedMLP

pytestmark = pytest.mark.usefixtures("highest_precision")

MODULE, LOGITS = 1e-5, 1e-4
LENGTHS, SLOTS = (13, 9), 16  # valid slots of two samples; both are padded on the right


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model on both sides and a ragged batch."""

    config: object
    params: dict
    reference: object  # transformers' Qwen2VLForConditionalGeneration
    tokens: np.ndarray  # [B, N]
    positions: np.ndarray  # [3, B, N]

    @property
    def angles(self):
        return rope.angles(self.config.rope, jnp.asarray(self.positions))

    def hidden(self, seed=0):
        shape = (len(LENGTHS), SLOTS, self.config.hidden_size)
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def layer(self, index):
        return self.params["layers"][index]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def case(request, tiny_hf, load_torch):
    path = tiny_hf(tied=request.param)
    config = read_config(path)
    params = load_params(path, config, np.dtype(np.float32))["decoder"]
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, 256, (len(LENGTHS), SLOTS)).astype(np.int32)
    # Unlike each other and not ascending: every axis has to turn its own planes.
    positions = draw.integers(0, 300, (3, len(LENGTHS), SLOTS)).astype(np.int32)
    return Case(config.decoder, params, load_torch(path), tokens, positions)


def assert_near(ours, theirs, tolerance=MODULE, relative=True):
    """Compare valid slots; relative to the largest value unless told otherwise."""
    theirs = np.asarray(theirs)
    difference = np.abs(np.asarray(ours) - theirs).max()
    difference /= np.abs(theirs).max() if relative else 1.0
    assert difference <= tolerance, f"difference {difference:.2e}"


def valid(array):
    """Join the valid slots of [B, N, ...]."""
    return np.concatenate([np.asarray(array)[row, :count] for row, count in enumerate(LENGTHS)])


def torch_mask():
    import torch

    return torch.tensor([[slot < count for slot in range(SLOTS)] for count in LENGTHS]).long()


def torch_turn(case, hidden):
    import torch

    rotary = case.reference.model.language_model.rotary_emb
    return rotary(torch.from_numpy(hidden), torch.from_numpy(case.positions).long())


def additive_mask():
    """Causal over the valid keys, as the reference's layers take it: [B, 1, N, N]."""
    import torch

    causal = torch.ones(SLOTS, SLOTS).tril().bool()[None, None] & torch_mask().bool()[:, None, None]
    return torch.where(causal, 0.0, torch.finfo(torch.float32).min)


def test_embeddings_match(case):
    import torch

    theirs = case.reference.get_input_embeddings()(torch.from_numpy(case.tokens).long())
    assert np.array_equal(decoder.embed(case.params, case.tokens), theirs)


def test_norm_and_feed_forward_match(case):
    import torch

    hidden, block = case.hidden(), case.layer(1)
    theirs = case.reference.model.language_model.layers[1]
    norm = nn.RMSNorm(epsilon=case.config.norm_eps)
    ours = norm.apply({"params": block["input_layernorm"]}, hidden)
    assert_near(ours, theirs.input_layernorm(torch.from_numpy(hidden)))
    # Values so small that epsilon decides
    ours = norm.apply({"params": block["input_layernorm"]}, hidden * 1e-3)
    assert_near(ours, theirs.input_layernorm(torch.from_numpy(hidden * 1e-3)))
    mlp = GatedMLP(case.config.intermediate_size, case.config.hidden_size)
    assert_near(mlp.apply({"params": block["mlp"]}, hidden), theirs.mlp(torch.from_numpy(hidden)))


def test_angles_match_on_three_unequal_axes(case):
    cos, sin = torch_turn(case, case.hidden())
    planes = case.config.rope.head_dim // 2
    assert_near(jnp.cos(case.angles), cos[..., :planes].reshape(*case.angles.shape))
    assert_near(jnp.sin(case.angles), sin[..., :planes].reshape(*case.angles.shape))


def test_attention_matches(case):
    import torch

    hidden, block = case.hidden(2), decoder.DecoderBlock(case.config)
    params, lengths = {"params": case.layer(0)}, jnp.array(LENGTHS)
    queries, keys, values = block.apply(params, hidden, case.angles, method="qkv")
    mixed = attend(queries, keys, values, lengths=lengths, causal=True)
    ours = mixed.reshape(*hidden.shape[:2], -1) @ case.layer(0)["o_proj"]["weight"].T
    layer = case.reference.model.language_model.layers[0]
    theirs, _ = layer.self_attn(
        layer.input_layernorm(torch.from_numpy(hidden)),
        attention_mask=additive_mask(),
        position_embeddings=torch_turn(case, hidden),
    )
    assert_near(valid(ours), valid(theirs))


def test_blocks_match(case):
    import torch

    hidden, lengths = case.hidden(3), jnp.array(LENGTHS)
    for index in range(case.config.num_layers):
        ours, _ = decoder.run_layer(
            case.config,
            case.layer(index),
            jnp.asarray(hidden),
            case.angles,
            partial(decoder.attend_whole, lengths=lengths),
        )
        theirs = case.reference.model.language_model.layers[index](
            torch.from_numpy(hidden),
            attention_mask=additive_mask(),
            position_embeddings=torch_turn(case, hidden),
        )
        assert_near(valid(ours), valid(theirs))


def our_logits(case, **mask):
    @jax.jit
    def run(params, tokens, angles):
        hidden = decoder.embed(params, tokens)
        layers, count = params["layers"], case.config.num_layers
        attend_whole = partial(decoder.attend_whole, **mask)
        hidden, (keys, values) = decoder.run_span(
            case.config, layers, hidden, angles, 0, count, attend_whole
        )
        return decoder.logits(case.config, params, hidden), keys, values

    return run(case.params, jnp.asarray(case.tokens), case.angles)


def test_whole_decoder_logits_match(case):
    import torch

    ours, keys, _ = our_logits(case, lengths=jnp.array(LENGTHS))
    result = case.reference(
        input_ids=torch.from_numpy(case.tokens).long(),
        attention_mask=torch_mask(),
        position_ids=torch.from_numpy(case.positions).long(),
        use_cache=True,
    )
    assert np.abs(valid(result.logits)).max() > 1  # nothing can hide in small numbers
    assert_near(valid(ours), valid(result.logits), LOGITS, relative=False)
    assert (valid(ours).argmax(-1) == valid(result.logits).argmax(-1)).all()
    # Keys are cached as they were rotated: [L, B, N, G, C] here, [B, G, N, C] a layer there.
    for layer, theirs in enumerate(result.past_key_values.layers):
        assert_near(valid(keys[layer]), valid(theirs.keys.swapaxes(1, 2)))


def test_explicit_mask_equals_lengths(case):
    by_length, *_ = our_logits(case, lengths=jnp.array(LENGTHS))
    by_mask, *_ = our_logits(case, mask=jnp.asarray(additive_mask().numpy() == 0))
    assert_near(valid(by_mask), valid(by_length))
