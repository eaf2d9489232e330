"""The inspector's sets: those that a prefill of the same specification keeps, on every family."""

import numpy as np
import pytest
from PIL import Image

import ivc_jax
from ivc_jax.engine.cost import count_prefill_flops
from ivc_jax.engine.observe import observe, observe_layers
from ivc_jax.methods import parse
from ivc_jax.methods.requests import AttentionRows, Values
from ivc_jax.reports import inspector as pages
from ivc_jax.studies.inspection import grid
from ivc_jax.studies.inspection.choices import choose_by_layer, list_observed
from ivc_jax.studies.inspection.prompt import Inspector, Prompt
from ivc_jax.studies.inspection.sets import sweep

RATIOS = (0.2, 0.5, 0.9)
BLOCKS = 4
METHODS = ("ivc:keep_ratio=0.3", "fastv", "random", "pyramiddrop", "dense")


@pytest.fixture(autouse=True)
def _few_ratios(monkeypatch):
    monkeypatch.setattr(grid, "RATIOS", RATIOS)


def load(tiny_hf, family):
    path = tiny_hf(family=family, num_hidden_layers=BLOCKS)
    options = {"max_tiles": 3} if family == "internvl" else {}
    return ivc_jax.load(path, dtype="float32", **options)


def draw_picture(height=64, width=48, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def list_kept(model, inputs, spec):
    """What a prefill keeps, counted in visual tokens."""
    (kept,) = ivc_jax.prefill(model, inputs, spec).kept
    layout = inputs.layout
    slots = np.asarray(layout.visual_index)[0][np.asarray(layout.visual_valid)[0]]
    return np.flatnonzero(np.isin(slots, kept)).tolist()


def sweep_methods(inspector, inputs, specs):
    kept = [list_kept(inspector.model, inputs, spec) for spec in specs]
    return sweep(inspector.model, inputs, [parse(spec) for spec in specs], kept)


def test_sets_are_those_of_a_prefill(tiny_hf):
    model, processor = load(tiny_hf, "qwen2_vl")
    inspector = Inspector(model, processor, "tiny")
    inputs = inspector.place(Prompt("Which is it?", (draw_picture(), draw_picture(40, 56, 1))))
    found = dict(zip(METHODS, sweep_methods(inspector, inputs, METHODS), strict=True))
    ivc = found["ivc:keep_ratio=0.3"]
    assert (ivc.layers, ivc.ratios, ivc.note) == ((1, 2, 3), (0.2, 0.3, 0.5, 0.9), "")
    for layer, ratio in [(1, 0.2), (2, 0.5), (3, 0.9)]:
        spec = f"ivc:layer={layer},keep_ratio={ratio}"
        place = ivc.layers.index(layer), ivc.ratios.index(ratio)
        assert ivc.specs[place[0]][place[1]] == spec
        assert np.flatnonzero(ivc.kept[place]).tolist() == list_kept(model, inputs, spec)
        expected = count_prefill_flops(model.config.decoder, ivc_jax.prefill(model, inputs, spec))
        np.testing.assert_allclose(ivc.flops[place], expected[0])
    for name, spec, place in [
        ("fastv", "fastv:layer=3,keep_ratio=0.2", (2, 0)),
        ("random", "random:layer=1,keep_ratio=0.9", None),
    ]:
        swept = found[name]
        place = place or (swept.layers.index(1), swept.ratios.index(0.9))
        assert swept.specs[place[0]][place[1]] == spec
        assert np.flatnonzero(swept.kept[place]).tolist() == list_kept(model, inputs, spec)
    # without sliders: the set as asked, and one line that says why
    for name, why in [("pyramiddrop", "cuts several times"), ("dense", "keeps every token")]:
        assert (found[name].layers, found[name].kept.shape[:2]) == ((), (1, 1))
        assert why in found[name].note
        assert found[name].list_kept() == list_kept(model, inputs, name)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "internvl", "deepseek_vl2"])
def test_every_family_has_sets_and_panels(tiny_hf, family):
    model, processor = load(tiny_hf, family)
    inspector = Inspector(model, processor, "tiny")
    found = inspector.inspect(
        Prompt("What is it?", (draw_picture(),)), [parse("ivc"), parse("fastervlm")], 2
    )
    inputs = inspector.place(Prompt("What is it?", (draw_picture(),)))
    ivc, fastervlm = found.sweeps
    assert ivc.note == ""
    assert ivc.layers == (1, 2, 3)
    assert ivc.kept.shape[1] == len(RATIOS)
    assert {"cosine", "sine", "coordinates", "seeds", "score"} == {*ivc.parts}
    spec = ivc.specs[0][0]
    assert spec == "ivc:layer=1,keep_ratio=0.2"
    assert np.flatnonzero(ivc.kept[0, 0]).tolist() == list_kept(model, inputs, spec)
    # of a method before the decoder only the keep ratio can be chosen
    assert (fastervlm.layers, fastervlm.ratios) == ((0,), RATIOS)
    assert fastervlm.note.startswith("fastervlm cuts before the decoder")
    assert {*fastervlm.parts} == {"score"}
    spec = fastervlm.specs[0][2]
    assert np.flatnonzero(fastervlm.kept[0, 2]).tolist() == list_kept(model, inputs, spec)
    tokens = sorted(token for panel in found.panels for token in panel.tokens if token >= 0)
    assert tokens == list(range(ivc.kept.shape[-1]))  # each once
    assert "What is it?" in pages.render(found)


def test_a_budget_is_where_it_was_asked_for(tiny_hf):
    model, processor = load(tiny_hf, "qwen2_vl")
    inspector = Inspector(model, processor, "tiny")
    inputs = inspector.place(Prompt("Which is it?", (draw_picture(),)))
    specs = ("ivc:budget=0.2", "fastv:budget=0.5", "fastv+ivc", "ivc+rope:keep=0-3")[:3]
    for spec, found in zip(specs, sweep_methods(inspector, inputs, specs), strict=True):
        assert found.note == ""
        assert found.list_kept() == list_kept(model, inputs, spec)
        assert {"score"} < {*found.parts} or spec.startswith("fastv:")
    ivc = grid.make_grid(parse("ivc:budget=0.2"), model.config, 48)
    assert ivc.specs[ivc.asked[0]][ivc.asked[1]] == "ivc:budget=0.2"
    assert ivc.specs[0][1] == "ivc:layer=1,keep_ratio=0.5"  # others have no budget


def test_parts_are_what_the_choice_is_made_of(tiny_hf):
    model, processor = load(tiny_hf, "qwen2_vl")
    inspector = Inspector(model, processor, "tiny")
    inputs = inspector.place(Prompt("Which is it?", (draw_picture(),)))
    (found,) = sweep_methods(inspector, inputs, ("ivc:keep_ratio=0.5",))
    layout, rope = inputs.layout, model.config.decoder.rope
    valid = np.asarray(layout.visual_valid)[0]
    positions = np.asarray(layout.positions)[:, 0][:, np.asarray(layout.visual_index)[0][valid]]
    V, U = ivc_jax.ivc.scores(rope.head_dim, rope.theta, int(positions.max()) + 1)
    planes = rope.head_dim / 2 / 1  # tables are means over planes
    for name, table in (("cosine", V), ("sine", U)):
        # the sum over the three axes, without the mean's divisor
        np.testing.assert_allclose(
            found.parts[name][0], table[positions].sum(axis=0) / planes, atol=1e-4
        )
    chosen = ivc_jax.ivc.select(
        positions, rope.head_dim, rope.theta, sections=rope.sections and tuple(rope.sections)
    )
    assert np.flatnonzero(found.parts["coordinates"][0]).tolist() == chosen.tolist()
    # IVC tokens and seeds are in the final set of every layer, the rest by score
    for layer in range(3):
        kept, parts = found.kept[layer, 1], {n: v[layer] for n, v in found.parts.items()}
        priority = parts["coordinates"] | parts["seeds"]
        assert kept[priority].all()
        others = ~priority
        assert parts["score"][kept & others].min() >= parts["score"][~kept].max()


def test_one_pass_tells_what_single_ones_tell(tiny_hf):
    model, processor = load(tiny_hf, "qwen2_vl")
    inputs = Inspector(model, processor, "tiny").place(Prompt("Why?", (draw_picture(),)))
    asked = {layer: (Values(layer - 1), AttentionRows(layer - 1)) for layer in (1, 3)}
    told = observe_layers(model, inputs, asked)
    for layer, requests in asked.items():
        values, rows = observe(model, inputs, layer, *requests)
        np.testing.assert_allclose(told[layer][0].visual, values.visual, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(told[layer][1], rows, rtol=1e-5, atol=1e-6)


def test_grids_of_deep_models_and_long_prompts_are_thinned(tiny_hf):
    model, _ = load(tiny_hf, "qwen2_vl")
    assert grid._choose_layers(28, 1200, 16) == list(range(28))
    assert grid._choose_layers(28, 10_000, 16) == [1, 6, 11, 16, 21, 26]
    assert grid.make_grid(parse("ivc:keep_ratio=1.0"), model.config, 40).ratios == (*RATIOS, 1.0)
    made = grid.make_grid(parse("divprune"), model.config, 40)
    assert (made.layers, made.ratios) == ((0,), RATIOS)
    assert made.fixed == "divprune cuts before the decoder: no layer to choose."
    assert grid.make_grid(parse("vscan"), model.config, 40) is None


def test_methods_that_ask_the_tower_are_not_observed_by_layer(tiny_hf):
    model, _ = load(tiny_hf, "qwen2_vl")
    method = parse("fastervlm").resolve(model.config)
    with pytest.raises(ivc_jax.methods.MethodError, match="is of no block"):
        list_observed((method,))
    assert choose_by_layer(model, None, [], []) == []


def test_a_set_that_is_not_the_prefills_has_no_sliders(tiny_hf):
    path = tiny_hf(num_hidden_layers=BLOCKS)
    model, processor = ivc_jax.load(path, dtype="float32", max_pixels=1 << 16)
    inputs = Inspector(model, processor, "tiny").place(
        Prompt("Why?", (draw_picture(120, 80),))  # 150 tokens
    )
    methods, kept = [parse("random:layer=1")], list_kept(model, inputs, "random:layer=1")
    dropped = sorted({*range(150)} - {*kept})
    for count, sliders in ((0, True), (1, True), (5, False)):
        mine = sorted(kept[count:] + dropped[:count])
        (found,) = sweep(model, inputs, methods, [mine])
        assert found.list_kept() == mine  # in any case what the prefill kept
        assert bool(found.layers) == sliders
        told = {0: "", 1: "2 tokens with nearly equal scores", 5: "What it keeps at other values"}
        assert found.note.startswith(told[count])
