"""The vision tower against transformers' Qwen2-VL tower, and what padding may not change."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.model import load_params, read_config
from ivc_jax.nn import layers, rope
from ivc_jax.nn import tower as towers
from ivc_jax.nn.tower import Features
from ivc_jax.nn.vision import PatchMerger, VisionAttention, VisionBlock, attend_rows

pytestmark = pytest.mark.usefixtures("highest_precision")

GRIDS = ((1, 6, 10), (1, 8, 4))  # frames, rows and columns of patches of two images
MODULE = 1e-5


@pytest.fixture(scope="module")
def tower(tiny_hf):
    """Configuration and parameters of a tiny random tower, and its directory."""
    path = tiny_hf()
    config = read_config(path)
    return config.vision, load_params(path, config, np.dtype(np.float32))["vision"], path


def patch_positions(grid, merge=2):
    """(row, column) of each patch, the patches of one merged token next to each other."""
    _, rows, columns = grid
    place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = place.reshape(rows // merge, merge, columns // merge, merge, 2).swapaxes(1, 2)
    return blocks.reshape(-1, 2).astype(np.int32)


def pixels(config, grid, seed):
    shape = (int(np.prod(grid)), config.patch_values)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def padded_rows(config, slots):
    """Two images as rows of `slots` patches; junk in the padding must not matter."""
    patches = np.full((len(GRIDS), slots, config.patch_values), 3.0, np.float32)
    positions = np.full((len(GRIDS), slots, 2), -1, np.int32)
    for row, grid in enumerate(GRIDS):
        count = int(np.prod(grid))
        patches[row, :count] = pixels(config, grid, row)
        positions[row, :count] = patch_positions(grid)
    return patches, positions


class _Constant(nn.Module):
    """A block whose output is its only parameter, whatever comes in."""

    config: object

    @nn.compact
    def __call__(self, x, angles, attend):
        return jnp.full_like(x, self.param("value", nn.initializers.zeros, ()))


class _Positive(nn.Module):
    """A merger that cuts off what is below its only parameter."""

    config: object

    @nn.compact
    def __call__(self, x):
        return jnp.maximum(x, self.param("least", nn.initializers.zeros, ()))


def test_features_are_averaged_over_blocks_before_the_merger(tower, monkeypatch):
    config = dataclasses.replace(tower[0], depth=2)
    monkeypatch.setattr("ivc_jax.nn.tower.VisionBlock", _Constant)
    monkeypatch.setattr("ivc_jax.nn.tower.PatchMerger", _Positive)
    embed = tower[1]["patch_embed"]
    params = {
        "patch_embed": embed,
        "blocks": ({"value": jnp.float32(1)}, {"value": jnp.float32(-1)}),
        "merger": {"least": 0.0},
    }
    taps = (Features(0, 1, merged=True), Features(0, 0, merged=True), Features(1, 1, merged=True))
    inputs = map(jnp.asarray, padded_rows(config, 64))
    tapped = towers.encode(config, params, *inputs, taps)[1]
    # Each block through the merger and then averaged would be (1 + 0) / 2.
    assert [np.unique(tapped[tap]).tolist() for tap in taps] == [[0], [1], [0]]


def encode(config, params, patches, positions):
    # One compiled program is much quicker than the many that eager calls would compile.
    tower = jax.jit(lambda *inputs: towers.encode(config, *inputs)[0])
    return tower(params, jnp.asarray(patches), jnp.asarray(positions))


def torch_tower(load_torch, path):
    return load_torch(path).model.visual


def assert_near(ours, theirs, tolerance):
    """Compare with a tolerance relative to the largest value of the reference."""
    theirs = np.asarray(theirs)
    difference = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert difference <= tolerance, f"relative difference {difference:.2e}"


def test_two_images_of_different_sizes_match_transformers(tower, load_torch):
    import torch

    config, params, path = tower
    patches, positions = padded_rows(config, slots=64)
    ours = encode(config, params, patches, positions)
    both = np.concatenate([pixels(config, grid, row) for row, grid in enumerate(GRIDS)])
    reference = torch_tower(load_torch, path)
    theirs = reference(torch.from_numpy(both), grid_thw=torch.tensor(GRIDS)).pooler_output
    counts = [int(np.prod(grid)) // config.merge_area for grid in GRIDS]
    joined = np.concatenate([ours[row, :count] for row, count in enumerate(counts)])
    assert joined.shape == theirs.shape
    assert_near(joined, theirs, MODULE)


def test_each_frame_of_a_video_is_a_row(tower, load_torch):
    import torch

    config, params, path = tower
    grid = (3, 4, 6)
    values = pixels(config, grid, 7)
    rows = values.reshape(3, 24, -1)
    positions = np.broadcast_to(patch_positions(grid), (3, 24, 2))
    ours = encode(config, params, rows, positions)
    reference = torch_tower(load_torch, path)
    theirs = reference(torch.from_numpy(values), grid_thw=torch.tensor([grid])).pooler_output
    assert_near(ours.reshape(theirs.shape), theirs, MODULE)


def test_parts_match_transformers(tower, load_torch):
    """Patch embedding, norm, attention, block and merger, each fed the same input."""
    import torch

    config, params, path = tower
    reference, grid = torch_tower(load_torch, path), GRIDS[0]
    values = pixels(config, grid, 3)
    theirs = reference.patch_embed(torch.from_numpy(values))
    assert_near(values @ params["patch_embed"]["weight"].T, theirs, MODULE)

    count = int(np.prod(grid))
    hidden = np.random.default_rng(4).standard_normal((count, config.embed_dim), np.float32)
    block, first = reference.blocks[1], params["blocks"][1]
    places = patch_positions(grid)
    angles = rope.vision_angles(config.head_dim, jnp.asarray(places[None]))
    see, given = partial(attend_rows, lengths=jnp.array([count])), torch.from_numpy(hidden)
    turn = reference.rotary_pos_emb(given, torch.from_numpy(places).long())
    segment = {
        "cu_seqlens": torch.tensor([0, count], dtype=torch.int32),
        "max_seqlen": count,
        "position_embeddings": turn,
    }

    norm = layers.NORMS["layernorm"](epsilon=1e-6).apply({"params": first["norm1"]}, hidden)
    assert_near(norm, block.norm1(given), MODULE)
    ours = VisionAttention(config).apply({"params": first["attn"]}, hidden[None], angles, see)
    assert_near(ours[0], block.attn(given, **segment), MODULE)
    ours = VisionBlock(config).apply({"params": first}, hidden[None], angles, see)
    assert_near(ours[0], block(given, **segment), MODULE)
    merged = PatchMerger(config).apply({"params": params["merger"]}, hidden[None])
    assert_near(merged[0], reference.merger(given), MODULE)


def test_more_padding_changes_nothing(tower):
    config, params, _ = tower
    short = encode(config, params, *padded_rows(config, slots=60))
    long = encode(config, params, *padded_rows(config, slots=128))
    for row, grid in enumerate(GRIDS):
        count = int(np.prod(grid)) // config.merge_area
        assert_near(long[row, :count], short[row, :count], 1e-6)


def test_rows_do_not_see_each_other(tower):
    config, params, _ = tower
    patches, positions = padded_rows(config, slots=60)
    both = encode(config, params, patches, positions)
    alone = encode(config, params, patches[1:], positions[1:])
    count = int(np.prod(GRIDS[1])) // config.merge_area
    assert_near(both[1, :count], alone[0, :count], 1e-6)


def test_a_row_of_padding_alone_is_finite(tower):
    config, params, _ = tower
    patches, positions = padded_rows(config, slots=60)
    positions[0] = -1
    tokens = encode(config, params, patches, positions)
    assert np.isfinite(tokens).all()
