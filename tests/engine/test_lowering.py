"""The programs compile for TPU and lower for CUDA on a machine that has neither."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import complete
from helpers.programs import find_programs, stack_blocks

import ivc_jax
from ivc_jax.nn.attention import attend
from ivc_jax.nn.splash import splash_attend

SPECS = ["dense", "ivc:keep_ratio=0.5", "fastv+ivc:layer=1"]
# Sorts, scatters and loops of their own; the decode is that of the others.
RELATED = ["pyramiddrop", "sparsevlm", "holov", "scope", "visiondrop", "fsr", "nuwa", "vflowopt"]
RELATED += ["divprune", "dart", "cdpruner", "hired", "vispruner", "fitprune"]
RELATED += ["visionzip", "prumerge", "vscan", complete("embedlens"), "quota"]
# Of unlike structure: no cut, one that compacts earlier caches, several that merge, and questions
# about the tower.
COMPILED = ["dense", "ivc:keep_ratio=0.5", "sparsevlm", "nuwa"]


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(num_hidden_layers=4), dtype="bfloat16")[0]


@pytest.mark.parametrize("spec", SPECS)
def test_programs_lower_for_cuda_and_tpu(model, spec):
    for function, arguments in find_programs(model, spec):
        exported = jax.export.export(function, platforms=["cuda", "tpu"])(*arguments)
        assert exported.platforms == ("cuda", "tpu")
        assert "stablehlo.dot_general" in exported.mlir_module()


@pytest.mark.parametrize("spec", RELATED)
def test_prefills_of_the_related_methods_lower_for_cuda_and_tpu(model, spec):
    function, arguments = next(find_programs(model, spec))
    exported = jax.export.export(function, platforms=["cuda", "tpu"])(*arguments)
    assert "stablehlo.dot_general" in exported.mlir_module()


def test_a_tower_with_windows_lowers_for_cuda(tiny_hf):
    model, _ = ivc_jax.load(tiny_hf(family="qwen2_5_vl"), dtype="bfloat16")
    function, arguments = next(find_programs(model, "ivc:layer=1,keep_ratio=0.5"))
    exported = jax.export.export(function, platforms=["cuda"])(*arguments)
    assert "stablehlo.case" in exported.mlir_module()  # blocks within windows, blocks across


def test_experts_and_latent_attention_lower_for_cuda_and_tpu(tiny_hf):
    model, _ = ivc_jax.load(tiny_hf(family="deepseek_vl2_base"), dtype="bfloat16")
    model = stack_blocks(model)  # in two stacks
    for function, arguments in find_programs(model, "ivc:layer=1"):
        exported = jax.export.export(function, platforms=["cuda", "tpu"])(*arguments)
        assert "stablehlo.while" in exported.mlir_module()  # over the parts of experts


@pytest.mark.parametrize(
    ("heads", "groups", "slots", "causal"),
    [(6, 2, 300, True), (2, 2, 300, False), (2, 1, 256, False)],
)
def test_the_attention_kernel_of_tpus_computes_attention(heads, groups, slots, causal):
    """Interpreted on this device: grouped heads, padded blocks, keys that are hidden."""
    make = np.random.default_rng(0).standard_normal
    queries, keys, values = (
        jnp.asarray(make((2, slots, count, 24)), jnp.float32) for count in (heads, groups, groups)
    )
    lengths = jnp.array([slots, slots - 70])
    options = {"lengths": lengths, "causal": causal}
    found = splash_attend(queries, keys, values, **options, interpret=True)
    wanted = attend(queries, keys, values, **options)
    valid = jnp.arange(slots) < lengths[:, None]
    difference = jnp.where(valid[..., None, None], found - wanted, 0.0)
    assert float(jnp.abs(difference).max()) < 1e-5
    assert bool(jnp.isfinite(found).all())


@pytest.mark.parametrize("causal", [True, False])
def test_long_attention_can_be_differentiated(causal):
    """By the kernel of TPUs, interpreted, and by what runs here: a branch of each is traced."""
    make = np.random.default_rng(0).standard_normal
    vectors = tuple(jnp.asarray(make((2, 300, n, 24)), jnp.float32) for n in (4, 2, 2))
    lengths = None if causal else jnp.array([300, 230])

    def differentiate(attention, **options):
        loss = lambda *each: jnp.sin(attention(*each, **options)).sum()  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))(*vectors)

    options = {"lengths": lengths, "causal": causal}
    wanted = differentiate(
        jax.nn.dot_product_attention, key_value_seq_lengths=lengths, is_causal=causal
    )
    with jax.default_matmul_precision("highest"):
        for found in (
            differentiate(attend, **options),
            differentiate(splash_attend, **options, interpret=True),
        ):
            for mine, other in zip(found, wanted, strict=True):
                np.testing.assert_allclose(mine, other, rtol=0, atol=5e-5)


def test_long_sequences_take_the_kernel_on_tpu_alone():
    x = jax.ShapeDtypeStruct((1, 256, 2, 16), jnp.bfloat16)
    function = jax.jit(lambda x: attend(x, x, x, causal=True))
    for platform, there in (("tpu", True), ("cpu", False), ("cuda", False)):
        module = jax.export.export(function, platforms=[platform])(x).mlir_module()
        assert ("tpu_custom_call" in module) == there, platform


COMPILE_FOR_TPU = """
import json, sys, traceback
from ivc_jax.studies.planning import slices
slices.prepare_environment()
from jax.sharding import SingleDeviceSharding
import ivc_jax
from helpers.batches import show_pictures
from helpers.programs import find_programs, stack_blocks

device = slices.find_slice("v5e:2x4").devices[0]
assert "v5" in device.device_kind, device.device_kind
sharding = SingleDeviceSharding(device)


def compile_programs(folder, shown, specs):
    model, processor = ivc_jax.load(folder, dtype="bfloat16", processor=shown)
    batch = show_pictures(processor) if shown else None
    if model.config.decoder.experts or model.config.vision.deepstack:
        # As they lie on a TPU; dense blocks and experts in a stack each.
        model = stack_blocks(model)
    for number, spec in enumerate(specs):
        # The decode sees nothing but spans: the first two methods have one and two of them.
        programs = list(find_programs(model, spec, sharding, batch))[: 2 if number < 2 else 1]
        for function, arguments in programs:
            compiled = function.trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
            yield compiled.memory_analysis().temp_size_in_bytes


for family, arguments in json.loads(sys.argv[1]).items():
    try:
        print(json.dumps([family, list(compile_programs(*arguments))]))
    except Exception:
        print(json.dumps([family, traceback.format_exc()]))
"""
# Whether pictures come through the processor, or their patches are drawn, and what is compiled.
FAMILIES = {
    "qwen2_vl": (False, COMPILED),
    **dict.fromkeys(("deepseek_vl2", "qwen3_vl"), (False, ["dense", "ivc:layer=1"])),
    **dict.fromkeys(("llava", "internvl_6b"), (True, ["dense", "ivc:layer=1"])),
}
BLOCKS = {"qwen2_vl": {"num_hidden_layers": 4}}


@pytest.fixture(scope="module")
def compiled(tiny_hf):
    """Compile in another process: libtpu wants its environment set before JAX starts.

    Returns:
        Temporary bytes of each program of a family, or how it failed.
    """
    work = {
        family: (str(tiny_hf(family=family, **BLOCKS.get(family, {}))), *rest)
        for family, rest in FAMILIES.items()
    }
    tests = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    environment.pop("XLA_FLAGS", None)  # libtpu has flags of its own, and ends at others
    result = subprocess.run(
        [sys.executable, "-c", COMPILE_FOR_TPU, json.dumps(work)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(map(json.loads, result.stdout.splitlines()))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_programs_compile_with_the_tpu_compiler(compiled, family):
    sizes, (_, specs) = compiled[family], FAMILIES[family]
    assert isinstance(sizes, list), sizes[-2000:]
    assert len(sizes) == 2 + len(specs)
    assert max(sizes) > 0
