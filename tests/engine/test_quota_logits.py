"""QuoTA on models: an independent walk along the published steps gives the same logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import show_pictures

import ivc_jax
from ivc_jax.engine.compact import Sequence, compact
from ivc_jax.engine.prefill import embed_inputs
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.bucket import collate
from ivc_jax.inputs.layout import arrange
from ivc_jax.inputs.relevance import average_slices
from ivc_jax.methods.drawn import make_layout
from ivc_jax.nn import decoder, rope
from ivc_jax.types import Blend, Selection

RATIO = 0.6


def resize(x, height, width):
    """Resize a map [H, W, D] by the published formula."""
    parts = []
    for size, axis in ((height, 0), (width, 1)):
        whole = x.shape[axis]
        place = np.maximum(0, (np.arange(size) + 0.5) * whole / size - 0.5)
        low = np.floor(place + 1e-9).astype(int)
        high, part = np.minimum(low + 1, whole - 1), place - low
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        x = np.take(x, low, axis) * (1 - part.reshape(shape)) + np.take(x, high, axis) * (
            part.reshape(shape)
        )
        parts.append(((np.arange(size) + 0.5) * whole / size + 1e-9).astype(int))
    return x.reshape(height * width, -1), np.stack(np.meshgrid(*parts, indexing="ij"), -1)


def follow(model, batch, row, relevance, renumber):
    """Lay the tokens of one sample out by the published steps; run them without any pruning."""
    config, sample = model.config, arrange(batch, model.config)[row]
    inputs = jax.tree.map(jnp.asarray, collate(batch, config))
    hidden = np.asarray(embed_inputs(config, model.params, inputs)[0])[row]
    slots, grid = sample.visual_slot, sample.grid
    frames = list(dict.fromkeys(zip(sample.segment_id.tolist(), grid[:, 0].tolist(), strict=True)))
    # every tile of an image has the image's
    squares = np.square([relevance[image] for image, _ in frames])
    counts = np.floor(int(RATIO * len(slots)) * squares / squares.sum() + 1e-9).astype(int)
    pieces, visual = {}, set(slots.tolist())
    for (image, frame), count in zip(frames, counts, strict=True):
        side = int(np.sqrt(count))
        if not side:
            continue
        own = slots[(sample.segment_id == image) & (grid[:, 0] == frame)]
        _, H, W = grid[np.isin(slots, own)].max(axis=0) + 1
        taller = side * (side + 1) <= count
        tokens, cells = resize(hidden[own].reshape(H, W, -1), side + taller, side)
        at = own[cells[..., 0] * W + cells[..., 1]].ravel()
        pieces[own[0]] = (tokens, sample.positions[:, at])
    parts, positions = [], []
    for slot in range(len(sample.tokens)):
        if slot in pieces:
            parts.append(pieces[slot][0])
            positions.append(pieces[slot][1])
        elif slot not in visual:
            parts.append(hidden[slot][None])
            positions.append(sample.positions[:, slot][:, None])
    x, places = np.concatenate(parts), np.concatenate(positions, axis=1)
    if renumber:
        places = np.tile(np.arange(len(x)), (3, 1))
    angles = rope.angles(config.decoder.rope, jnp.asarray(places)[:, None])
    attend = functools.partial(decoder.attend_whole, lengths=jnp.array([len(x)]))
    layers = model.params["decoder"]["layers"]
    run = jax.jit(
        lambda x: decoder.run_span(
            config.decoder, layers, x, angles, 0, config.decoder.num_layers, attend
        )[0][:, -1]
    )
    last = run(jnp.asarray(x, jnp.float32)[None])
    return decoder.logits(config.decoder, model.params["decoder"], last)[0], len(x)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "internvl"])
def test_logits_are_those_of_the_published_steps(tiny_hf, family):
    """Two unequal pictures between text, the first of which gets more tokens than it had."""
    model, processor = ivc_jax.load(tiny_hf(family=family), dtype="float32")
    batch = dataclasses.replace(show_pictures(processor), relevance=([0.4], None, [0.9, 0.2]))
    prompt = ivc_jax.prefill(model, batch, f"quota:keep_ratio={RATIO}")
    renumber = model.config.decoder.rope.sections is None
    for row, relevance in ((0, [0.4]), (2, [0.9, 0.2])):
        logits, length = follow(model, batch, row, relevance, renumber)
        assert int(prompt.lengths[row]) == length == len(prompt.kept[row])
        assert (np.diff(prompt.kept[row]) > 0).all()
        np.testing.assert_allclose(prompt.logits[row], logits, rtol=0, atol=1e-4)


def test_relevance_goes_to_the_tokens_of_its_frame(tiny_hf):
    model, processor = ivc_jax.load(tiny_hf(family="qwen2_vl"), dtype="float32")
    draw = np.random.default_rng(0)
    image, *frames = draw.integers(0, 256, (4, 56, 56, 3), np.uint8)
    batch = processor(
        ["<video> and <image>", "x"], [[image], None], [[np.stack(frames)], None],
        relevance=[[0.25, 0.5, 0.75], None],
    )  # fmt: skip
    inputs = collate(batch, model.config)
    slices = np.asarray(inputs.layout.grid)[0, :, 0] + 2 * np.asarray(inputs.layout.image_id)[0]
    valid = np.asarray(inputs.layout.visual_valid)
    told = inputs.relevance[0][valid[0]]
    assert told.tolist() == [(0.25, 0.5, 0.75)[each] for each in slices[valid[0]]]
    assert not inputs.relevance[1].any()
    assert len(ivc_jax.Batch.join([batch, batch]).relevance) == 4
    with pytest.raises(InputError, match="sample 0: 3 numbers of relevance for 1 images"):
        collate(processor(["x"], [[image]], relevance=[[0.1, 0.2, 0.3]]), model.config)


def test_slices_average_their_frames():
    given = np.array([0.2, 0.4, 0.9], np.float32)
    np.testing.assert_allclose(average_slices(given, 2), [0.3, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(average_slices(given, 1), given)


@pytest.mark.parametrize(
    ("relevance", "message"),
    [
        ([[0.1]], "an entry for each prompt"),
        ([[1.5], None], r"sample 0: its relevance must be numbers in \[0, 1\]"),
        ([[0.5], ["much"]], "sample 1: its relevance must be numbers"),
        (0.5, "an entry for each prompt"),
    ],
)
def test_impossible_relevance_is_one_line(tiny_hf, relevance, message):
    _, processor = ivc_jax.load(tiny_hf(family="qwen2_vl"), dtype="float32")
    image = np.zeros((56, 56, 3), np.uint8)
    with pytest.raises(InputError, match=message):
        processor(["x", "y"], [[image], [image]], relevance=relevance)


def test_nobody_told_is_logged_and_counts_alike(tiny_hf, caplog):
    model, processor = ivc_jax.load(tiny_hf(family="qwen2_vl"), dtype="float32")
    batch = show_pictures(processor)
    silent = ivc_jax.prefill(model, batch, "quota:keep_ratio=0.55")
    assert "does not say how relevant its frames are" in caplog.text
    told = dataclasses.replace(batch, relevance=([0.7], None, [0.7, 0.7]))
    alike = ivc_jax.prefill(model, told, "quota:keep_ratio=0.55")
    np.testing.assert_array_equal(silent.logits, alike.logits)


def test_tokens_in_the_place_of_others_by_hand():
    """Three tokens stand where the first picture was, before the text behind it.

    slot    0  1  2  3  4  5        i: pictures of two tokens and of one
    token   Q  i  i  R  i  S        order of what stays: Q, three for slots 1 2 1, R, S
    """
    layout = make_layout([(1, (1, 2), 1, (1, 1), 1)], num_positions=32)
    slots = jnp.arange(6, dtype=jnp.int32)[None]
    vectors = jnp.arange(6, dtype=jnp.float32)[None, :, None]
    chosen = Selection(
        index=jnp.array([[0, 1, 2]], jnp.int32),
        valid=jnp.ones((1, 3), bool),
        weights=Blend(
            jnp.array([[[0, 1], [0, 1], [1, 2]]], jnp.int32),
            jnp.array([[[1, 0], [0.5, 0.5], [0.75, 0.25]]], jnp.float32),
        ),
        place=jnp.array([[0, 1, 0]], jnp.int32),
    )
    short, order = compact(Sequence(vectors, layout, slots), chosen)
    assert order.tolist() == [[0, 1, 2, 4, 3, 5]]
    assert short.hidden[0, :, 0].tolist() == [0, 1, 1.5, 2.5, 3, 5]
    assert short.layout.visual_index.tolist() == [[1, 2, 3]]
    assert short.layout.text_index.tolist() == [[0, 4, 5]]
    assert short.layout.image_id.tolist() == [[0, 0, 0]]
    before = np.asarray(layout.positions)[:, 0]
    np.testing.assert_array_equal(short.layout.positions[:, 0], before[:, [0, 1, 2, 1, 3, 5]])
    assert short.layout.lengths.tolist() == [6]
