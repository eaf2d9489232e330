"""Promises that the engine makes for every method: see `ivc_jax.methods.METHODS`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import BUCKET, STEPS, WIDE, batch_of

import ivc_jax
from ivc_jax.engine.compact import Sequence, compact
from ivc_jax.engine.plan import Cut, Span, make_plan
from ivc_jax.engine.prefill import compiled_programs, embed_inputs
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import IVCPrune, parse
from ivc_jax.methods.base import DENSE, AttentionRows, MethodError, Stage, Values
from ivc_jax.nn import decoder, rope
from ivc_jax.types import Layout, Selection

PRUNED = ["random", "uniform", "ivc", "fastv:layer=1", "fastv+ivc:layer=2"]
RELATED = [
    "fastv+pore:layer=2,sigma=3",
    "pyramiddrop",
    "sparsevlm+ivc",
    "holov",
    "scope",
    "visiondrop",
    "fsr",
    "nuwa+ivc",
    "vflowopt:cell=2",
]
# Held to those promises that one program can show: they choose as others above do.
ABLATIONS = ["ivc_progressive:layers=3,ratios=0.5", "ivc_removal:layer=0"]
# These never leave all tokens as they are, whatever the keep ratio.
NEVER_DENSE = ("sparsevlm+ivc", "nuwa+ivc")


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(num_hidden_layers=4), dtype="float32")[0]


@pytest.fixture(scope="module")
def inputs(model):
    return collate(batch_of(0, 1, 2, 3), model.config, BUCKET)


@pytest.fixture(scope="module")
def prompts(model, inputs):
    """Give a function that prefills the four PROMPTS together, once for each method."""
    return functools.cache(lambda spec: ivc_jax.prefill(model, inputs, parse(spec)))


def ratio(spec, value):
    return parse(f"{spec}{',' if ':' in spec else ':'}keep_ratio={value}")


@pytest.mark.parametrize("spec", [s for s in PRUNED + RELATED if s not in NEVER_DENSE])
def test_keep_ratio_one_equals_dense_bit_for_bit(model, inputs, prompts, spec):
    dense, full = prompts("dense"), ivc_jax.prefill(model, inputs, ratio(spec, 1.0))
    np.testing.assert_array_equal(full.logits, dense.logits)
    for kept, everything in zip(full.kept, dense.kept, strict=True):
        np.testing.assert_array_equal(kept, everything)


@pytest.mark.parametrize("spec", PRUNED)
def test_batch_mates_and_larger_buckets_change_nothing(model, prompts, spec):
    method, order = parse(spec), (2, 3, 0, 1)
    together = ivc_jax.decode(model, prompts(spec), STEPS)
    wide = collate(batch_of(*order), model.config, WIDE)
    wide = ivc_jax.generate(model, wide, method, STEPS)
    for row in range(4):
        alone = collate(batch_of(row), model.config, BUCKET)
        alone = ivc_jax.generate(model, alone, method, STEPS)
        for other, place in ((together, row), (wide, order.index(row))):
            np.testing.assert_array_equal(other.kept[place], alone.kept[0])
            np.testing.assert_array_equal(other.tokens[place], alone.tokens[0])


@pytest.mark.parametrize("spec", RELATED)
def test_batch_mates_and_larger_buckets_change_no_selection(model, prompts, spec):
    """As above without decoding, which recomputation checks below."""
    method, order = parse(spec), (2, 3, 0, 1)
    together = prompts(spec)
    wide = ivc_jax.prefill(model, collate(batch_of(*order), model.config, WIDE), method)
    for row, place in enumerate(np.argsort(order)):
        np.testing.assert_array_equal(wide.kept[place], together.kept[row])
        np.testing.assert_allclose(wide.logits[place], together.logits[row], rtol=0, atol=1e-4)
        share = wide.cached_share[place], together.cached_share[row]
        assert share[0] == pytest.approx(share[1])


def test_one_progressive_cut_is_that_of_ivc(prompts):
    once, progressive = prompts("ivc"), prompts(ABLATIONS[0])
    np.testing.assert_array_equal(progressive.origin, once.origin)
    np.testing.assert_array_equal(progressive.logits, once.logits)
    assert progressive.kv_bytes == once.kv_bytes


@pytest.mark.parametrize("spec", PRUNED + RELATED + ABLATIONS)
def test_kept_positions_are_ascending_and_hold_all_text(model, prompts, spec):
    marks = [model.config.image_token_id, model.config.video_token_id]
    for tokens, kept in zip(batch_of(0, 1, 2, 3).tokens, prompts(spec).kept, strict=True):
        assert (np.diff(kept) > 0).all()
        visual = np.isin(tokens, marks)
        assert set(np.flatnonzero(~visual)) <= set(kept)
        if visual.any():
            assert 0 < visual[kept].sum() < visual.sum()


@pytest.mark.parametrize("spec", ["random:layer=0", "uniform+ivc:layer=0", "holov", "scope+ivc"])
def test_cut_before_the_decoder_equals_masking_dropped_tokens(model, inputs, spec):
    pruned = ivc_jax.prefill(model, inputs, parse(spec))
    B, N = inputs.tokens.shape
    visible = np.zeros((B, N), bool)
    for row, kept in zip(visible, pruned.kept, strict=True):
        row[kept] = True
    mask = visible[:, None, None] & np.tri(N, dtype=bool)
    config, params = model.config.decoder, model.params["decoder"]
    hidden = embed_inputs(model.config, model.params, jax.tree.map(jnp.asarray, inputs))
    angles = rope.angles(config.rope, jnp.asarray(inputs.layout.positions))
    hidden, _, _ = decoder.run_span(
        config, params["layers"], hidden, angles, 0, config.num_layers, mask=jnp.asarray(mask)
    )
    last = hidden[np.arange(B), inputs.layout.lengths - 1]
    expected = decoder.logits(config, params, last)
    np.testing.assert_allclose(pruned.logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "spec", ["dense", *PRUNED, *RELATED, "pyramiddrop:positions=reindex,layers=0/2/3"]
)
def test_decode_from_the_cache_equals_recomputation(model, inputs, prompts, spec):
    """Feed the generated tokens through the pruned model at once and compare every choice."""
    prompt = prompts(spec)
    out = ivc_jax.decode(model, prompt, STEPS)
    config, params = model.config.decoder, model.params["decoder"]
    for row, kept in enumerate(prompt.kept):
        tokens = np.asarray(out.tokens[row, : STEPS - 1])
        hidden, layer = decoder.embed(params, tokens[None]), 0
        for span in prompt.cache:
            first = int(prompt.next_position[row])
            if "reindex" in spec and span.keys.shape[2] < inputs.tokens.shape[1]:
                first = int(span.lengths[row])  # survivors are numbered from 0
            position = first + np.arange(STEPS - 1)
            angles = rope.angles(config.rope, jnp.asarray(np.tile(position, (3, 1, 1))))
            for keys, values in zip(span.keys, span.values, strict=True):
                length = int(span.lengths[row])
                past = keys[row : row + 1, :length], values[row : row + 1, :length]
                hidden = attend_to_past(config, params["layers"], layer, hidden, angles, past)
                layer += 1
        choices = np.argmax(decoder.logits(config, params, hidden[0]), axis=-1)
        np.testing.assert_array_equal(choices, out.tokens[row, 1:])
        assert span.lengths[row] == len(kept)


def attend_to_past(config, layers, index, hidden, angles, past):
    """Run one block over new tokens behind a cache of valid entries only."""
    block, weights = decoder.DecoderBlock(config), decoder.layer_params(layers, index)
    queries, keys, values = block.apply({"params": weights}, hidden, angles, method="qkv")
    keys, values = (
        jnp.concatenate(pair, axis=1) for pair in zip(past, (keys, values), strict=True)
    )
    old, new = past[0].shape[1], queries.shape[1]
    mask = np.tri(new, old + new, k=old, dtype=bool)[None, None]
    mixed = decoder.attend(queries, keys, values, mask=jnp.asarray(mask))
    return block.apply({"params": weights}, hidden, mixed, method="mix")


@pytest.mark.parametrize("spec", PRUNED + RELATED + ABLATIONS)
def test_caches_have_the_pruned_length_and_kv_bytes_is_theirs(model, inputs, prompts, spec):
    config = model.config.decoder
    B, N = inputs.tokens.shape
    V, prompt = inputs.visual_source.shape[1], prompts(spec)
    method = parse(spec).resolve(model.config)
    slots_of, present = [N] * config.num_layers, V
    for stage in method.stages:
        present = min(present, method.capacity(stage, V, inputs.layout.num_images))
        for layer in range(0 if stage.compact_earlier_kv else stage.layer, config.num_layers):
            slots_of[layer] = N - V + present
    assert present < V
    layer, expected = 0, 0
    for span in prompt.cache:
        slots = slots_of[layer]
        assert span.keys.shape == span.values.shape
        assert span.keys.shape[1:] == (B, slots, config.num_kv_heads, config.rope.head_dim)
        layer += span.keys.shape[0]
        expected += span.keys.size * 2 * 4
    assert layer == config.num_layers
    assert prompt.kv_bytes == expected < prompts("dense").kv_bytes
    assert ivc_jax.decode(model, prompt, STEPS).kv_bytes == expected


def test_equal_methods_share_one_program(model, inputs, prompts):
    prompts("ivc")
    before = compiled_programs()
    again = collate(batch_of(3, 2, 1, 0), model.config, BUCKET)
    for method in (parse("ivc:keep_ratio=0.50"), IVCPrune(keep_ratio=0.5)):
        ivc_jax.prefill(model, again, method)
    assert compiled_programs() == before


def test_stop_token_ends_one_sample_and_not_its_mates(model, prompts):
    free = ivc_jax.decode(model, prompts("dense"), STEPS)
    tokens = np.asarray(free.tokens)
    stop = int(tokens[0, 2])
    hit = tokens == stop
    ended = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, STEPS)
    assert min(ended) < max(ended)
    out = ivc_jax.decode(model, prompts("dense"), STEPS, stop_ids=(stop,))
    np.testing.assert_array_equal(out.lengths, ended)
    for row, length in enumerate(ended):
        np.testing.assert_array_equal(out.tokens[row, :length], tokens[row, :length])
        assert not np.asarray(out.tokens[row, length:]).any()


def test_max_new_tokens_below_one_is_an_error(model, prompts):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        ivc_jax.decode(model, prompts("dense"), max_new_tokens=0)


def test_ties_go_to_the_lowest_token(model, prompts):
    prompt = prompts("dense")
    tied = jnp.zeros_like(prompt.logits).at[:, jnp.array([9, 4, 200])].set(1.0)
    out = ivc_jax.decode(model, prompt.replace(logits=tied), STEPS)
    assert out.tokens[:, 0].tolist() == [4] * 4


def test_plan_of_a_late_and_an_early_cut():
    late = parse("ivc:layer=3")
    assert make_plan(5, late) == (Span(0, 3), Cut(late.stages[0]), Span(3, 5))
    early = parse("fastv:layer=2")
    spans = (Span(0, 1), Span(1, 2, alone=True), Cut(early.stages[0]), Span(2, 5))
    assert make_plan(5, early) == spans
    assert make_plan(5, DENSE) == (Span(0, 5),)


@dataclasses.dataclass(frozen=True)
class Scripted(type(DENSE)):
    """A method made of given stages and requests."""

    script: tuple = ()

    @property
    def stages(self):
        return tuple(stage for stage, _ in self.script)

    def requests(self, stage):
        return dict(self.script)[stage]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (((Stage(5, 0.5), ()),), "layer=5 is outside the model: it has layers 0 to 4"),
        (((Stage(-1, 0.5), ()),), "outside the model"),
        (((Stage(3, 0.5), ()), (Stage(2, 0.4), ())), "must not go back"),
        (((Stage(2, 0.5), (Values(2),)),), "blocks 0 to 1 have run"),
        (((Stage(2, 0.5), ()), (Stage(3, 0.4), (AttentionRows(1),))), "blocks 2 to 2 have run"),
        (((Stage(2, 1.5), ()),), r"keep_ratio must be in \(0, 1\]"),
    ],
)
def test_plan_rejects_what_the_model_cannot_give(script, message):
    with pytest.raises(MethodError, match=message):
        make_plan(5, Scripted(script=script))


def test_layer_outside_the_model_is_an_error_before_any_work(model, inputs):
    with pytest.raises(MethodError, match="layers 0 to 3"):
        ivc_jax.prefill(model, inputs, parse("ivc:layer=16"))


def test_compaction_by_hand():
    """The picture in `engine.compact`, with a second row that is shorter and keeps one token."""
    int32 = lambda *rows: jnp.asarray(rows, jnp.int32)  # noqa: E731
    layout = Layout(
        visual_index=int32([1, 2, 3, 4], [1, 2, 0, 0]),
        visual_valid=jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0]], bool),
        visual_origin=int32([0, 1, 2, 3], [0, 1, 0, 0]),
        image_id=int32([0, 0, 0, 0], [0, 0, -1, -1]),
        grid=jnp.stack([int32([0, 0, 1, 1], [0, 0, -1, -1])] * 3, axis=-1),
        image_count=int32([4, 4, 4, 4], [2, 2, 0, 0]),
        visual_count=jnp.asarray([4, 2], jnp.int32),
        text_index=int32([0, 5, 6, 0], [0, 3, 0, 0]),
        text_valid=jnp.asarray([[1, 1, 1, 0], [1, 1, 0, 0]], bool),
        positions=jnp.tile(jnp.arange(8, dtype=jnp.int32) + 10, (3, 2, 1)),
        lengths=jnp.asarray([7, 4], jnp.int32),
        num_images=1,
        visual_slots=4,
        num_positions=32,
    )
    slots = jnp.tile(jnp.arange(8, dtype=jnp.int32), (2, 1))
    sequence = Sequence(hidden=slots[..., None].astype(jnp.float32), layout=layout, origin=slots)
    selection = Selection(index=int32([1, 3], [1, 0]), valid=jnp.asarray([[1, 1], [1, 0]], bool))
    short, order = compact(sequence, selection)
    assert order.tolist() == [[0, 2, 4, 5, 6, 1], [0, 2, 3, 1, 4, 5]]
    assert short.hidden[..., 0].tolist() == order.tolist()
    assert short.layout.lengths.tolist() == [5, 3]
    assert short.layout.visual_index.tolist() == [[1, 2], [1, 0]]
    assert short.layout.text_index.tolist() == [[0, 3, 4, 0], [0, 2, 0, 0]]
    assert short.layout.image_id.tolist() == [[0, 0], [0, -1]]
    assert short.layout.grid[..., 0].tolist() == [[0, 1], [0, -1]]
    assert short.layout.positions[0].tolist() == (np.array(order) + 10).tolist()
    assert short.layout.visual_origin[0].tolist() == [1, 3]


@pytest.mark.parametrize("spec", ["holov", "nuwa", "visiondrop"])
def test_a_tower_with_windows_serves_the_same_promises(tiny_hf, spec):
    """Qwen2.5-VL's rows come in window order; what a method keeps must not show it."""
    path = tiny_hf(family="qwen2_5_vl", num_hidden_layers=4)
    model, method = ivc_jax.load(path, dtype="float32")[0], parse(spec)
    both = ivc_jax.prefill(model, collate(batch_of(2, 3), model.config, BUCKET), method)
    for row, number in enumerate((2, 3)):
        alone = ivc_jax.prefill(model, collate(batch_of(number), model.config, WIDE), method)
        np.testing.assert_array_equal(both.kept[row], alone.kept[0])
        np.testing.assert_allclose(both.logits[row], alone.logits[0], rtol=0, atol=1e-4)
