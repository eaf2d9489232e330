"""Mesh, its spelling, and the table that shards parameters."""

import logging
import re

import jax
import pytest
from helpers.tiny import FILES, tiny_config

from ivc_jax.families import parse_config
from ivc_jax.parallel.mesh import PARAM_RULES, find_spec, make_mesh, parse_mesh, shard_param
from ivc_jax.weights import keymap
from ivc_jax.weights.placement import abstract_params
from ivc_jax.weights.source import DTYPES

FLOAT32 = DTYPES["float32"]


def leaves(family):
    return keymap.flatten(abstract_params(parse_config(tiny_config(family=family)), FLOAT32))


@pytest.mark.parametrize("family", FILES)
def test_specs_are_as_deep_as_their_parameters(family):
    for path, leaf in leaves(family).items():
        spec = find_spec(path)
        assert len(spec) in (0, len(leaf.shape)), path


def test_every_rule_names_a_parameter():
    paths = [path for family in FILES for path in leaves(family)]
    patterns = [pattern for pattern, _ in PARAM_RULES]
    assert [p for p in patterns if not any(re.search(p, path) for path in paths)] == []


# What makes the vectors that all heads share, and what chooses experts: small, whole everywhere.
WHOLE = re.compile(r"/latent/(q_a_proj|kv_a_proj_with_mqa)/|/mlp/gate/")


@pytest.mark.parametrize("family", FILES)
def test_every_matrix_of_the_blocks_is_split(family):
    weights = [path for path in leaves(family) if re.search(r"(layers|blocks)/.*/weight$", path)]
    weights = [path for path in weights if not WHOLE.search(path)]
    assert [path for path in weights if "model" not in find_spec(path)] == []


def test_replication_is_noted_once_for_all_blocks(caplog):
    """Blocks in front may have no experts, so that the first of them does not speak for all."""
    mesh = jax.sharding.AbstractMesh((1, 2), ("data", "model"))
    with caplog.at_level(logging.WARNING):
        for block in (1, 2, 12):
            path = f"decoder/layers/{block}/mlp/experts/up_proj/weight"
            assert shard_param(path, (7, 4, 6), mesh).is_fully_replicated
    assert caplog.messages == [
        "decoder/layers/*/mlp/experts/up_proj/weight (7, 4, 6) is replicated: 7 does not divide"
        " over 2 devices of axis 'model'"
    ]


def test_mesh_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="needs 4096 devices"):
        make_mesh(data=64, model=64)
    with pytest.raises(ValueError, match="must be positive"):
        make_mesh(data=0)


def test_a_mesh_is_spelled_by_its_axes():
    assert parse_mesh("data=4, model=2") == {"data": 4, "model": 2}
    assert parse_mesh("model=8") == {"data": 1, "model": 8}


@pytest.mark.parametrize(
    "text",
    ["", "2x4", "data=2;model", "data=", "rows=8", "data=2,data=4", "data=²"],
)
def test_another_spelling_is_an_error(text):
    with pytest.raises(ValueError, match=f"mesh '{re.escape(text)}' must look like data=4,model=2"):
        parse_mesh(text)
