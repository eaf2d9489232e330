"""Promises that the engine makes for every method: see `ivc_jax.methods.METHODS`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import BUCKET, STEPS, WIDE, batch_of
from helpers.methods import complete

import ivc_jax
from ivc_jax.engine.compact import Sequence, compact
from ivc_jax.engine.plan import Cut, Span, make_plan
from ivc_jax.engine.prefill import count_programs, embed_inputs
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import IVCPrune, parse
from ivc_jax.methods.base import DENSE, MethodError, Stage
from ivc_jax.methods.requests import AttentionRows, TowerFeatures, Values
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.attention import attend
from ivc_jax.types import Layout, Selection

PRUNED = ["random", "uniform", "ivc", "fastv:layer=1", "fastv+ivc:layer=2"]
RELATED = [
    "fastv+pore:layer=2,sigma=3",
    "pyramiddrop",
    "sparsevlm+ivc",
    "holov",
    "scope",
    "visiondrop",
    "visionzip",
    "prumerge",
    "vscan",
    "fsr",
    "nuwa+ivc",
    "vflowopt:cell=2",
    "quota",
    complete("embedlens"),
]
# Held to those promises that one program can show: they choose as others above do.
ABLATIONS = ["ivc_progressive:layers=3,ratios=0.5", "ivc_removal:layer=0"]
# These never leave all tokens as they are, whatever the keep ratio.
NEVER_DENSE = ("sparsevlm+ivc", "nuwa+ivc", "prumerge")
TEXT = 1  # the one of the PROMPTS without visuals


@pytest.fixture(scope="module")
def prompts(model, inputs):
    """Give a function that prefills the four PROMPTS together, once for each method."""
    return functools.cache(lambda spec: ivc_jax.prefill(model, inputs, parse(spec)))


@pytest.fixture(scope="module")
def lone(model):
    """Each of the PROMPTS alone, in the larger bucket: three of them share a program."""
    return [collate(batch_of(row), model.config, WIDE) for row in range(4)]


@pytest.fixture(scope="module")
def lone_text(model, lone):
    """What the prompt without visuals leaves behind, and its answer."""
    prompt = ivc_jax.prefill(model, lone[TEXT])
    return prompt, ivc_jax.decode(model, prompt, STEPS, ())


def ratio(spec, value):
    return parse(f"{spec}{',' if ':' in spec else ':'}keep_ratio={value}")


@pytest.mark.parametrize("spec", [s for s in PRUNED + RELATED if s not in NEVER_DENSE])
def test_keep_ratio_one_equals_dense_bit_for_bit(model, inputs, prompts, spec):
    dense, full = prompts("dense"), ivc_jax.prefill(model, inputs, ratio(spec, 1.0))
    np.testing.assert_array_equal(full.logits, dense.logits)
    for kept, everything in zip(full.kept, dense.kept, strict=True):
        np.testing.assert_array_equal(kept, everything)


@pytest.mark.parametrize("spec", PRUNED + RELATED)
def test_batch_mates_and_a_larger_bucket_change_nothing(model, prompts, lone, lone_text, spec):
    """Answers of RELATED are left to recomputation, below."""
    together = prompts(spec)
    for row, inputs in enumerate(lone):
        if row != TEXT:
            alone = ivc_jax.prefill(model, inputs, parse(spec))
        else:
            alone, _ = lone_text
        np.testing.assert_array_equal(together.kept[row], alone.kept[0])
        np.testing.assert_allclose(together.logits[row], alone.logits[0], rtol=0, atol=1e-4)
        assert together.cached_share[row] == pytest.approx(alone.cached_share[0])
        if spec in PRUNED:
            answer = lone_text[1] if row == TEXT else ivc_jax.decode(model, alone, STEPS, ())
            tokens = ivc_jax.decode(model, together, STEPS, ()).tokens
            np.testing.assert_array_equal(tokens[row], answer.tokens[0])


def test_without_visuals_a_method_does_nothing(model, lone, lone_text):
    pruned = ivc_jax.prefill(model, lone[TEXT], parse("fastv+ivc:layer=2"))
    np.testing.assert_array_equal(pruned.logits, lone_text[0].logits)
    assert pruned.selection is None


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


@pytest.fixture(scope="module")
def run_masked(model, inputs):
    """Give a function that runs the unpruned prompts, some slots invisible, to the last logits."""
    config, lengths = model.config.decoder, inputs.layout.lengths

    @jax.jit
    def run(params, inputs, mask):
        hidden, _, _ = embed_inputs(model.config, params, inputs)
        angles = rope.angles(config.rope, inputs.layout.positions)
        attend = functools.partial(decoder.attend_whole, mask=mask)
        layers = params["decoder"]["layers"]
        hidden, _ = decoder.run_span(config, layers, hidden, angles, 0, config.num_layers, attend)
        last = hidden[np.arange(len(lengths)), lengths - 1]
        return decoder.logits(config, params["decoder"], last)

    return functools.partial(run, model.params, inputs)


@pytest.mark.parametrize("spec", ["random:layer=0", "uniform+ivc:layer=0", "holov", "scope+ivc"])
def test_cut_before_the_decoder_equals_masking_dropped_tokens(inputs, prompts, run_masked, spec):
    visible = np.zeros(inputs.tokens.shape, bool)  # [B, N]
    for row, kept in zip(visible, prompts(spec).kept, strict=True):
        row[kept] = True
    mask = visible[:, None, None] & np.tri(visible.shape[1], dtype=bool)
    np.testing.assert_allclose(prompts(spec).logits, run_masked(mask), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def recompute(model):
    """Give a function that runs tokens [B, Q] at once behind caches of N slots; [B, Q] choices.

    Keys and values are [L, B, N, G, C], valid lengths and the position of the first token [L, B].
    """
    config, params = model.config.decoder, model.params["decoder"]

    @jax.jit
    def run(keys, values, lengths, first, tokens):
        Q, N = tokens.shape[1], keys.shape[2]
        hidden = decoder.embed(params, tokens)
        for layer, block in enumerate(params["layers"]):
            position = first[layer][:, None] + jnp.arange(Q)
            angles = rope.angles(config.rope, jnp.broadcast_to(position, (3, *position.shape)))
            old = jnp.arange(N) < lengths[layer][:, None, None, None]  # [B, 1, 1, N]
            old = jnp.broadcast_to(old, (*old.shape[:2], Q, N))
            new = jnp.broadcast_to(np.tri(Q, dtype=bool), (*old.shape[:2], Q, Q))
            attend = functools.partial(
                attend_to_past, (keys[layer], values[layer]), jnp.concatenate([old, new], axis=3)
            )
            hidden, _ = decoder.run_layer(config, block, hidden, angles, attend)
        return decoder.logits(config, params, hidden).argmax(axis=-1)

    return run


def attend_to_past(past, mask, *vectors):
    """Attend from new tokens to old keys and to their own."""
    query, *new = vectors
    keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(past, new, strict=True))
    return attend(query, keys, values, mask=mask), None


@pytest.mark.parametrize(
    "spec", ["dense", *PRUNED, *RELATED, "pyramiddrop:positions=reindex,layers=0/2/3"]
)
def test_decode_from_the_cache_equals_recomputation(model, inputs, prompts, recompute, spec):
    """Feed the generated tokens through the pruned model at once and compare every choice."""
    prompt, N = prompts(spec), inputs.tokens.shape[1]
    keys, values, lengths, first = [], [], [], []
    for span in prompt.cache:
        pad = [(0, 0), (0, 0), (0, N - span.keys.shape[2]), (0, 0), (0, 0)]
        keys.append(np.pad(span.keys, pad))
        values.append(np.pad(span.values, pad))
        # Reindexed survivors are numbered from 0.
        moved = "reindex" in spec and span.keys.shape[2] < N
        layers = (len(span.keys), 1)
        lengths.append(np.tile(span.lengths, layers))
        first.append(np.tile(span.lengths if moved else prompt.next_position, layers))
    tokens = np.asarray(ivc_jax.decode(model, prompt, STEPS, ()).tokens)
    cache = (np.concatenate(parts) for parts in (keys, values, lengths, first))
    np.testing.assert_array_equal(recompute(*cache, tokens[:, :-1]), tokens[:, 1:])
    assert prompt.cache[-1].lengths.tolist() == [len(kept) for kept in prompt.kept]


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


def test_equal_methods_share_one_program(model, inputs, prompts):
    prompts("ivc")
    before = count_programs()
    again = collate(batch_of(3, 2, 1, 0), model.config, BUCKET)
    for method in (parse("ivc:keep_ratio=0.50"), IVCPrune(keep_ratio=0.5)):
        ivc_jax.prefill(model, again, method)
    assert count_programs() == before


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
        (((Stage(0, 0.5, merge_in="tower"), ()),), r"asks for TowerFeatures\(\)"),
        (
            ((Stage(2, 0.5, merge_in="tower"), (TowerFeatures(),)),),
            "the cut before layer 2",
        ),
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
        content=jnp.asarray([[1, 1, 1, 0], [1, 1, 0, 0]], bool),
        tiles=jnp.stack([int32([1, 1, 2, 2], [1, 1, 0, 0])] * 2, axis=-1),
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


@pytest.fixture(scope="module")
def windowed(tiny_hf):
    return ivc_jax.load(tiny_hf(family="qwen2_5_vl", num_hidden_layers=4), dtype="float32")[0]


@pytest.mark.parametrize("spec", ["holov", "nuwa", "visiondrop", "vscan"])
def test_a_tower_with_windows_serves_the_same_promises(windowed, spec):
    """Qwen2.5-VL's rows come in window order; what a method keeps must not show it."""
    method, config = parse(spec), windowed.config
    both = ivc_jax.prefill(windowed, collate(batch_of(2, 3), config, BUCKET), method)
    for row, number in enumerate((2, 3)):
        alone = ivc_jax.prefill(windowed, collate(batch_of(number), config, WIDE), method)
        np.testing.assert_array_equal(both.kept[row], alone.kept[0])
        np.testing.assert_allclose(both.logits[row], alone.logits[0], rtol=0, atol=1e-4)
