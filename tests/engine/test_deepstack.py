"""Features that the tower adds between decoder blocks stay with their tokens, whatever is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import BUCKET, STEPS, batch_of
from helpers.programs import stack_blocks
from helpers.prompts import hf_arrays

import ivc_jax
from checkpoints_convert.convert import convert
from ivc_jax.engine.compact import Sequence, add_feature, compact
from ivc_jax.engine.plan import Add, Cut, Span, make_plan
from ivc_jax.engine.prefill import embed_inputs
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import parse
from ivc_jax.methods.base import DENSE
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.layers import dequantized
from ivc_jax.types import Layout, Selection

VIDEO = (3, ("video", (2, 6, 4)), 3, ("image", (1, 4, 6)), 6)


@pytest.fixture(scope="module")
def model(tiny_hf):
    """Four blocks, features behind the first two of them."""
    return ivc_jax.load(tiny_hf(family="qwen3_vl", num_hidden_layers=4), dtype="float32")[0]


def gather(model, *batches):
    return collate(ivc_jax.Batch.join(batches), model.config, BUCKET)


def clip():
    """A video in two runs of placeholders, and an image behind it."""
    return ivc_jax.Batch.from_hf(**hf_arrays([VIDEO], seed=9, stamped=True))


@pytest.fixture(scope="module")
def inputs(model):
    """Two unequal images, and a video beside an image: unequal in length."""
    return gather(model, batch_of(2), clip())


@pytest.fixture(scope="module")
def prompts(model, inputs):
    """Give a function that prefills both prompts together, once for each method."""
    return functools.cache(lambda spec: ivc_jax.prefill(model, inputs, parse(spec)))


def test_features_come_behind_their_blocks_and_before_a_cut():
    cut = Cut(parse("ivc:layer=1").stages[0])
    early = (Span(0, 1), Add(0), cut, Span(1, 2), Add(1), Span(2, 5))
    assert make_plan(5, parse("ivc:layer=1"), features=2) == early
    cut = Cut(parse("fastv:layer=3").stages[0])
    late = (Span(0, 1), Add(0), Span(1, 2), Add(1), Span(2, 3, alone=True), cut, Span(3, 5))
    assert make_plan(5, parse("fastv:layer=3"), features=2) == late
    # a decoder of fewer blocks than there are features
    assert make_plan(1, DENSE, features=2) == (Span(0, 1), Add(0))


def test_features_are_gathered_merged_and_added_by_hand():
    """Tokens 1, 2, 3 of four slots; tokens 0 and 2 stay, the second with half of token 1."""
    int32 = lambda *rows: jnp.asarray(rows, jnp.int32)  # noqa: E731
    slots = jnp.arange(5, dtype=jnp.int32)[None]
    layout = Layout(
        visual_index=int32([1, 2, 3]),
        visual_valid=jnp.ones((1, 3), bool),
        visual_origin=int32([0, 1, 2]),
        image_id=int32([0, 0, 0]),
        grid=jnp.zeros((1, 3, 3), jnp.int32),
        content=jnp.ones((1, 3), bool),
        tiles=jnp.ones((1, 3, 2), jnp.int32),
        image_count=int32([3, 3, 3]),
        visual_count=jnp.array([3], jnp.int32),
        text_index=int32([0, 4]),
        text_valid=jnp.ones((1, 2), bool),
        positions=jnp.tile(slots, (3, 1, 1)),
        lengths=jnp.array([5], jnp.int32),
        num_images=1,
        visual_slots=3,
        num_positions=8,
    )
    # features 10 20 30 for the next block, 100 200 300 for the one behind it
    features = jnp.array([[10.0, 20.0, 30.0], [100.0, 200.0, 300.0]])[:, None, :, None]
    hidden = slots[..., None].astype(jnp.float32)
    sequence = Sequence(hidden=hidden, layout=layout, origin=slots, features=features)
    kept = Selection(index=int32([0, 2]), valid=jnp.ones((1, 2), bool))
    short, _ = compact(sequence, kept)
    assert short.features[:, 0, :, 0].tolist() == [[10, 30], [100, 300]]
    weighed = kept.replace(weights=jnp.array([[[1.0, 0, 0], [0, 0.5, 1]]]))
    merged, _ = compact(sequence, weighed)
    assert merged.features[:, 0, :, 0].tolist() == [[10, 40], [100, 400]]
    assert merged.hidden[0, :, 0].tolist() == [0, 1, 4, 4]
    first = add_feature(merged)
    assert first.hidden[0, :, 0].tolist() == [0, 11, 44, 4]
    second = add_feature(first)
    assert second.hidden[0, :, 0].tolist() == [0, 111, 444, 4]
    assert second.features is None
    # merging before a feature is added or behind it is the same
    late, _ = compact(add_feature(sequence), weighed)
    assert late.hidden[0, :, 0].tolist() == first.hidden[0, :, 0].tolist()


@pytest.mark.parametrize(
    "spec", ["random:layer=0", "uniform:layer=1", "ivc:layer=2", "ivc:layer=3"]
)
def test_keeping_all_before_between_and_behind_is_dense(model, inputs, prompts, spec):
    full = ivc_jax.prefill(model, inputs, parse(f"{spec},keep_ratio=1.0"))
    np.testing.assert_array_equal(full.logits, prompts("dense").logits)


@pytest.fixture(scope="module")
def run_masked(model, inputs):
    """Give a function that runs the unpruned prompts, some slots invisible from a block on."""
    config = model.config.decoder
    B, N = inputs.tokens.shape

    @functools.partial(jax.jit, static_argnums=3)
    def run(params, inputs, mask, layer):
        hidden, features, _ = embed_inputs(model.config, params, inputs)
        layers, layout = params["decoder"]["layers"], inputs.layout
        angles = rope.angles(config.rope, layout.positions)
        slot = jnp.where(layout.visual_valid, layout.visual_index, N)
        for block in range(config.num_layers):
            seen = mask if block >= layer else jnp.ones((1, 1, N, N), bool)
            attend = functools.partial(decoder.attend_whole, mask=seen & np.tri(N, dtype=bool))
            hidden, _ = decoder.run_span(config, layers, hidden, angles, block, block + 1, attend)
            if block < len(features):
                hidden = hidden.at[np.arange(B)[:, None], slot].add(features[block], mode="drop")
        last = hidden[np.arange(B), layout.lengths - 1]
        return decoder.logits(config, params["decoder"], last)

    return functools.partial(run, model.params, inputs)


@pytest.mark.parametrize(
    ("spec", "layer"), [("random:layer=0", 0), ("holov", 0), ("ivc:layer=1", 1), ("ivc:layer=2", 2)]
)
def test_a_cut_is_a_mask_from_its_block_on(inputs, prompts, run_masked, spec, layer):
    """Before the decoder, between the features and behind them."""
    visible = np.zeros(inputs.tokens.shape, bool)  # [B, N]
    for row, kept in zip(visible, prompts(spec).kept, strict=True):
        row[kept] = True
    assert visible.sum() < inputs.layout.lengths.sum()
    expected = run_masked(jnp.asarray(visible[:, None, None]), layer)
    np.testing.assert_allclose(prompts(spec).logits, expected, rtol=0, atol=1e-4)
    assert np.abs(prompts("dense").logits - expected).max() > 1e-2


@pytest.mark.parametrize("spec", ["dense", "ivc:layer=1", "sparsevlm"])
def test_prompts_with_videos_are_answered_alike_beside_others(model, prompts, spec):
    """Other pictures: `test_every_family`."""
    together = prompts(spec)
    tokens = ivc_jax.decode(model, together, STEPS, ()).tokens
    for row, mates in enumerate(((batch_of(2), batch_of(1)), (batch_of(1), clip()))):
        inputs = gather(
            model, *mates
        )  # a text in place of the other prompt, so that the program is one
        other = ivc_jax.prefill(model, inputs, parse(spec))
        np.testing.assert_array_equal(together.kept[row], other.kept[row])
        np.testing.assert_allclose(together.logits[row], other.logits[row], rtol=0, atol=1e-4)
        answer = ivc_jax.decode(model, other, STEPS, ()).tokens[row]
        np.testing.assert_array_equal(tokens[row], answer)


def test_encoded_inputs_bring_their_features(model, inputs, prompts):
    encoded = ivc_jax.encode(model, inputs)
    assert encoded.deepstack.shape == (2, *encoded.visual.shape)
    shared = ivc_jax.prefill(model, encoded, parse("ivc:layer=1"))
    np.testing.assert_allclose(shared.logits, prompts("ivc:layer=1").logits, rtol=0, atol=1e-5)
    stale = encoded.replace(visual=0 * encoded.visual, deepstack=0 * encoded.deepstack)
    np.testing.assert_array_equal(ivc_jax.encode(model, stale).deepstack, encoded.deepstack)
    # without the features they are other tokens
    bare = ivc_jax.prefill(model, encoded.replace(deepstack=0 * encoded.deepstack))
    assert np.abs(bare.logits - prompts("dense").logits).max() > 1e-2


def test_stacked_blocks_have_the_same_features(model, inputs, prompts):
    """As on TPU: loops end where features leave the tower and enter the decoder."""
    stacked = ivc_jax.prefill(stack_blocks(model), inputs, parse("ivc:layer=1"))
    np.testing.assert_allclose(stacked.logits, prompts("ivc:layer=1").logits, rtol=0, atol=1e-5)
    assert all(map(np.array_equal, stacked.kept, prompts("ivc:layer=1").kept))


def test_converted_and_rounded_weights_keep_the_features(tiny_hf, model, inputs, tmp_path):
    """Through Orbax and back, and with a decoder in int8, whose blocks lie stacked."""
    pytest.importorskip("qwix")
    path = tiny_hf(family="qwen3_vl", num_hidden_layers=4)
    convert(path, tmp_path / "converted")
    again, _ = ivc_jax.load(tmp_path / "converted", dtype="float32")
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, model.params))
    rounded, _ = ivc_jax.load(tmp_path / "converted", dtype="float32", weights="int8")
    assert rounded.weights == "int8"
    floats = ivc_jax.Model(model.config, dequantized(rounded.params, np.dtype(np.float32)))
    ours, theirs = (ivc_jax.prefill(each, inputs, "ivc:layer=1") for each in (rounded, floats))
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    assert all(map(np.array_equal, ours.kept, theirs.kept))
