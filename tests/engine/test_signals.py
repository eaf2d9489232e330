"""What methods are told about attention, keys and tower features, against transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.prompts import IMAGE, hf_arrays

import ivc_jax
from ivc_jax.engine.prefill import run_prefill
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.methods import select
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.requests import (
    AttentionReceived,
    AttentionRows,
    Carry,
    Embeddings,
    Hidden,
    Keys,
    PixelEntropy,
    TowerAttention,
    TowerFeatures,
    TowerKeys,
    Values,
)
from ivc_jax.nn.attention import attention_received

torch = pytest.importorskip("torch")

# Two unequal images whose grids are ragged for windows of 2 x 2 cells, text between and behind.
PROMPT = [(3, ("image", (1, 6, 10)), 2, ("image", (1, 4, 6)), 6)]
BUCKET = Buckets(text=(24,), visual=(32,), patches=(96,), rows=(3,), images=(2,))
CUT = 2
BLOCK = 1  # of the tower; attends over the whole image in all families
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Probe(Method):
    """Keeps everything and writes down what it is told."""

    asked: tuple = ()
    layer: int = CUT
    heard = {}  # noqa: RUF012 - filled while tracing

    @property
    def stages(self):
        return (Stage(self.layer, 1.0),)

    def requests(self, stage):
        return self.asked

    def select(self, signals, layout, stage, num_keep):
        for request in self.asked:
            heard = signals[request]
            if isinstance(request, TowerAttention):
                weights = (layout.visual_origin % 3 == 0).astype(np.float32)
                heard = heard(), heard(weights)
            self.heard[request] = heard
        return select.from_mask(layout.visual_valid, num_keep)


def listen(model, *asked, layer=CUT, arrays=None):
    """Return the signals of one prompt, cut to its real tokens by the caller."""
    method = Probe(asked=asked, layer=layer)
    batch = ivc_jax.Batch.from_hf(**(arrays or hf_arrays(PROMPT)))
    inputs = collate(batch, model.config, BUCKET)

    def run(params, inputs):
        run_prefill.__wrapped__(model.config, method, params, inputs)
        return tuple(method.heard[request] for request in asked)

    with jax.default_matmul_precision("highest"):
        return jax.jit(run)(model.params, inputs)


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def pair(request, tiny_hf, load_torch):
    path = tiny_hf(family=request.param, num_hidden_layers=3)
    return ivc_jax.load(path, dtype="float32")[0], load_torch(path)


@pytest.fixture(scope="module")
def dense(pair):
    """Decoder attention, keys and hidden states of the reference, and the visual slots."""
    arrays = hf_arrays(PROMPT)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    kinds = (tensors["input_ids"] == IMAGE).int()
    hidden = []  # what enters each block, features added on the way included
    hooks = [
        block.register_forward_pre_hook(
            lambda _, inputs, named: hidden.append((*inputs, *named.values())[0][0].numpy()),
            with_kwargs=True,
        )
        for block in pair[1].model.language_model.layers
    ]
    with torch.no_grad():
        out = pair[1](**tensors, mm_token_type_ids=kinds, output_attentions=True)
    for hook in hooks:
        hook.remove()
    visual = np.flatnonzero(arrays["input_ids"][0] == IMAGE)
    text = np.flatnonzero(arrays["input_ids"][0] != IMAGE)
    attention = [layer[0].numpy() for layer in out.attentions]
    keys = [layer.keys[0].numpy() for layer in out.past_key_values.layers]
    values = [layer.values[0].numpy() for layer in out.past_key_values.layers]
    return attention, keys, values, hidden, visual, text


def near(ours, theirs):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


# A block that has run (1) and the block behind the cut (2) are asked in the same way.
@pytest.mark.parametrize("layer", [CUT - 1, CUT])
def test_decoder_attention_and_keys(pair, dense, layer):
    attention, keys, _, _, visual, text = dense
    last, tail, rows, received, largest, key = listen(
        pair[0],
        AttentionRows(layer),
        AttentionRows(layer, count=3),
        AttentionRows(layer, "text"),
        AttentionReceived(layer),
        AttentionReceived(layer, heads="max"),
        Keys(layer),
    )
    V, T = len(visual), len(text)
    near(last[0, :, :, :V], attention[layer][:, -1:, visual])
    near(tail[0, :, :, :V], attention[layer][:, -3:, visual])
    near(rows[0, :, :T, :V], attention[layer][:, text][:, :, visual])
    assert not np.asarray(rows[0, :, T:]).any()
    near(received[0, :V], attention[layer][:, visual][:, :, visual].mean(axis=(0, 1)))
    assert not np.asarray(received[0, V:]).any()
    by_head = attention[layer][:, visual][:, :, visual]
    near(largest[0, :V], by_head.max(axis=0).mean(axis=0))
    assert not np.asarray(largest[0, V:]).any()
    near(key.visual[0, :V].swapaxes(0, 1), keys[layer][:, visual])
    near(key.text[0, :T].swapaxes(0, 1), keys[layer][:, text])


def test_values_hidden_states_and_embeddings(pair, dense):
    _, _, values, hidden, visual, text = dense
    asked = Values(CUT - 1), Hidden(), Hidden(normed=True), Embeddings()
    value, state, normed, embedded = listen(pair[0], *asked)
    V, T = len(visual), len(text)
    finished = pair[1].model.language_model.norm(torch.from_numpy(hidden[CUT])).numpy()
    near(value.visual[0, :V].swapaxes(0, 1), values[CUT - 1][:, visual])
    for ours, theirs in ((state, hidden[CUT]), (normed, finished), (embedded, hidden[0])):
        near(ours.visual[0, :V], theirs[visual])
        near(ours.text[0, :T], theirs[text])


def test_attention_of_uniform_logits_shows_the_causal_mask():
    """One token before four visual ones, all alike: early tokens are seen by more."""
    queries, keys = jnp.zeros((1, 4, 1, 2)), jnp.zeros((1, 5, 1, 2))
    visible, weights = jnp.ones((1, 5), bool), jnp.ones((1, 4))
    causal, both = (
        attention_received(queries, keys, visible, weights, jnp.array([ends]))[0, 1:] / 4
        for ends in ([2, 3, 4, 5], [5] * 4)
    )
    np.testing.assert_allclose(causal, [0.32083, 0.19583, 0.11250, 0.05000], atol=5e-6)
    np.testing.assert_allclose(both, [0.2] * 4, atol=1e-6)


def test_attention_received_without_the_causal_mask(pair):
    """Every visual query sees the prompt up to the last visual token."""
    layer = CUT - 1
    model = pair[0]
    free, key = listen(model, AttentionReceived(layer, causal=False), Keys(layer))
    assert free.shape == key.visual.shape[:2]
    causal = listen(model, AttentionReceived(layer))[0]
    V = 21
    assert np.abs(np.asarray(free - causal))[0, :V].max() > 1e-3
    # What visual tokens do not give each other goes to the text before the last of them.
    assert 0 < float(free.sum()) < 1


@pytest.fixture
def tower(pair, monkeypatch):
    """Block inputs of the reference's tower in raster order of merged cells, by image."""
    reference, heard = pair[1].model.visual, []
    hooks = [
        block.register_forward_hook(
            lambda block, inputs, kwargs, output: heard.append((inputs[0], kwargs, output)),
            with_kwargs=True,
        )
        for block in reference.blocks
    ]
    arrays, order = hf_arrays(PROMPT), []
    grid = torch.from_numpy(arrays["image_grid_thw"])
    permute = getattr(reference, "permute_input_for_window_attn", None)

    def note_order(hidden, window_index, **sizes):
        order.append(np.argsort(window_index.numpy()))
        return permute(hidden, window_index, **sizes)

    if permute:
        monkeypatch.setattr(reference, "permute_input_for_window_attn", note_order)
    reference(torch.from_numpy(arrays["pixel_values"]), grid_thw=grid)
    for hook in hooks:
        hook.remove()
    return reference, heard, order[0] if order else np.arange(21)


def by_cell(patches, order):
    """Sort [P, ...] patches into raster order of cells: [cells, 4, ...]."""
    return patches.reshape(-1, 4, *patches.shape[1:])[order]


def test_tower_attention_and_keys(pair, tower):
    reference, heard, order = tower
    hidden, kwargs, _ = heard[BLOCK]
    block = reference.blocks[BLOCK]
    heads = pair[0].config.vision.num_heads
    qkv = block.attn.qkv(block.norm1(hidden)).reshape(len(hidden), 3, heads, -1)
    cos, sin = (part[:, None].numpy() for part in kwargs["position_embeddings"])

    def turned(x):
        first, second = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-second, first], axis=-1) * sin

    queries, keys, _ = (qkv[:, part].numpy() for part in range(3))
    image = np.repeat(np.repeat([0, 1], [15, 6])[np.argsort(order)], 4)

    def attend(queries, keys):
        """Average attention over heads, and over the patches of a cell: [query, key]."""
        logits = np.einsum("qhc,khc->hqk", queries, keys) / np.sqrt(keys.shape[-1])
        logits = np.where(image[:, None] == image, logits, -np.inf)
        raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
        rows = (raised / raised.sum(axis=-1, keepdims=True)).mean(axis=0)
        return by_cell(by_cell(rows, order).mean(axis=1).T, order).mean(axis=1).T

    cells = attend(turned(queries), turned(keys))
    one_head = attend(*(turned(x).reshape(len(x), 1, -1) for x in (queries, keys)))
    asked = [TowerKeys(BLOCK, *how) for how in ((), ("mean", True), ("joined",), ("joined", True))]
    (uniform, weighted), (joined, _), *ours = listen(
        pair[0], TowerAttention(BLOCK), TowerAttention(BLOCK, "joined"), *asked
    )
    expected = [one_head[:15, :15].mean(axis=0), one_head[15:, 15:].mean(axis=0)]
    near(joined[0, :21], np.concatenate(expected))
    expected = np.concatenate([cells[:15].sum(axis=0)[:15] / 15, cells[15:].sum(axis=0)[15:] / 6])
    near(uniform[0, :21], expected)
    chosen = np.arange(21) % 3 == 0
    first, second = chosen & (np.arange(21) < 15), chosen & (np.arange(21) >= 15)
    expected = [cells[first].mean(axis=0)[:15], cells[second].mean(axis=0)[15:]]
    near(weighted[0, :21], np.concatenate(expected))
    assert not np.asarray(uniform[0, 21:]).any()
    for found, kept in zip(ours[:2], (keys, turned(keys)), strict=True):
        near(found[0, :21], by_cell(kept.mean(axis=1), order).mean(axis=1))
    for found, kept in zip(ours[2:], (keys, turned(keys)), strict=True):
        near(found[0, :21], by_cell(kept.reshape(len(kept), -1), order).mean(axis=1))


def test_tower_features(pair, tower):
    reference, heard, order = tower
    outputs = [output for _, _, output in heard]
    model = pair[0]
    asked = TowerFeatures(), TowerFeatures(0, 1), TowerFeatures(1, -1, merged=True)
    last, early, merged = listen(model, *asked)
    near(last[0, :21], by_cell(outputs[-1].numpy(), order).mean(axis=1))
    mean = (outputs[0] + outputs[1]).numpy() / 2
    near(early[0, :21], by_cell(mean, order).mean(axis=1))
    with torch.no_grad():
        through = reference.merger(torch.stack(outputs[1:]).mean(axis=0))
    near(merged[0, :21], through.numpy()[order])


def test_the_default_block_of_the_tower_is_its_last_full_one(pair):
    model = pair[0]
    last = model.config.vision.depth - 1
    (one, _), (other, _) = listen(model, TowerAttention(), TowerAttention(last))
    np.testing.assert_array_equal(one, other)


def test_blocks_that_cannot_answer_are_errors(pair):
    model = pair[0]
    with pytest.raises(MethodError, match="the vision tower has blocks 0 to"):
        listen(model, TowerKeys(9))
    with pytest.raises(MethodError, match="asks for no block"):
        listen(model, TowerFeatures(2, 1))
    if model.config.family == "qwen2_5_vl":
        with pytest.raises(MethodError, match="attends within windows"):
            listen(model, TowerAttention(0))


def test_entropy_of_grey_levels(pair):
    """Two levels in equal parts are one bit a patch; a flat patch has none."""
    model = pair[0]
    arrays = hf_arrays(PROMPT)
    vision = model.config.vision
    grey = np.full((84, 32), 7.0)
    grey[:40, ::2] = 200.0
    grey[40:44, :] = np.arange(32)
    mean, std = (np.array(x)[:, None] for x in (vision.pixel_mean, vision.pixel_std))
    values = (grey[:, None] / 255 - mean) / std
    arrays["pixel_values"] = values.reshape(84, -1).astype(np.float32)
    (bits,) = listen(model, PixelEntropy(), arrays=arrays)
    np.testing.assert_allclose(bits[0, :21], [1.0] * 10 + [5.0] + [0.0] * 10, atol=1e-6)


def test_carry_is_nothing_before_the_first_cut(pair):
    assert listen(pair[0], Carry()) == (None,)
