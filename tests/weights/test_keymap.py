"""Rules on made-up tables: slices of fused tensors, experts, second stacks, generations of names.

Every table is read from a file onto devices and written back.
"""

import jax
import numpy as np
import pytest
from helpers.tiny import tiny_config
from safetensors.numpy import save_file

from ivc_jax.families import parse_config
from ivc_jax.weights import keymap, load, placement
from ivc_jax.weights.keymap import Rule, Transform
from ivc_jax.weights.source import CheckpointError

CONFIG = parse_config(tiny_config())
HEADS, GROUPS, WIDTH, HIDDEN = 4, 2, 3, 5


def head_rows(first, count):
    """Take `count` of the heads from `first` on behind each key head of a fused tensor."""

    def rows(config):
        places = np.arange(GROUPS * (HEADS // GROUPS + 2) * WIDTH).reshape(GROUPS, -1, WIDTH)
        return places[:, first : first + count].ravel()

    return rows


FUSED = (
    Rule("h.{layer}.wqkv.weight", "layers/{layer}/q/weight", rows=head_rows(0, 2)),
    Rule("h.{layer}.wqkv.weight", "layers/{layer}/k/weight", rows=head_rows(2, 1)),
    Rule("h.{layer}.wqkv.weight", "layers/{layer}/v/weight", rows=head_rows(3, 1)),
    Rule("h.{layer}.wqkv.bias", "layers/{layer}/q/bias", rows=head_rows(0, 2)),
    Rule("h.{layer}.wqkv.bias", "layers/{layer}/k/bias", rows=head_rows(2, 1)),
    Rule("h.{layer}.wqkv.bias", "layers/{layer}/v/bias", rows=head_rows(3, 1)),
)
EXPERTS = (
    Rule("h.{layer}.norm.weight", "first/{layer}/norm/scale", layers=(0, 1)),
    Rule("h.{layer}.mlp.up.weight", "first/{layer}/up/weight", layers=(0, 1)),
    Rule("h.{layer}.norm.weight", "layers/{layer}/norm/scale", layers=(1, None)),
    Rule(
        "h.{layer}.mlp.experts.{expert}.up.weight",
        "layers/{layer}/up/weight",
        layers=(1, None),
    ),
)
SHAPES = {
    "fused": {
        f"layers/{layer}/{x}/{kind}": (n * WIDTH, *rest)
        for layer in range(3)
        for x, n in (("q", 4), ("k", 2), ("v", 2))
        for kind, rest in (("weight", [HIDDEN]), ("bias", []))
    },
    "experts": {
        "first/0/norm/scale": (HIDDEN,),
        "first/0/up/weight": (7, HIDDEN),
        "layers/0/norm/scale": (HIDDEN,),
        "layers/1/norm/scale": (HIDDEN,),
        "layers/0/up/weight": (4, 6, HIDDEN),
        "layers/1/up/weight": (4, 6, HIDDEN),
    },
}
RULES = {"fused": FUSED, "experts": EXPERTS}


def abstract(table):
    """The parameters of a table, as shapes on the default device."""
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {}
    for path, shape in SHAPES[table].items():
        *folders, leaf = path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = jax.ShapeDtypeStruct(shape, np.float32, sharding=alone)
    return tree


def draw(table):
    shapes = keymap.list_shapes(abstract(table), CONFIG, RULES[table])
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def read(table, tensors, folder, monkeypatch):
    monkeypatch.setattr(placement, "_list_apart", lambda *_: abstract(table))
    monkeypatch.setattr(placement, "_arrange", lambda params, *_: params)
    save_file(tensors, folder / "model.safetensors")
    return load.load_safetensors(folder, CONFIG, np.dtype(np.float32), rules=RULES[table])


@pytest.mark.parametrize("table", RULES)
def test_every_table_reads_and_writes(table, tmp_path, monkeypatch):
    tensors = draw(table)
    params = read(table, tensors, tmp_path, monkeypatch)
    written = dict(keymap.to_hf_names(params, CONFIG, RULES[table]))
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
        assert written[name].flags.c_contiguous


def test_a_fused_tensor_is_cut_by_key_heads(tmp_path, monkeypatch):
    tensors = draw("fused")
    assert tensors["h.1.wqkv.weight"].shape == (8 * WIDTH, HIDDEN)
    layers = read("fused", tensors, tmp_path, monkeypatch)["layers"]
    heads = tensors["h.1.wqkv.weight"].reshape(2, 4, WIDTH, HIDDEN)  # q0 q1 k0 v0, q2 q3 k1 v1
    for name, index in (("q", np.s_[:, :2]), ("k", np.s_[:, 2]), ("v", np.s_[:, 3])):
        expected = heads[index].reshape(-1, HIDDEN)
        np.testing.assert_array_equal(layers["1"][name]["weight"], expected)
    bias = tensors["h.2.wqkv.bias"].reshape(2, 4, WIDTH)
    np.testing.assert_array_equal(layers["2"]["k"]["bias"], bias[:, 2].ravel())


def test_experts_are_stacked_and_layers_count_from_their_own_first(tmp_path, monkeypatch):
    tensors = draw("experts")
    params = read("experts", tensors, tmp_path, monkeypatch)
    assert set(tensors) == {
        *(f"h.{layer}.norm.weight" for layer in range(3)),
        *(f"h.{layer}.mlp.experts.{expert}.up.weight" for layer in (1, 2) for expert in range(4)),
        "h.0.mlp.up.weight",
    }
    np.testing.assert_array_equal(params["first"]["0"]["norm"]["scale"], tensors["h.0.norm.weight"])
    np.testing.assert_array_equal(
        params["layers"]["1"]["norm"]["scale"], tensors["h.2.norm.weight"]
    )
    weight, tensor = params["layers"]["1"]["up"]["weight"], tensors["h.2.mlp.experts.3.up.weight"]
    np.testing.assert_array_equal(weight[3], tensor)


def test_a_slice_of_a_slice_is_read(tmp_path):
    """A device asks for some columns of ours: they are some of the rows that are ours."""
    tensors = draw("fused")
    save_file(tensors, tmp_path / "model.safetensors")
    files, rows = load.TensorFiles(tmp_path), FUSED[0].rows(CONFIG)
    index = (slice(4, 9), slice(1, 4))
    found = files.read("h.0.wqkv.weight", Transform.SAME, index, rows)
    np.testing.assert_array_equal(found, tensors["h.0.wqkv.weight"][rows][index])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("h.1.wqkv.bias", (23,), r"misshaped: h.1.wqkv.bias is \(23,\), the config asks for \(24,"),
        ("h.1.wqkv.bias", None, "1 problem.*missing: h.1.wqkv.bias"),
        ("h.3.wqkv.bias", (24,), r"unused: h.3.wqkv.bias \(24,\)"),
    ],
)
def test_a_fused_tensor_is_named_once(tmp_path, monkeypatch, name, shape, message):
    tensors = draw("fused")
    tensors.pop(name, None)
    if shape:
        tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        read("fused", tensors, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("rules", "path"),
    [
        (
            (FUSED[0], Rule("h.{layer}.wqkv.weight", "layers/{layer}/o/weight")),
            "layers/{layer}/o",
        ),  # all rows
        ((FUSED[0], FUSED[0]), "layers/{layer}/q"),  # twice
    ],
)
def test_rows_are_shared_out_once(rules, path):
    with pytest.raises(ValueError, match=f"'h.0.wqkv.weight' matches several rows.*{path}"):
        keymap.find_targets("h.0.wqkv.weight", rules)


GENERATIONS = Rule("[model.]lm.(model.)h.{layer}.weight", "layers/scale")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("lm.model.h.2.weight", 2),  # as published
        ("model.lm.h.0.weight", 0),  # as saved later
        ("lm.h.11.weight", 11),
        ("lm.model.h.02.weight", None),
        ("lm.model.model.h.2.weight", None),
        ("lmxmodel.h.2.weight", None),
    ],
)
def test_one_rule_reads_all_generations(name, layer):
    targets = keymap.find_targets(name, [GENERATIONS])
    assert [target.index for target in targets] == ([] if layer is None else [(layer,)])


def test_names_are_written_as_published():
    assert keymap.Target(GENERATIONS, (2,)).name == "lm.model.h.2.weight"
