"""Plans: reading compiled programs, searching for a batch, and one plan with the TPU compiler."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.tiny import tiny_config

from ivc_jax.commands.plan import main
from ivc_jax.engine.cost import count_block_flops
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.methods import parse
from ivc_jax.studies.planning import cost, hlo, plan, report, sizes, slices
from ivc_jax.studies.planning.compile import Workload, count_formula_flops
from ivc_jax.studies.planning.search import find_largest_batch

ROOT = Path(__file__).parents[2]

PROGRAM = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(bf16[28,64,8]{2,1,0})->bf16[4,8]}

%slice_of_stack (param_0.1: bf16[28,64,8], param_1.1: s32[]) -> bf16[64,8] {
  %param_0.1 = bf16[28,64,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  %slice.1 = bf16[1,64,8]{2,1,0} dynamic-slice(%param_0.1, %param_1.1), dynamic_slice_sizes={1,64,8}
  ROOT %bitcast.1 = bf16[64,8]{1,0} bitcast(%slice.1)
}

%product (param_0.2: bf16[28,64,8], param_1.2: s32[], param_2.2: bf16[4,64]) -> bf16[4,8] {
  %param_0.2 = bf16[28,64,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.2 = s32[]{:T(128)} parameter(1)
  %param_2.2 = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %fusion.9 = bf16[64,8]{1,0} fusion(%param_0.2, %param_1.2), kind=kLoop, calls=%slice_of_stack
  ROOT %dot.1 = bf16[4,8]{1,0:S(1)} convolution(%param_2.2, %fusion.9), dim_labels=bf_io->bf
}

%empty () -> bf16[4,8] {
  ROOT %zeros = bf16[4,8]{1,0} constant({...})
}

%body (arg.1: (s32[], bf16[28,64,8], bf16[4,64])) -> (s32[], bf16[28,64,8], bf16[4,64]) {
  %arg.1 = (s32[]{:T(128)}, bf16[28,64,8]{2,1,0}, bf16[4,64]{1,0:S(1)}) parameter(0)
  %get.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %get.2 = bf16[28,64,8]{2,1,0} get-tuple-element(%arg.1), index=1
  %get.3 = bf16[4,64]{1,0:S(1)} get-tuple-element(%arg.1), index=2
  %fusion.1 = bf16[4,8]{1,0:S(1)} fusion(%get.2, %get.1, %get.3), kind=kOutput, calls=%product, \
backend_config={"window_config":{"estimated_cycles":"100","x":["4"]}}
  %unknown.1 = bf16[4,8]{1,0:S(1)} fusion(), kind=kCustom, calls=%empty, \
backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  %all-reduce.1 = bf16[4,8]{1,0:S(1)} all-reduce(%fusion.1), replica_groups=[2,4]<=[8], \
to_apply=%add, metadata={op_name="jit(f)/while/body/closed_call/layer/o_proj/dot_general"}
  ROOT %tuple.1 = (s32[], bf16[28,64,8], bf16[4,64]) tuple(%get.1, %get.2, %get.3)
}

%condition (arg.2: (s32[], bf16[28,64,8], bf16[4,64])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(28)
  %arg.2 = (s32[]{:T(128)}, bf16[28,64,8]{2,1,0}, bf16[4,64]{1,0:S(1)}) parameter(0)
  %get.4 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%get.4, %constant.1), direction=LT
}

ENTRY %main (p: bf16[28,64,8], q: bf16[4,64]) -> bf16[4,64] {
  %p = bf16[28,64,8]{2,1,0} parameter(0)
  %q = bf16[4,64]{1,0} parameter(1)
  %copy.1 = bf16[4,64]{1,0:S(1)} copy(%q), backend_config={"estimated_cycles":"7"}
  %zero = s32[] constant(0)
  %tuple.2 = (s32[], bf16[28,64,8], bf16[4,64]) tuple(%zero, %p, %copy.1)
  %while.1 = (s32[], bf16[28,64,8], /*index=2*/bf16[4,64]) while(%tuple.2), \
condition=%condition, body=%body
  ROOT %get.5 = bf16[4,64]{1,0:S(1)} get-tuple-element(%while.1), index=2
}
"""
OPEN = PROGRAM.replace(
    "  ROOT %less.1 = pred[]{:T(512)} compare(%get.4, %constant.1), direction=LT\n",
    "  %less.1 = pred[]{:T(512)} compare(%get.4, %constant.1), direction=LT\n"
    "  ROOT %and.1 = pred[]{:T(512)} and(%less.1, %less.1)\n",
)


def only(line):
    """Parse one instruction behind operands %a and %b."""
    return hlo.parse(f"ENTRY %main () -> f32[] {{\n{line}\n}}\n")


def test_what_a_loop_holds_counts_as_often_as_the_loop_runs():
    found = cost.measure(hlo.parse(PROGRAM))
    assert found.cycles == 28 * 100 + 7
    assert found.flops == 28 * 2 * 4 * 8 * 64
    # A slice of the stack each time, and once the copy to fast memory: 64 * 8 and 4 * 64 of two.
    assert found.hbm_bytes == 28 * 64 * 8 * 2 + 4 * 64 * 2
    assert found.collectives == (cost.Collective("all-reduce", 4, 64, 28, "layer/o_proj"),)


def test_a_loop_of_unknown_length_counts_once():
    program = hlo.parse(OPEN)
    assert cost.measure(program).cycles == 100 + 7
    token = cost.measure(program, open_loop=True)
    assert (token.cycles, token.flops) == (100, 2 * 4 * 8 * 64)
    assert [each.count for each in token.collectives] == [1]
    assert cost.measure(hlo.parse(PROGRAM), open_loop=True).cycles == 0


@pytest.mark.parametrize(
    ("left", "right", "result", "attributes", "flops"),
    [
        # 4 x 100 rows of 32 by 16 columns
        ("4,100,32", "32,16,1", "4,100,16", "window={size=1}, dim_labels=0bf_io0->0bf", 2 * 204800),
        # four products of 7 x 128 by 128 x 50: the batch is a window that meets one element
        (
            "4,7,128",
            "4,50,128",
            "4,7,50",
            "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf",
            2 * 4 * 7 * 128 * 50,
        ),
        # a batch of four and seven heads, spelled as a reversed window over padding
        (
            "4,50,1",
            "7,128,50",
            "4,7,128",
            "window={size=7 pad=6_6 rhs_reversal=1}, dim_labels=bf0_0oi->b0f",
            2 * 4 * 7 * 128 * 50,
        ),
    ],
)
def test_matrix_products_spelled_as_convolutions(left, right, result, attributes, flops):
    program = only(
        f"  %a = bf16[{left}]{{2,1,0}} parameter(0)\n  %b = bf16[{right}]{{2,1,0}} parameter(1)\n"
        f"  ROOT %c = bf16[{result}]{{2,1,0}} convolution(%a, %b), {attributes}"
    )
    assert cost.measure(program).flops == flops


def test_dots_and_attention_kernels():
    program = only(
        "  %a = f32[5,3,7]{2,1,0} parameter(0)\n  %b = f32[5,7,2]{2,1,0} parameter(1)\n"
        "  %c = f32[5,3,2]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}\n"
        "  %m = s8[1,2,2]{2,1,0} parameter(2)\n  %q = bf16[4,7,256,128]{3,2,1,0} parameter(3)\n"
        "  %k = bf16[4,512,128]{2,1,0} parameter(4)\n"
        "  ROOT %splash_mqa_fwd.1 = bf16[4,7,256,128]{3,2,1,0} custom-call(%m, %q, %k, %k), "
        'custom_call_target="tpu_custom_call"'
    )
    found = cost.measure(program)
    assert found.flops == 2 * 5 * 3 * 7 * 2
    assert found.kernel_flops == 2 * 2 * 4 * 7 * 256 * 512 * 128


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        ("source_target_pairs={{0,1},{1,0}}", None),
    ],
)
def test_collectives_are_read_in_every_spelling(groups, devices):
    program = only(
        "  %a = bf16[4,10]{1,0} parameter(0)\n"
        f"  %s = (bf16[4,10]{{1,0}}, bf16[12,10]{{1,0}}) all-gather-start(%a), {groups}\n"
        "  ROOT %d = bf16[12,10]{1,0} all-gather-done(%s)"
    )
    assert cost.measure(program).collectives == (
        cost.Collective("all-gather", devices, 240, 1, ""),
    )


def test_a_cache_that_is_written_in_place_counts_what_is_written():
    text = """\
%write (p0: bf16[9,50,8], p1: bf16[1,1,8], p2: s32[]) -> bf16[9,50,8] {
  %p0 = bf16[9,50,8]{2,1,0} parameter(0)
  %p1 = bf16[1,1,8]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %u = bf16[9,50,8]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %p2, %p2)
}

ENTRY %main (a: bf16[9,50,8], b: bf16[1,1,8], i: s32[]) -> bf16[9,50,8] {
  %a = bf16[9,50,8]{2,1,0} parameter(0)
  %b = bf16[1,1,8]{2,1,0:S(1)} parameter(1)
  %i = s32[]{:S(6)} parameter(2)
  ROOT %f = bf16[9,50,8]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%write
}
"""
    assert cost.measure(hlo.parse(text)).hbm_bytes == 16


def test_text_that_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @jit_f {}")


@pytest.mark.parametrize(
    ("peak", "limit", "answer"),
    [
        (lambda batch: 100 + 7 * batch, 400, 42),
        (lambda batch: 100 + 7 * batch, 107, 0),
        (lambda batch: 100 + 7 * batch + batch**2 // 8, 400, 28),
        (lambda batch: 100 + 7 * batch if batch < 30 else None, 400, 28),
        (lambda batch: 100 + 7 * batch, 150, 6),
    ],
)
def test_the_largest_batch_is_found_with_few_compilations(peak, limit, answer):
    tried = []

    def peak_at(batch):
        tried.append(batch)
        return peak(batch)

    assert find_largest_batch(peak_at, first=8, step=2, limit=limit) == answer
    assert len(tried) == len(set(tried)) <= 6
    assert all(batch % 2 == 0 and batch > 0 for batch in tried)


def test_the_formula_follows_the_cuts_of_a_method():
    config = parse_config(list_sizes()["qwen2-vl-7b"])
    workload = Workload(batch=8, visual=4096, text=64, new_tokens=1)
    before, behind = (count_block_flops(config.decoder, n) for n in (4160, 2112))
    assert count_formula_flops(config, parse("dense"), workload) == 8 * 28 * before
    method = parse("ivc:layer=16,keep_ratio=0.5").resolve(config)
    assert count_formula_flops(config, method, workload) == 8 * (16 * before + 12 * behind)


@pytest.mark.parametrize("name", ["v5e", "v5e:8", "v3:2x2", "v5e:2x4x", "2x4"])
def test_a_topology_that_is_none_is_an_error(name):
    with pytest.raises(ValueError, match=r"not generation:AxB.*v4, v5e, v5p, v6e"):
        slices.find_slice(name)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=2,model=2", "has 4 devices"),
        ("2x4", "must look like data=4"),
        ("rows=8", "must look"),
    ],
)
def test_a_mesh_that_does_not_fit_is_an_error(mesh, message):
    place = SimpleNamespace(name="v5e:2x4", devices=[None] * 8)
    with pytest.raises(ValueError, match=message):
        plan.choose_mesh(mesh, parse_config(tiny_config()), place)


def test_sizes_are_found_without_weights(tmp_path):
    assert sizes.find_config("Qwen2.5-VL-7B").decoder.hidden_size == 3584
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config()))
    assert sizes.find_config(str(path)) == sizes.find_config(str(tmp_path))
    with pytest.raises(ValueError, match="known sizes: qwen2-vl-2b"):
        sizes.find_config("qwen3")


@pytest.mark.parametrize("name", list_sizes())
def test_presets_are_whole(name):
    config = parse_config(list_sizes()[name])
    narrow = name in ("internvl2.5-1b", "internvl3-1b")  # of Qwen2.5-0.5B
    assert config.decoder.head_dim == (64 if narrow else 192 if config.decoder.latent else 128)
    assert config.vision.out_dim == config.decoder.hidden_size


def test_a_plan_refuses_halves_as_a_load_does(monkeypatch, capsys):
    """Before it looks for a compiler."""
    monkeypatch.setattr(slices, "prepare_environment", lambda: None)
    monkeypatch.setattr(slices, "find_slice", lambda name: pytest.fail("too late"))
    assert main(["--dtype", "float16"]) == 2
    message = "float16 is not computed on tpu; use dtype bfloat16 or float32"
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Run apart: libtpu wants its environment set before JAX starts, and locks the machine."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install libtpu")
    folder = tmp_path_factory.mktemp("plan")
    sizes_file, out = folder / "config.json", folder / "plan.json"
    sizes_file.write_text(json.dumps(tiny_config()))
    command = [
        *(sys.executable, "experiments/run.py", "plan", "--model", sizes_file),
        *("--topology", "v5e:2x2", "--mesh", "data=2,model=2", "--batch-size", "4"),
        *("--visual-tokens", "256", "--text-tokens", "16", "--new-tokens", "4"),
        *("--methods", "dense", "uniform:layer=1,keep_ratio=0.5", "--no-search", "--out", out),
    ]
    # libtpu has flags of its own, and ends at others
    own = {"IVC_JAX_TYPECHECK", "XLA_FLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(out.read_text()), result.stdout


def test_a_plan_says_what_the_programs_hold(planned):
    results, printed = planned
    dense, pruned = results["methods"]
    config = parse_config(tiny_config())
    assert results["meta"]["mesh"] == {"data": 2, "model": 2}
    assert dense["fits"]
    assert pruned["fits"]
    # two samples a device, one of two key heads, keys and values of two bytes
    slots = config.decoder.num_layers * 2 * (256 + 16)
    assert dense["cache_bytes"] == 2 * 2 * slots * config.decoder.rope.head_dim
    assert pruned["cache_bytes"] == dense["cache_bytes"] * (128 + 16) // (256 + 16)
    assert pruned["prefill"]["estimated_ms"] < dense["prefill"]["estimated_ms"] * 2
    assert dense["prefill"]["kernel_flops"] > 0
    assert "memory of a device" in printed
    assert report.NOTES[0] in printed


def test_a_plan_moves_no_weights_and_no_image(planned):
    dense = planned[0]["methods"][0]
    layers = parse_config(tiny_config()).decoder.num_layers
    for name in ("prefill", "decode"):
        reduced = [
            each["count"]
            for each in dense[name]["collectives"]
            if each["kind"] == "all-reduce" and "DecoderBlock.mix" in each["source"]
        ]
        assert reduced == [layers, layers], name
    gathered = [each for each in dense["decode"]["collectives"] if each["kind"] == "all-gather"]
    assert all(each["nbytes"] <= 64 for each in gathered)
    moved = [each["source"] for each in dense["prefill"]["collectives"] if each["devices"] != 2]
    assert moved == []
