"""Mesh, sharding table, and a sharded run against one on a single device."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from helpers.tiny import tiny_config

from ivc_jax import parallel
from ivc_jax.config import FAMILIES, from_hf
from ivc_jax.types import Inputs
from ivc_jax.weights import keymap
from ivc_jax.weights.load import abstract_params
from ivc_jax.weights.source import DTYPES

FLOAT32 = DTYPES["float32"]


def leaves(family):
    return keymap.flatten(abstract_params(from_hf(tiny_config(family=family)), FLOAT32))


@pytest.mark.parametrize("family", FAMILIES)
def test_specs_are_as_deep_as_their_parameters(family):
    for path, leaf in leaves(family).items():
        spec = parallel.param_spec(path)
        assert len(spec) in (0, len(leaf.shape)), path
        stacked = "/layers/" in path or "/blocks/" in path
        assert not (stacked and len(spec)) or spec[0] is None, path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_names_a_parameter(family):
    paths = leaves(family)
    patterns = [pattern for pattern, _ in parallel.PARAM_RULES]
    assert [p for p in patterns if not any(re.search(p, path) for path in paths)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_the_blocks_is_split(family):
    kernels = [path for path in leaves(family) if re.search(r"(layers|blocks)/.*/kernel$", path)]
    assert [path for path in kernels if "model" not in parallel.param_spec(path)] == []


class _Shards:
    """As much of a mesh as the placement of rows looks at."""

    shape: ClassVar[dict] = {"data": 2}


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
    aligned = parallel.align_rows(inputs, _Shards, merge_area=4)
    assert aligned.patches[:, 0, 0].tolist() == [1, 2, 3, 4]  # the fifth was padding
    assert aligned.visual_source.tolist() == [[0, 2], [0, 0], [5, 0], [6, 0]]
    turned = inputs.replace(
        visual_source=inputs.visual_source[::-1], layout=SimpleNamespace(visual_valid=valid[::-1])
    )
    aligned = parallel.align_rows(turned, _Shards, merge_area=4)
    assert aligned.patches[:, 0, 0].tolist() == [3, 4, 1, 2]
    assert aligned.visual_source.tolist() == [[2, 0], [1, 0], [0, 0], [4, 6]]
    lone = turned.replace(
        visual_source=turned.visual_source[2:], layout=SimpleNamespace(visual_valid=valid[1::-1])
    )
    aligned = parallel.align_rows(lone, _Shards, merge_area=4)
    assert aligned.patches[:, 0, 0].tolist() == [0, 0, 1, 2]
    assert aligned.patch_positions[:, 0, 0].tolist() == [-1, -1, 0, 1]


def test_mesh_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="needs 4096 devices"):
        parallel.make_mesh(data=64, model=64)
    with pytest.raises(ValueError, match="must be positive"):
        parallel.make_mesh(data=0)


_SHARDED = """
import logging, sys
from pathlib import Path
import ivc_jax, jax, numpy as np
from jax.sharding import PartitionSpec as P
from ivc_jax import parallel
from ivc_jax.weights import checkpoint, keymap
from ivc_jax.weights.load import load_safetensors
from ivc_jax.weights.source import DTYPES, read_config

folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
config, float32 = read_config(folder), DTYPES["float32"]
alone = load_safetensors(folder, config, float32)
mesh = parallel.make_mesh(data=2, model=2)
sharded = load_safetensors(folder, config, float32, mesh)
checkpoint.save_params(scratch, sharded)
restored = checkpoint.restore_params(scratch, config, float32, mesh)
for params in (sharded, restored):
    assert jax.tree.all(jax.tree.map(np.array_equal, alone, params))
    for path, leaf in keymap.flatten(params).items():
        assert leaf.sharding == parallel.param_sharding(path, leaf.shape, mesh), path
kernel = restored["decoder"]["layers"]["q_proj"]["kernel"]
assert kernel.sharding.spec == P(None, None, "model")
assert kernel.addressable_shards[0].data.shape[-1] * 2 == kernel.shape[-1]
odd = parallel.param_sharding("decoder/embed_tokens/embedding", (271, 64), mesh)
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
encoded = ivc_jax.encode(ivc_jax.Model(config, sharded, mesh), batch)
assert encoded.visual.sharding.spec == P("data")
assert all(np.array_equal(a, b) for a, b in zip(*[output.kept for output in outputs]))
print("done")
"""


def test_sharded_parameters_and_answers_equal_unsharded_ones(tiny_hf, tmp_path):
    """Four CPU devices need a process of their own: the count is fixed when JAX starts."""
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED, str(tiny_hf()), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout
    assert "decoder/embed_tokens/embedding (271, 64) is replicated" in done.stderr
