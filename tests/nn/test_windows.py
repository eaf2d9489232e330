"""Window attention of the Qwen2.5-VL tower, through collation: against transformers' tower."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import tiny_config

from ivc_jax import families, model
from ivc_jax.config import ConfigError, RopeConfig
from ivc_jax.inputs.batch import Batch, Visual
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.nn import tower
from ivc_jax.nn.decoder import init_params

pytestmark = pytest.mark.usefixtures("highest_precision")

CONFIG = families.parse_config(tiny_config(family="qwen2_5_vl"))
MODULE = 1e-5
BUCKETS = Buckets()
# In patches; a window is 4 x 4 of them.
GRIDS = {
    "whole windows": (1, 8, 8),
    "one window": (1, 4, 4),
    "ragged at the right": (1, 8, 10),
    "ragged at the bottom": (1, 6, 8),
    "ragged in both": (1, 6, 10),
    "smaller than a window": (1, 2, 2),
    "a strip": (1, 2, 14),
    "video": (3, 6, 10),
}


@pytest.fixture(scope="module")
def params(tiny_hf):
    path = tiny_hf(family="qwen2_5_vl")
    return model.load_params(path, model.read_config(path), np.dtype(np.float32))["vision"]


def visual(grid, seed=0):
    draw = np.random.default_rng([seed, *grid])
    shape = (int(np.prod(grid)), CONFIG.vision.patch_values)
    return Visual(draw.standard_normal(shape, dtype=np.float32), grid)


def make_batch(grids):
    """One sample a visual."""
    area = CONFIG.vision.merge_area
    marks = [CONFIG.image_token_id if t == 1 else CONFIG.video_token_id for t, _, _ in grids]
    tokens = [np.full(np.prod(g) // area, m, np.int32) for g, m in zip(grids, marks, strict=True)]
    images = [visual(grid) for grid in grids if grid[0] == 1]
    videos = [visual(grid) for grid in grids if grid[0] > 1]
    return Batch(tuple(tokens), tuple(images), tuple(videos))


def run_tower(config, params, patches, positions):
    return tower.encode(config, params, patches, positions)[0]


def encode(params, grids, buckets=BUCKETS):
    """Return the visual tokens of each grid, in raster order."""
    inputs = collate(make_batch(grids), CONFIG, buckets)
    merged = jax.jit(run_tower, static_argnums=0)(
        CONFIG.vision, params, inputs.patches, inputs.patch_positions
    )
    assert np.isfinite(merged).all()
    merged = np.asarray(merged).reshape(-1, merged.shape[-1])
    valid = inputs.layout.visual_valid
    return [merged[row[real]] for row, real in zip(inputs.visual_source, valid, strict=True)]


def assert_near(ours, theirs, tolerance, name=""):
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference <= tolerance, f"{name}: relative difference {difference:.2e}"


@pytest.fixture(scope="module")
def together(params):
    """Tokens of every grid, all in one batch, which has rows and windows of padding alone."""
    with jax.default_matmul_precision("highest"):
        return dict(zip(GRIDS, encode(params, list(GRIDS.values())), strict=True))


@pytest.mark.parametrize("name", GRIDS)
def test_tokens_equal_transformers(together, tiny_hf, load_torch, name):
    import torch

    reference = load_torch(tiny_hf(family="qwen2_5_vl")).model.visual
    patches = torch.from_numpy(visual(GRIDS[name]).patches)
    theirs = reference(patches, grid_thw=torch.tensor([GRIDS[name]])).pooler_output
    assert_near(together[name], theirs.numpy(), MODULE, name)


def test_mates_and_larger_buckets_change_nothing(together, params):
    names = ("ragged in both", "smaller than a window")
    larger = Buckets(visual=(100,), patches=(320,), rows=(5,))
    for name, found in zip(names, encode(params, [GRIDS[name] for name in names]), strict=True):
        assert_near(found, together[name], 1e-6, name)
    (alone,) = encode(params, [GRIDS[names[0]]], larger)
    assert_near(alone, together[names[0]], 1e-6)


def test_blocks_see_as_far_as_their_kind(together, params):
    """A window's own pixels reach its tokens; those of others do in blocks of full attention."""
    vision = dataclasses.replace(CONFIG.vision, full_attention_blocks=())
    inputs = collate(make_batch([GRIDS["whole windows"]]), CONFIG)
    changed = inputs.patches.copy()
    changed[0, 16:32] += 1  # the second window
    for config, reach in ((vision, [1]), (CONFIG.vision, [0, 1, 2, 3])):
        run = jax.jit(run_tower, static_argnums=0)
        before, after = (
            np.asarray(run(config, params, patches, inputs.patch_positions)[0])
            for patches in (inputs.patches, changed)
        )
        windows = np.abs(after - before).reshape(-1, 4, before.shape[-1]).max(axis=(1, 2))
        assert np.flatnonzero(windows[:4] > 1e-6).tolist() == reach


def flops(config, params, windows):
    slots = windows * config.row_unit
    patches = jnp.zeros((1, slots, config.patch_values))
    positions = jnp.zeros((1, slots, 2), jnp.int32)
    run = jax.jit(run_tower, static_argnums=0)
    lowered = run.lower(config, params, patches, positions)
    return lowered.compile().cost_analysis()["flops"]


def test_work_follows_the_windows(params):
    """Attention inside windows is linear in their number, over the whole row it is quadratic."""
    windowed = dataclasses.replace(CONFIG.vision, full_attention_blocks=())
    growth = {}
    for name, config in (("windowed", windowed), ("full", CONFIG.vision)):
        few, more, most = (flops(config, params, windows) for windows in (8, 16, 24))
        growth[name] = (most - more) / (more - few)
    assert growth["windowed"] == pytest.approx(1, abs=0.01)
    assert growth["full"] > 1.2


@pytest.mark.parametrize("size", [0, 7])
def test_impossible_windows_are_an_error(size):
    config = tiny_config(family="qwen2_5_vl")
    config["vision_config"]["window_size"] = size
    with pytest.raises(ConfigError, match=f"window_size {size} holds no merged cell"):
        families.parse_config(config)


# Decoder width, layers, heads, key heads, feed-forward width, vocabulary; the tower's feed-forward
# width; parameters of the published checkpoint.
PUBLISHED = {
    "3B": ((2048, 36, 16, 2, 11008, 151936), 3420, 3_754_622_976),
    "7B": ((3584, 28, 28, 4, 18944, 152064), 3420, 8_292_166_656),
    "32B": ((5120, 64, 40, 8, 27648, 152064), 3456, 33_452_718_336),
    "72B": ((8192, 80, 64, 8, 29568, 152064), 3456, 73_410_777_344),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_read(name):
    (width, layers, heads, groups, hidden, vocabulary), tower_hidden, count = PUBLISHED[name]
    config = tiny_config(
        *("old", name == "3B", "qwen2_5_vl"),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=hidden,
        vocab_size=vocabulary,
    )
    config |= {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    config["vision_config"] |= {
        **{"depth": 32, "hidden_size": 1280, "intermediate_size": tower_hidden, "num_heads": 16},
        **{"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
    }
    sizes = families.parse_config(config)
    assert sizes.decoder.rope == RopeConfig(128, 1e6, (16, 24, 24))
    assert (sizes.vision.window_cells, sizes.vision.row_unit) == (4, 64)
    shapes = jax.eval_shape(lambda: init_params(sizes, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
