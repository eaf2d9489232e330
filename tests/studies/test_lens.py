"""The lens: calibration on made-up tokens, what runs on tiny models, interventions, the command."""

import json

import numpy as np
import pytest
from helpers.batches import show_pictures
from PIL import Image

import ivc_jax
from ivc_jax.commands.main import main
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import parse
from ivc_jax.methods.word_table import WordTable, read_table
from ivc_jax.studies.lens import calibrate, looking
from ivc_jax.studies.lens.calibrate import Thresholds, Word
from ivc_jax.studies.lens.interventions import Intervention, intervene

# Tokens near a direction: how many of a picture, and how far they scatter about it.
KINDS = {7: (2, 0.001), 8: (1, 0.001), 3: (3, 0.2), 4: (4, 0.2), 5: (2, 0.7)}
PICTURES, D = 30, 48


def make_tokens():
    """Draw pictures of two sinks, two dead kinds, and tokens that are alike within a picture."""
    random = np.random.default_rng(0)
    centre = {word: random.normal(size=D) for word in KINDS}
    vectors, words, images, tower = [], [], [], []
    for image in range(PICTURES):
        for word, (count, scatter) in KINDS.items():
            drawn = centre[word] + scatter * random.normal(size=(count, D))
            vectors.append(drawn)
            words += [word] * count
            images += [image] * count
            tower += [5.0 if word == 7 else 1.0] * count
        own = random.normal(size=(6, D))
        vectors.append(own)
        words += [20 + image % 9] * 6
        images += [image] * 6
        tower += [1.0] * 6
    units = np.concatenate(vectors)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return units.astype(np.float32), np.array(words), np.array(images), np.array(tower)


def test_calibration_finds_sinks_of_both_kinds_and_dead_tokens():
    units, words, images, tower = make_tokens()
    found = {each.word: each for each in calibrate.measure_words(units, words, images, tower)}
    assert found[7].freq == pytest.approx(2 / 18)
    assert found[7].cover == found[3].cover == 1
    assert found[20].cover == pytest.approx(4 / 30)
    assert found[7].similarity > 0.999 > found[3].similarity > 0.9 > found[5].similarity > 0.5
    assert abs(found[20].similarity) < 0.1
    assert found[7].tower_norm == 5
    table = calibrate.choose_words(list(found.values()), Thresholds())
    # 3 and 4 are dead: 4 first with 22 % of the tokens, then 3, which passes 35 %.
    assert table == WordTable(vit_sinks=(7,), llm_sinks=(8,), dead=(3, 4))
    less = calibrate.choose_words(list(found.values()), Thresholds(dead_share=0.2))
    assert less.dead == (4,)
    more = calibrate.choose_words(
        list(found.values()), Thresholds(dead_share=0.9, dead_similarity=0.5, tower_norm=6)
    )
    assert more == WordTable((), (7, 8), (3, 4, 5))


def test_a_sink_is_not_dead_and_cover_decides():
    words = [Word(1, 0.3, 0.95, 0.995), Word(2, 0.3, 0.89, 0.999), Word(3, 0.2, 0.9, 0.8)]
    words.append(Word(4, 0.1, 1.0, float("nan")))
    assert calibrate.choose_words(words, Thresholds()) == WordTable((), (1,), (3,))


def test_similarity_is_the_mean_over_pairs_of_different_pictures():
    units = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 0]]
    images = np.array([0, 0, 0, 1, 2])
    (found,) = calibrate.measure_words(units, np.zeros(5, int), images)
    # 0-3 0-4 1-3 1-4 2-3 2-4 3-4
    assert found.similarity == pytest.approx((0 + 1 + 0 + 1 + 1 + 0 + 0) / 7)
    assert found.tower_norm is None
    (alone,) = calibrate.measure_words(units, np.zeros(5, int), np.zeros(5, int))
    assert np.isnan(alone.similarity)


def test_prototypes_call_tokens_by_the_name_of_the_probe():
    units, words, *_ = make_tokens()
    table, ids = WordTable((7,), (8,), (3, 4)), np.repeat(words[:, None], 3, axis=1)
    prototypes = calibrate.find_prototypes(units, ids, table, 5.0)
    assert [(each.word, each.kind) for each in prototypes] == [(7, 1), (8, 2), (3, 3), (4, 3)]
    kinds = np.select([words == 7, words == 8, np.isin(words, (3, 4))], [1, 2, 3], 0)
    fast = calibrate.classify_fast(units, prototypes)
    missed = (fast != kinds) & (kinds > 0)
    assert not (fast[kinds == 0]).any()
    assert missed[kinds == 3].mean() == pytest.approx(0.05, abs=0.02)


@pytest.fixture(scope="module", params=["qwen2_vl", "deepseek_vl2"])
def shown(request, tiny_hf):
    path = tiny_hf(family=request.param, num_hidden_layers=3)
    model, processor = ivc_jax.load(path, dtype="float32")
    return model, collate(show_pictures(processor), model.config)


def test_interventions_without_effect_are_the_model_itself(shown):
    model, inputs = shown
    every = np.ones(inputs.layout.visual_valid.shape, bool)
    dense = np.asarray(ivc_jax.prefill(model, inputs).logits)
    none = intervene(model, inputs, every, Intervention("none"))
    np.testing.assert_allclose(none, dense, rtol=0, atol=1e-4)
    nobody = intervene(model, inputs, ~every, Intervention("all", (0.0, 0.5, 1.0), 1, 2))
    np.testing.assert_allclose(nobody, dense, rtol=0, atol=1e-4)


def test_leaving_before_the_first_block_is_being_pruned(shown):
    model, inputs = shown
    method = parse("random:layer=0,keep_ratio=0.5")
    prompt = ivc_jax.prefill(model, inputs, method)
    chosen, valid = prompt.selection, np.asarray(inputs.layout.visual_valid)
    kept = np.zeros(valid.shape, bool)
    for row, index, real in zip(kept, chosen.index, chosen.valid, strict=True):
        row[np.asarray(index)[np.asarray(real)]] = True
    logits = intervene(model, inputs, ~kept, Intervention("out", exit=0))
    np.testing.assert_allclose(logits, prompt.logits, rtol=0, atol=1e-4)


def test_tokens_that_enter_late_have_no_effect_before_and_skip_what_they_skip(shown):
    model, inputs = shown
    every = np.ones(inputs.layout.visual_valid.shape, bool)
    run = lambda **fields: intervene(model, inputs, every, Intervention("", **fields))  # noqa: E731
    depth = model.config.decoder.num_layers
    np.testing.assert_allclose(run(entry=depth), run(exit=0), rtol=0, atol=1e-5)
    # What visual tokens become in the last block, nobody reads.
    last = run(skip=(depth - 1.0, depth - 0.5))
    np.testing.assert_allclose(last, run(), rtol=0, atol=1e-5)
    with_pictures = np.asarray(inputs.layout.visual_count) > 0
    for fields in ({"skip": (0.0,)}, {"skip": (0.5,)}, {"entry": 1}, {"exit": depth - 1}):
        changed = np.abs(run(**fields) - run()).max(axis=1)
        assert (changed[with_pictures] > 1e-6).all()
        np.testing.assert_allclose(changed[~with_pictures], 0, atol=1e-5)


def test_looking_agrees_with_what_methods_are_told(shown):
    from ivc_jax.engine.observe import observe
    from ivc_jax.methods.requests import AttentionRows, Embeddings, Hidden

    model, inputs = shown
    seen, valid = looking.look(model, [inputs, inputs]), np.asarray(inputs.layout.visual_valid)
    half = valid.sum()
    assert len(seen.image) == 2 * half
    assert seen.num_images == 2 * len(valid)
    entering, hidden, rows = observe(model, inputs, 2, Embeddings(), Hidden(), AttentionRows(1))
    np.testing.assert_allclose(seen.entering[:half], entering.visual[valid], atol=1e-5)
    np.testing.assert_allclose(
        seen.norms[2, half:], np.linalg.norm(hidden.visual[valid], axis=1), rtol=1e-4
    )
    np.testing.assert_allclose(seen.attention[1, :half], rows.mean(axis=1)[:, 0][valid], atol=1e-5)


def test_the_command_writes_a_table_that_the_method_reads(tiny_hf, tmp_path, capsys):
    path, folder, out = tiny_hf(num_hidden_layers=2), tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        pixels = random.integers(0, 256, (56, 84, 3), np.uint8)
        pixels[:, :56] = 255  # two columns of three are white in every picture
        Image.fromarray(pixels).save(folder / f"{number}.png")
    given = ["lens", "--model", str(path), "--images", str(folder), "--batch-size", "3"]
    table = tmp_path / "beside" / "embedlens.json"
    assert main([*given, "--methods", "random", "--out", str(out), "--table", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "held out: alive" in printed
    record = json.loads((out / "lens.json").read_text())
    assert record["meta"]["held_out"] == 1
    assert [row["name"] for row in record["rows"]] == ["IVC tokens", "random"]
    assert record["rows"][1]["kept"] == 0.5
    (drawn,) = record["drawn"]  # as the tokens lie
    assert [len(line) for line in drawn] == [9] * 6
    assert {*"".join(drawn)} <= {*"0123"}
    assert (out / "report.md").read_text().count("figures/") == 3
    assert {file.name for file in (out / "figures").iterdir()} == {
        *("maps.png", "layers.png", "overlap.png")
    }
    found = read_table(table)
    assert found == read_table(out / "table.json")
    if any(found.classes):
        model, processor = ivc_jax.load(path, dtype="float32")
        batch = processor(["x"], [[Image.open(folder / "0.png")]])
        kept = ivc_jax.prefill(model, batch, f"embedlens:table={table},strict=true,keep_ratio=1")
        assert 0 < kept.selection.valid.sum() < 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--images", "nowhere"], "images: nowhere is no folder"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--percentile", "101"], "percentile must be in [0, 100]"),
        (["--pairs", "0"], "pairs must be at least 1"),
        (["--cover", "90"], "cover must be in [0, 1]"),
        (["--dead-similarity", "80"], "dead_similarity is a cosine"),
        (["--methods", "fastvv"], "unknown method 'fastvv'"),
        (["--budget", "2"], "budget must be in (0, 1]"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, capsys, given, message):
    assert main(["lens", "--out", str(tmp_path), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
