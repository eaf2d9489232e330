"""Patch rows lie with their sample; a sharded run against one on a single device."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from ivc_jax.parallel.batch import align_rows
from ivc_jax.types import Inputs


class _Shards:
    """As much of a mesh as the placement of rows looks at."""

    shape: ClassVar[dict] = {"data": 2}


def test_learned_tokens_have_no_row():
    """Two samples, each with a cell and two learned tokens, as they are and moved."""
    source = np.array([[2, -1, -2], [0, -1, 0]], np.int32)
    inputs = Inputs(
        tokens=None,
        layout=SimpleNamespace(visual_valid=np.array([[1, 1, 1], [1, 1, 0]], bool)),
        next_position=None,
        patches=np.arange(1, 4, dtype=np.float32)[:, None, None] * np.ones((3, 4, 1), np.float32),
        patch_positions=np.zeros((3, 4, 2), np.int32),
        visual_source=source,
    )
    aligned = align_rows(inputs, _Shards, merge_area=4)
    assert aligned.patches[:, 0, 0].tolist() == [3, 1]
    assert aligned.visual_source.tolist() == [[0, -1, -2], [1, -1, 0]]


def test_patch_rows_move_beside_their_samples():
    """Four samples with 2, 0, 1 and 1 images of one cell each; rows hold two cells of four."""
    valid = np.array([[1, 1], [0, 0], [1, 0], [1, 0]], bool)
    layout = SimpleNamespace(visual_valid=valid)
    inputs = Inputs(
        tokens=None,
        layout=layout,
        next_position=None,
        patches=np.arange(1, 6, dtype=np.float32)[:, None, None] * np.ones((5, 8, 1), np.float32),
        patch_positions=np.arange(5)[:, None, None] * np.ones((5, 8, 2), np.int32),
        visual_source=np.array([[0, 2], [0, 0], [5, 0], [6, 0]], np.int32),
    )
    aligned = align_rows(inputs, _Shards, merge_area=4)
    assert aligned.patches[:, 0, 0].tolist() == [1, 2, 3, 4]  # the fifth was padding
    assert aligned.visual_source.tolist() == [[0, 2], [0, 0], [5, 0], [6, 0]]
    turned = inputs.replace(
        visual_source=inputs.visual_source[::-1], layout=SimpleNamespace(visual_valid=valid[::-1])
    )
    aligned = align_rows(turned, _Shards, merge_area=4)
    assert aligned.patches[:, 0, 0].tolist() == [3, 4, 1, 2]
    assert aligned.visual_source.tolist() == [[2, 0], [1, 0], [0, 0], [4, 6]]
    lone = turned.replace(
        visual_source=turned.visual_source[2:], layout=SimpleNamespace(visual_valid=valid[1::-1])
    )
    aligned = align_rows(lone, _Shards, merge_area=4)
    assert aligned.patches[:, 0, 0].tolist() == [0, 0, 1, 2]
    assert aligned.patch_positions[:, 0, 0].tolist() == [-1, -1, 0, 1]


_SHARDED = """
import logging, sys
from pathlib import Path
import ivc_jax, jax, numpy as np
from jax.sharding import PartitionSpec as P
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.parallel.batch import assemble
from ivc_jax.parallel.mesh import make_mesh, shard_param
from ivc_jax.weights import checkpoint, keymap
from ivc_jax.model import load_params, read_config
from ivc_jax.weights.source import DTYPES

folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
config, float32 = read_config(folder), DTYPES["float32"]
alone = load_params(folder, config, float32)
mesh = make_mesh(data=2, model=2)
sharded = load_params(folder, config, float32, mesh)
checkpoint.save_params(scratch, sharded)
restored = checkpoint.restore_params(scratch, config, float32, mesh)
for params in (sharded, restored):
    assert jax.tree.all(jax.tree.map(np.array_equal, alone, params))
    for path, leaf in keymap.flatten(params).items():
        assert leaf.sharding == shard_param(path, leaf.shape, mesh), path
weight = restored["decoder"]["layers"][0]["q_proj"]["weight"]
assert weight.sharding.spec == P("model", None)
assert weight.addressable_shards[0].data.shape[0] * 2 == weight.shape[0]
odd = shard_param("decoder/embed_tokens/embedding", (271, 64), mesh)
assert odd.spec == P()

draw = np.random.default_rng(0)
image = [config.vision_start_id, *[config.image_token_id] * 6]
# All images belong to the first half of the batch: the second device group must get no row of it.
tokens = [[1, *image, 2, *image, 3], [4, *image, *range(5, 14)], [*range(20, 37)], [*range(40, 57)]]
batch = ivc_jax.Batch.from_hf(
    input_ids=np.array(tokens),
    pixel_values=draw.standard_normal((72, config.vision.patch_values), np.float32),
    image_grid_thw=np.array([[1, 4, 6], [1, 6, 4], [1, 4, 6]]),
)
method = ivc_jax.methods.parse("ivc:layer=1,keep_ratio=0.5")
outputs = [
    ivc_jax.generate(ivc_jax.Model(config, p, m), batch, method, max_new_tokens=4, stop_ids=())
    for p, m in ((alone, None), (sharded, mesh))
]
assert np.array_equal(*[np.asarray(output.tokens) for output in outputs])
assert all(np.array_equal(a, b) for a, b in zip(*[output.kept for output in outputs]))

# A whole batch, and its two halves as two processes would hold them.
bucket = Buckets(text=(32,), visual=(24,), patches=(24,), rows=(3,), images=(2,))
first, second, *text = batch.tokens
batch = ivc_jax.Batch((first, text[0], second, text[1]), batch.images)
halves = [
    ivc_jax.Batch(batch.tokens[part], batch.images[part]) for part in (slice(2), slice(2, None))
]
parts = {shard: collate(half, config, bucket) for shard, half in enumerate(halves)}
whole = collate(batch, config, bucket)
assembled = assemble(parts, mesh, config.vision.merge_area)
model = ivc_jax.Model(config, sharded, mesh)
encoded = [ivc_jax.encode(model, inputs) for inputs in (whole, assembled)]
assert all(each.visual.sharding.spec == P("data") for each in encoded)
valid = whole.layout.visual_valid
area = config.vision.merge_area
own = [  # patches of each visual token [V, area, values]: the very same bits, wherever they lie
    np.asarray(each.patches).reshape(-1, area, each.patches.shape[-1])[
        np.asarray(each.visual_source)[valid]
    ]
    for each in (whole, assembled)
]
assert np.array_equal(*own)

def check_same(*arrays):
    # To rounding: other rows beside a token's own, which some processors add up in another order.
    np.testing.assert_allclose(*arrays, rtol=0, atol=1e-5)

check_same(*[np.asarray(each.visual)[valid] for each in encoded])
if config.vision.deepstack:
    assert all(each.deepstack.sharding.spec == P(None, "data") for each in encoded)
    check_same(*[np.asarray(each.deepstack)[:, valid] for each in encoded])
    prompts = [ivc_jax.prefill(model, each, method) for each in encoded]
    check_same(*[np.asarray(prompt.logits) for prompt in prompts])
print("done")
"""


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_sharded_parameters_and_answers_equal_unsharded_ones(tiny_hf, tmp_path, family):
    """Four CPU devices need a process of their own: the count is fixed when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED, str(tiny_hf(family=family)), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout
    assert "decoder/embed_tokens/embedding (271, 64) is replicated" in done.stderr
