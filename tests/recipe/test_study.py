"""The study of cells: what is hidden, and that hiding is what removal in the engine does."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.cells import write_checkpoint

import ivc_jax
from digit_scenes import digits, optimiser, scenes, tower
from digit_scenes.packing import Encoder, draw
from digit_scenes.questions import write_box
from digit_scenes.study import claims, exam, figures, maps, measure, sets
from digit_scenes.study.conditions import list_conditions
from digit_scenes.study.record import Record
from ivc_jax.config import RopeConfig

GRID = 5


@pytest.fixture(scope="module", params=["sections", "line"])
def folder(request, tmp_path_factory):
    """A model of three blocks with random weights."""
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param, GRID, 3)


@pytest.fixture(scope="module")
def pupil(folder):
    return exam.Pupil.load(folder, GRID)


@pytest.fixture(scope="module")
def sheet(pupil):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exam, "_CELLS", (64, 64))
        (found,) = exam.draw_sheets(pupil, exam.ROWS, 3)
    return found


def test_scenes_and_questions_fit_each_other(pupil, sheet):
    counts = sheet.objects.sum(axis=1)
    assert counts.min() >= 3
    assert counts.max() <= 9
    located = np.array([task == "grounding" for task in pupil.plan.tasks])
    assert (sheet.targets[:, ~located] == -1).all()
    for objects, targets, answers in zip(sheet.objects, sheet.targets, sheet.answers, strict=True):
        for question in np.flatnonzero(targets >= 0):
            assert objects[targets[question]]
            row, column = divmod(int(targets[question]), GRID)
            words = answers[pupil.plan.answer_task == question]
            assert pupil.tokenizer.decode(words[:-1].tolist()) == write_box((row, column), GRID)


def test_hidden_cells_are_those_that_the_methods_name(pupil, sheet):
    layout, rope = sets.lay_out(pupil), pupil.config.decoder.rope
    find = lambda *args, **kw: sets.find_hidden(  # noqa: E731
        sets.Condition(*args, **kw), layout, rope, sheet, 0
    )
    assert not find("all").any()
    gone = find("hide", "ivc")
    assert not (gone & sheet.objects).any()
    for name in ("random", "first", "mirror_lr", "lattice"):
        np.testing.assert_array_equal(find("hide", name).sum(axis=1), gone.sum(axis=1))
    # 10 % by V and 10 % by U of 25 cells are 2 each
    left = ~find("keep", "ivc")
    assert (left[sheet.objects]).all()
    assert ((left & ~sheet.objects).sum(axis=1) <= 4).all()
    np.testing.assert_array_equal(find("keep", "nothing"), ~sheet.objects)
    # the IVC set without objects is what "hide" takes, and what "keep" leaves beside them
    np.testing.assert_array_equal(gone, left & ~sheet.objects)
    assert (find("hide", "ivc", 0, 15) != gone).any()


def test_hidden_cells_answer_as_removed_ones(folder, pupil):
    """By attention that does not look, and by the engine that drops them."""
    random = np.random.default_rng(0)
    cells = scenes.draw_cells(random, digits.load("test"), 32, 32)
    scene, picks = scenes.arrange(random, cells, 5, GRID)
    asked = draw(random, scene, pupil.plan)
    bank = tower.encode_bank(pupil.config.vision, pupil.params["vision"], cells)
    sheet = exam.Sheet(
        **Encoder(pupil.tokenizer, pupil.plan)([asked] * exam.ROWS),
        visual=np.stack([bank[picks]] * exam.ROWS),
        objects=np.stack([np.isin(picks, cells.with_digit)] * exam.ROWS),
        targets=exam.find_targets([asked] * exam.ROWS, GRID),
    )
    condition = sets.Condition("hide", "mirror_lr", 1)
    layout, rope = sets.lay_out(pupil), pupil.config.decoder.rope
    hidden = sets.find_hidden(condition, layout, rope, sheet, 0)
    seen = measure.see_until(hidden, 1, 3)
    model, processor = ivc_jax.load(folder, dtype="float32")
    boxes = [digit.box for digit in scene.digits]
    picture = scenes.join(cells.pixels[picks], GRID)
    batch = processor([asked[0].text], [[picture]], objects=[[boxes]])
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(pupil.answer(sheet, seen))[0, 0]
        whole = np.asarray(pupil.answer(sheet, np.ones((1, 1, 1, 1), bool)))[0, 0]
        removal = "ivc_removal:layer=1,among=background,control=mirror_lr"
        dropped = ivc_jax.prefill(model, batch, f"{removal},cos_fraction=0.1,sin_fraction=0.1")
        dense = ivc_jax.prefill(model, batch)
    np.testing.assert_allclose(logits, dropped.logits[0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(whole, dense.logits[0], rtol=0, atol=2e-5)
    assert np.abs(logits - whole).max() > 1e-3


def test_references_of_an_axis_are_lines_of_it(pupil, sheet):
    if pupil.plan.line:
        pytest.skip("places on a line have no rows and columns")
    rope, layout = pupil.config.decoder.rope, sets.lay_out(pupil)
    for axis, name in enumerate(("height", "width")):
        hidden = sets.find_hidden(sets.Condition("axis", name), layout, rope, sheet, 0)
        assert not (hidden & sheet.objects).any()
        # cells of a line score alike: 10 % of 25 cells by V and by U are 2 each, of a line each
        marked = np.divmod(np.flatnonzero(hidden.any(axis=0)), GRID)[axis]
        assert len(set(marked.tolist())) == 2
        assert len(marked) == 4


def test_planes_of_an_axis_stop_and_no_others(pupil):
    if pupil.plan.line:
        pytest.skip("a line has one axis")
    stopped = measure.stop_axis(pupil, "width")
    usual, turns = (each.config.decoder.rope.frequencies for each in (pupil, stopped))
    np.testing.assert_array_equal(turns[:15], usual[:15])  # sections 6, 9, 9
    assert (usual[15:] > 0).all()
    assert not turns[15:].any()
    assert measure.stop_axis(pupil, "") is pupil


def test_gains_of_heads_learn_four_times_as_fast():
    scale = {"scale": np.zeros(4, np.float32)}
    params = {"layers": ({"q_norm": scale, "k_norm": scale, "input_layernorm": scale},)}
    stage = optimiser.build(100)
    slope = jax.tree.map(np.ones_like, params)
    change, _ = stage.update(slope, stage.init(params), params)
    block = change["layers"][0]
    usual = np.asarray(block["input_layernorm"]["scale"])
    assert (usual < 0).all()
    for name in ("q_norm", "k_norm"):
        np.testing.assert_allclose(block[name]["scale"], 4 * usual, rtol=1e-6)


def test_axes_are_counted_apart(pupil):
    plan = pupil.plan
    answers = np.zeros((1, len(plan.answer_task)), int)
    hits = np.ones_like(answers, bool)
    first = int(np.flatnonzero(plan.answer_task == 1)[0])  # the second locating question
    hits[0, first + 1] = False  # y1
    answers[0, plan.answer_task == 0] = -1  # the first was not asked
    found = measure.count_right(plan, hits, answers)
    assert found["grounding"].tolist() == [[4, 5]]
    assert found["columns"].tolist() == [[5, 5]]
    assert found["rows"].tolist() == [[4, 5]]
    assert found["reading"].tolist() == [[4, 4]]


def test_a_measurement_goes_on_where_it_was(pupil, sheet, tmp_path, monkeypatch):
    path = tmp_path / "tiny-0" / "answers.json"
    wanted = list_conditions(3, pupil.config.decoder.rope)
    assert len({c.key for c in wanted}) == len(wanted)
    monkeypatch.setattr(measure, "list_conditions", lambda *_: wanted[:2])
    record = Record.open(path, pupil, exam.ROWS)
    measure.measure(pupil, [sheet], record)
    again = Record.open(path, pupil, exam.ROWS)
    assert list(again.right) == [c.key for c in wanted[:2]]
    assert again == record
    with monkeypatch.context() as patch:
        patch.setattr(measure, "_ask", None)  # nothing is asked twice
        measure.measure(pupil, [sheet], again)
    shares = again.read_shares("all  from 0", "grounding")
    assert shares.shape == (exam.ROWS,)
    with pytest.raises(ValueError, match="of another model or other scenes"):
        Record.open(path, pupil, 2 * exam.ROWS)


def test_worth_is_what_questions_lose_where_a_place_is_hidden():
    worth = maps.Worth.empty(3)
    places = np.array([[0, 1, -1], [0, 1, 2], [0, 1, 2], [0, 1, 2]])
    hidden = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 1]], bool)
    worth.add(places, hidden, np.array([4.0, 2.0, 1.0, 3.0]))
    value, error = worth.measure()
    # place 0: hidden 4, 2; seen 1, 3. place 1: hidden 2, 1; seen 4, 3. place 2: hidden 1, 3; seen 2
    np.testing.assert_allclose(value, [1, -2, 0])
    np.testing.assert_allclose(error, [1, 0.5, np.sqrt(0.5)])


def test_places_are_told_from_the_target(pupil, sheet):
    asked, cells, away = maps.find_places(sheet, GRID)
    row, question = asked[0]
    target = sheet.targets[row, question]
    assert cells[0, target] == away[0, target] == -1  # no background
    free = int(np.flatnonzero(~sheet.objects[row])[0])
    down, right = (np.array(divmod(free, GRID)) - divmod(int(target), GRID)).tolist()
    assert cells[0, free] == free
    assert away[0, free] == (down + GRID - 1) * (2 * GRID - 1) + right + GRID - 1


def test_a_head_that_says_nothing_needs_no_cell(pupil, sheet):
    """Its column of the output projection is zero, and so is what hiding cells from it costs."""
    layers = list(pupil.params["decoder"]["layers"])
    width = pupil.config.decoder.rope.head_dim
    weight = np.array(layers[1]["o_proj"]["weight"])  # [out, in]
    weight[:, 2 * width : 3 * width] = 0
    layers[1] = {**layers[1], "o_proj": {**layers[1]["o_proj"], "weight": weight}}
    params = {**pupil.params, "decoder": {**pupil.params["decoder"], "layers": tuple(layers)}}
    silent = dataclasses.replace(pupil, params=params)
    for head, moved in ((2, False), (1, True), (None, True)):
        placed, away = maps.measure_head(silent, [sheet], 1, head, 1)
        for worth in (placed, away):
            assert (np.nanmax(np.abs(worth.measure()[0])) > 1e-4) == moved


def test_maps_go_on_where_they_were(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(exam, "_CELLS", (64, 64))
    path = tmp_path / "tiny-0" / "maps.json"
    command = [str(folder), str(path), f"--grid={GRID}", "--scenes=16", "--repeats=1"]
    maps.main(command)
    found = json.loads(path.read_text())
    assert len(found["maps"]) == 3 * 5  # blocks; all heads, and each of four
    first = found["maps"].pop("block 1 head 2")
    assert first != found["maps"]["block 0 head 2"]
    path.write_text(json.dumps(found))
    maps.main(command)
    assert json.loads(path.read_text())["maps"]["block 1 head 2"] == first


def _make_record(right):
    """A record of three scenes of one grounding question each."""
    tasks = ("grounding", "colour", "existence", "counting", "rows", "columns")
    shares = {key: dict.fromkeys(tasks, value) for key, value in right.items()}
    meta = {"blocks": 2, "rope": {"sections": None}}
    return Record(None, meta, dict.fromkeys(tasks, "444"), shares)


def test_differences_are_between_the_same_questions():
    keys = [c.key for c in list_conditions(2, RopeConfig(48, 1e4))]
    base = dict.fromkeys(keys, "222")
    lost = {key: "111" for key in keys if key.startswith("hide ivc from 0")}
    (found,) = [
        each for each in claims.compare([_make_record({**base, **lost})] * 2) if each.claim == "g"
    ]
    assert (found.first, found.second, found.block) == (0.5, 0.25, 0)
    assert found.by_model == (0.25, 0.25)
    assert (found.low, found.high) == (0.25, 0.25)
    assert 0.2 < found.p < 1  # six scenes allow no less than 2 in 64, times the differences


def test_maps_show_places_that_are_sure():
    found = figures.find_sure([0.5, -0.5, 0.1, None], [0.2, 0.25, 0.2, None])
    np.testing.assert_array_equal(found, [0.5, -0.5, np.nan, np.nan])
    maps = {
        name: {"by_place": [[scale] * 8 + [None], [0.1] * 8 + [None]]}
        for name, scale in (("block 0", 1.0), ("block 0 head 0", 0.3), ("block 0 head 1", 0.1))
    }
    drawn = figures.draw_maps({"meta": {"blocks": 1}, "maps": maps}, "by_place")
    panels = [axes for axes in drawn.axes if axes.images]
    assert [axes.get_title() for axes in panels] == [
        "block 0, all heads", "block 0 head 0", "block 0 head 1"
    ]  # fmt: skip
    shown = [axes.images[0].get_array() for axes in panels]
    assert [int((~np.ma.masked_invalid(each).mask).sum()) for each in shown] == [8, 8, 0]
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
