"""The study of cells: what is hidden, and that hiding is what removal in the engine does."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import ivc_jax
from digit_cells import export, files, scenes, tower
from digit_cells import tokenizer as words
from digit_cells.questions import TASKS, write_box
from digit_cells.setting import SETTINGS
from digit_cells.study import claims, exam, maps, measure, sets
from digit_cells.study.conditions import list_conditions
from digit_cells.study.record import Record
from digit_scenes import digits
from digit_scenes.packing import Encoder, draw
from digit_scenes.tokenizer import find_special_ids
from ivc_jax.config import RopeConfig
from ivc_jax.nn import decoder

GRID = 5


@pytest.fixture(scope="module", params=["sections", "line"])
def folder(request, tmp_path_factory):
    """A model of three blocks with random weights."""
    setting = dataclasses.replace(SETTINGS[request.param], grid=GRID, layers=3)
    tokenizer = words.build(GRID)
    config = files.read_config(setting, find_special_ids(tokenizer), tokenizer.get_vocab_size())
    params = jax.jit(lambda key: decoder.init_params(config, key))(jax.random.key(1))
    params["vision"] = tower.init_params(config.vision, jax.random.key(0))["vision"]
    folder = tmp_path_factory.mktemp(request.param) / "hf"
    export.write(setting, params, folder)
    return folder


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
    assert sheet.objects.sum(axis=1).tolist() == [len(scene.digits) for scene in sheet.scenes]
    for scene, objects in zip(sheet.scenes, sheet.objects, strict=True):
        cells = {(d.box[1] // 16) * GRID + d.box[0] // 16 for d in scene.digits}
        assert cells == set(np.flatnonzero(objects).tolist())
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
    asked = draw(random, scene, pupil.plan, TASKS)
    bank = tower.encode_bank(pupil.config.vision, pupil.params["vision"], cells)
    sheet = exam.Sheet(
        (scene,) * exam.ROWS,
        **Encoder(pupil.tokenizer, pupil.plan)([asked] * exam.ROWS),
        visual=np.stack([bank[picks]] * exam.ROWS),
        objects=np.stack([np.isin(picks, cells.with_digit)] * exam.ROWS),
        targets=exam.find_targets([asked] * exam.ROWS, GRID),
    )
    condition = sets.Condition("hide", "mirror_lr", 1)
    layout, rope = sets.lay_out(pupil), pupil.config.decoder.rope
    hidden = sets.find_hidden(condition, layout, rope, sheet, 0)
    seen = ~(hidden[None, :, None] & (np.arange(3)[:, None, None, None] >= 1))
    model, processor = ivc_jax.load(folder, dtype="float32")
    boxes = [digit.box for digit in scene.digits]
    picture = scenes.join(cells.pixels[picks], GRID)
    batch = processor([asked[0].text], [[picture]], objects=[[boxes]])
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(pupil.answer(sheet, seen))[0, 0]
        whole = np.asarray(pupil.answer(sheet, np.ones((1, 1, 1, 1), bool)))[0, 0]
        dropped = ivc_jax.prefill(
            *(
                model,
                batch,
                "ivc_removal:layer=1,among=background,control=mirror_lr"
                ",cos_fraction=0.1,sin_fraction=0.1",
            ),
        )
        dense = ivc_jax.prefill(model, batch)
    np.testing.assert_allclose(logits, dropped.logits[0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(whole, dense.logits[0], rtol=0, atol=2e-5)
    assert np.abs(logits - whole).max() > 1e-3


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
