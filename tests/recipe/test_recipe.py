"""Settings of the recipe: sizes fit, the large grid packs, the small one is the bundled model."""

import dataclasses
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from digit_scenes import (
    CHECKPOINT,
    answering,
    card,
    dense,
    digits,
    export,
    packing,
    tower,
    train,
)
from digit_scenes import tokenizer as words
from digit_scenes.model import STEP, make_model_config
from digit_scenes.scenes import FRAME, Digit, Scene
from digit_scenes.setting import LARGE, SETTINGS, SMALL, SMALL_BLIND, Setting
from ivc_jax import families
from ivc_jax.model import read_config
from ivc_jax.nn import decoder
from ivc_jax.weights import keymap


@pytest.fixture(scope="module")
def tokenizer():
    return words.build()


@pytest.fixture(scope="module")
def configs(tokenizer):
    ids, size = words.find_special_ids(tokenizer), tokenizer.get_vocab_size()
    return {name: make_model_config(setting, ids, size) for name, setting in SETTINGS.items()}


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def start(setting, config):
    """Shapes of the parameters that the stages train: "vision", "decoder", "heads"."""
    key = jax.random.key(0)
    make = lambda: {  # noqa: E731
        **decoder.init_params(config, key),
        **tower.init_params(setting.vision, key),
    }
    return jax.eval_shape(make)


def test_small_is_the_bundled_model(configs, tmp_path):
    config, params = configs["small"], start(SMALL, configs["small"])
    assert read_config(CHECKPOINT) == config
    parts = {name: params[name] for name in ("vision", "decoder")}
    wanted = keymap.list_shapes(parts, config, families.QWEN2_VL.rules)
    with safe_open(CHECKPOINT / "model.safetensors", "numpy") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert wanted == stored
    assert card.count_parameters(config) == sum(map(math.prod, stored.values()))
    with pytest.raises(ValueError, match="other sizes than the setting"):
        train.begin_from(CHECKPOINT, tmp_path, configs["large"])


def test_small_draws_the_scenes_that_the_bundled_model_learnt_from():
    random = np.random.default_rng(0)
    drawn = SMALL.make_scenes(random, 2, SMALL.digits, "train")
    crowd = tower.make_batch(random, SMALL, 1, SMALL.crowd_quarters)["pixels"]
    pixels = b"".join(scene.pixels.tobytes() for scene in drawn) + crowd.tobytes()
    # Of the code before it knew settings.
    assert hashlib.sha256(pixels).hexdigest()[:16] == "eaab5c70e0860b50"


def test_large_scenes_hold_larger_digits_and_crowds_smaller_ones():
    random = np.random.default_rng(1)
    some = LARGE.make_scenes(random, 12, LARGE.digits, "test")
    crowds = LARGE.make_scenes(random, 3, LARGE.crowd_quarters, "train")
    side = lambda found: [d.box[2] - d.box[0] for s in found for d in s.digits]  # noqa: E731
    assert 28 <= min(side(some)) < 34
    assert 56 < max(side(some)) <= 64
    assert 26 <= min(side(crowds)) <= max(side(crowds)) <= 53
    assert all(3 <= len(scene.digits) <= 9 for scene in some)
    assert all(35 <= len(scene.digits) <= 49 for scene in crowds)
    for scene in (*some, *crowds):
        assert scene.pixels.shape == (384, 384, 3)
        ink = np.zeros((384, 384), int)
        for x1, y1, x2, y2 in (digit.box for digit in scene.digits):
            ink[y1:y2, x1:x2] += 1
        assert ink.max() == 1
        border = ink.copy()
        border[FRAME:-FRAME, FRAME:-FRAME] = 0
        assert not border.any()


def test_large_grid_packs(tokenizer):
    layout = packing.Plan(("grounding", "counting"), LARGE.grid)
    (scene,) = LARGE.make_scenes(np.random.default_rng(2), 1, (9, 9), "test")
    batch = answering.pack(np.random.default_rng(0), tokenizer, layout, [scene])
    image = tokenizer.token_to_id("<|image_pad|>")
    assert (batch["tokens"][0] == image).nonzero()[0].tolist() == list(range(1, 577))
    # Time stands still over 24 x 24 cells; text goes on after the largest index.
    cells = layout.positions[:, 1:577].reshape(3, 24, 24)
    assert (cells[0] == 1).all()
    assert (cells[1] == np.arange(1, 25)[:, None]).all()
    assert (cells[2] == np.arange(1, 25)).all()
    assert layout.positions[:, 577].tolist() == [25] * 3
    assert layout.positions[0, list(layout.starts)].tolist() == [26, 26]

    x1, y1, x2, y2 = batch["box"][0, 0] * STEP * 384 / 1000  # of the digit to be located
    rows, columns = np.divmod(batch["look"][0, 0, 0].nonzero()[0], 24)
    assert x1 // 16 <= columns.min() <= columns.max() <= x2 // 16
    assert y1 // 16 <= rows.min() <= rows.max() <= y2 // 16
    assert len(rows) >= (x2 - x1) * (y2 - y1) / 16**2 / 2
    answer = tokenizer.decode([batch["answers"][0, -2]])
    np.testing.assert_allclose(batch["share"][0, 1].sum(), int(answer), rtol=1e-5)


@pytest.mark.parametrize("setting", [SMALL, LARGE], ids=lambda setting: setting.name)
def test_shares_sum_to_one_and_cover_the_box(setting):
    size = setting.canvas, setting.grid
    for box in ((16, 32, 64, 48), (21, 5, 53, 37), (140, 141, 181, 182)):
        share = packing.measure_shares(box, *size)
        assert share.shape == (setting.grid**2,)
        np.testing.assert_allclose(share.sum(), 1, rtol=1e-6)
        assert set(packing.find_covered(box, *size).nonzero()[0]) <= set(share.nonzero()[0])
    aligned = packing.find_covered((16, 32, 64, 48), *size).nonzero()[0]
    assert aligned.tolist() == [2 * setting.grid + column for column in (1, 2, 3)]


@pytest.fixture(scope="module")
def large_stages(tokenizer, tmp_path_factory):
    """Every stage of the large setting, on one scene over and over and tokens no tower made."""
    once = lambda self, random, count, *rest: make_scenes(self, random, 1, *rest) * count  # noqa: E731
    make_scenes = Setting.make_scenes
    setting = dataclasses.replace(LARGE, rows_quarters=2, rows_canvas=2, rows=2, rows_together=16)
    path = tmp_path_factory.mktemp("large") / "visual.npy"
    np.save(path, np.zeros((2, 576, 384), np.float32))
    patch = pytest.MonkeyPatch()
    patch.setattr(Setting, "make_scenes", once)
    drawn = setting.make_scenes(np.random.default_rng(0), 2, setting.digits, "test")
    cache = answering.Cache(setting, {}, drawn, path)
    with pytest.raises(ValueError, match="holds the tokens of 2 scenes, not of 1"):
        answering.Cache(setting, {}, drawn[:1], path)
    counting = {"questions": answering.COUNTING_QUESTIONS, "count_weight": 1.0}
    stages = [
        tower.make_stage(setting, "tower_quarters", quarters=True),
        tower.make_stage(setting, "tower_canvas", quarters=False),
        answering.make_frozen_stage(setting, "decoder", 9, tokenizer, cache, cache),
        answering.make_frozen_stage(setting, "counting", 9, tokenizer, cache, cache, **counting),
        answering.make_joint_stage(setting, "together", 9, tokenizer),
    ]
    yield {stage.name: stage for stage in stages}
    patch.undo()


@pytest.fixture(scope="module")
def large_params(configs):
    return start(LARGE, configs["large"])


NAMES = ["tower_quarters", "tower_canvas", "decoder", "counting", "together"]


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_the_large_setting_are_numbers(name, large_stages, large_params):
    stage, params = large_stages[name], large_params
    batch = stage.batch(np.random.default_rng(0))
    value, metrics = jax.eval_shape(stage.loss, params, batch)
    assert value.shape == ()
    assert {metric.shape for metric in metrics.values()} == {()}
    trained = {key: params[key] for key in stage.trained}
    if name == "tower_canvas":
        update = lambda p: stage.optimiser.update(p, stage.optimiser.init(p), p)[0]  # noqa: E731
        assert shapes(jax.eval_shape(update, trained)) == shapes(trained)


def test_exported_sizes_are_read_back(configs, tokenizer):
    ids = words.find_special_ids(tokenizer)
    for name, setting in SETTINGS.items():
        written = export.make_config(configs[name], ids)
        assert families.parse_config(written) == configs[name]
        images = export.make_preprocessor_config(setting)
        assert images["min_pixels"] <= setting.canvas**2 <= images["max_pixels"]
        assert setting.canvas % (images["patch_size"] * images["merge_size"]) == 0
    assert 4 * card.count_parameters(configs["large"]) < 120e6  # bytes of float32


def test_card_states_the_setting(configs, tmp_path):
    text = {n: card.compose(s, configs[n], tmp_path / "none") for n, s in SETTINGS.items()}
    flat = {name: " ".join(part.split()) for name, part in text.items()}
    assert (
        "decoder of 12 blocks of width 384 (6 heads of 64, M-RoPE sections 8/12/12"
        in (flat["large"])
    )
    assert "576 visual tokens for a canvas of 384 x 384 pixels" in flat["large"]
    assert "digit_scenes.train --out RUN --size large`" in flat["large"]
    assert "digit_scenes.train --out RUN`" in flat["small"]
    assert "a dark frame" in flat["small"]
    assert "a dark frame" not in flat["small_blind"]
    assert max(map(len, "\n".join(text.values()).splitlines())) <= 100


def test_blind_canvases_show_no_place():
    random, none = np.random.default_rng(0), digits.load("test")
    steps = {}
    for setting in (SMALL, SMALL_BLIND):
        canvases = np.stack([setting.render(random, none, 0).pixels for _ in range(20)])
        grey = (canvases == canvases[..., :1]).all()
        dark = (canvases[:, :FRAME] == 16).all()
        assert (grey, dark) == ((False, True) if setting.cues else (True, False))
        column = canvases[..., 1].mean(axis=1)
        steps[setting.name] = np.abs(column[:, 12] - column[:, 3]).mean()
    # The blotches of a canvas with cues are flat along its border.
    assert steps["small_blind"] > 2 * steps["small"]


def test_blind_tower_is_asked_for_places_as_seen_from_the_token():
    box = (30, 50, 60, 80)
    moved = tuple(value + shift for value, shift in zip(box, 2 * (16, 32), strict=True))
    empty = np.zeros((192, 192, 3), np.uint8)
    both = [Scene(empty, (Digit(4, 2, place),)) for place in (box, moved)]
    relative = dense.make_targets(both, SMALL.cell, absolute=False)
    before, after = relative["place"].reshape(2, 12, 12, 6)
    digit = relative["digit"].reshape(2, 12, 12)
    np.testing.assert_array_equal(digit[0, :-2, :-1], digit[1, 2:, 1:])
    np.testing.assert_allclose(before[digit[0]], after[digit[1]], atol=1e-4)
    np.testing.assert_allclose(relative["place"][..., 4:], 50, atol=1e-4)
    middle = np.array([2, 3, 2, 3]) * 16 + 8  # of the token in row 3, column 2
    offset = (before[3, 2, :4] - 50) * STEP * 192 / 1000
    np.testing.assert_allclose(offset, np.array(box) - middle, atol=1e-3)

    heads = dense.init_heads(jax.random.key(0), 12)
    tokens = jax.random.normal(jax.random.key(1), (2, 144, 12))

    def loss(heads):
        return dense.loss(dense.read(heads, tokens), relative, absolute=False)

    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(heads)
    assert "own_error" not in metrics
    assert not gradient["place"][4:].any()
    assert jnp.abs(gradient["place"][:4]).max(axis=(1, 2)).min() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvas": 200}, "canvas=200 must be a multiple of 32"),
        ({"digits": (3, 12)}, r"digits=\(3, 12\) must be ascending, from 1 to 9"),
        ({"width": 256}, "width=256 must be a multiple of 6 and of heads=4"),
        ({"sections": (8, 8, 9)}, "sections=.* must be planes that sum to .* = 24"),
        ({"heads": 2, "sections": (16, 16, 16)}, "heads=2 must be at least 3"),
        ({"look_layer": 5}, "look_layer=5 must be below layers=5"),
        ({"sides": (24, 190)}, "sides=.* must be ascending, at most 184"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"setting 'small': {message}"):
        dataclasses.replace(SMALL, **changes)


def test_flags_change_the_setting_and_a_run_keeps_its_own(tmp_path):
    parse = train.read_arguments().parse_args
    assert train.choose_setting(parse(["--out", "x"])) == SMALL
    flags = ["--out", "x", "--size", "large", "--rows", "3", "--steps-together", "0"]
    assert train.choose_setting(parse(flags)) == dataclasses.replace(LARGE, rows=3)
    train.claim(tmp_path / "new", LARGE)
    train.claim(tmp_path / "new", dataclasses.replace(LARGE, rows=3))
    with pytest.raises(ValueError, match="holds a run of the setting 'large'"):
        train.claim(tmp_path / "new", SMALL)
    (tmp_path / "training_log.jsonl").touch()  # a run from before there were settings
    with pytest.raises(ValueError, match="holds a run of the setting 'small'"):
        train.claim(tmp_path, SMALL_BLIND)
    train.claim(tmp_path, SMALL)
    both = ["--out", str(tmp_path / "both"), "--begin-from", "x", "--steps-together", "2"]
    with pytest.raises(ValueError, match="a checkpoint lacks the tower's heads"):
        train.main(both)
