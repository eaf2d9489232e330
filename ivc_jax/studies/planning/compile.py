"""Compiles prefill and decode for a mesh of devices that need not exist."""

import dataclasses
import math
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ivc_jax.config import ModelConfig
from ivc_jax.engine.cost import count_block_flops
from ivc_jax.engine.decode import run_decode
from ivc_jax.engine.plan import Span, make_plan
from ivc_jax.engine.prefill import run_prefill, with_rope
from ivc_jax.inputs.footprint import find_footprint
from ivc_jax.methods.base import Method
from ivc_jax.nn.blocks import Params
from ivc_jax.parallel.batch import shard_inputs
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.studies.planning import hlo
from ivc_jax.studies.planning.cost import Cost, measure
from ivc_jax.types import Inputs, Layout


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a batch holds: every sample has one square image and some text, none is padded.

    Attributes:
        batch: samples, over all devices.
        visual: visual tokens of a sample.
        text: text tokens of a sample.
        new_tokens: generated for each sample; the cache has room for them.
        tower: the prefill runs the vision tower; otherwise its tokens are there already.
    """

    batch: int
    visual: int
    text: int
    new_tokens: int
    tower: bool = True


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program; bytes are those of one device.

    Attributes:
        compile_seconds: on this machine, tracing included.
        arguments: weights and inputs that it reads, a cache among them if it takes one.
        results: what it leaves behind.
        temporaries: what it needs beside these at its peak.
        code: the program itself.
        idle: weights that lie there unread.
        cost: of one run; of one token, for a decode.
    """

    compile_seconds: float
    arguments: int
    results: int
    temporaries: int
    code: int
    idle: int
    cost: Cost

    @property
    def peak(self) -> int:
        """Bytes in use while it runs."""
        return self.arguments + self.results + self.temporaries + self.code + self.idle


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Both programs of a method.

    Attributes:
        prefill: with the tower, or without it.
        decode: all tokens; its cost is that of one.
        weights: bytes of all parameters on one device.
        cache: bytes of keys and values behind the prompt on one device.
        formula_flops: of all devices in the decoder's part of the prefill, by `engine.cost`.
    """

    prefill: Program
    decode: Program
    weights: int
    cache: int
    formula_flops: float

    @property
    def peak(self) -> int:
        """Bytes in use on one device, at the worse of the two moments."""
        return max(self.prefill.peak, self.decode.peak)


class TooLarge(Exception):
    """A program that the compiler cannot fit into the memory of a device; the message says why."""


def compile_method(
    config: ModelConfig, method: Method, params: Params, mesh: Mesh, workload: Workload
) -> Compiled:
    """Compile a method's prefill and decode.

    Args:
        config: of the model.
        method: resolved against the model.
        params: abstract, sharded over the mesh (`ivc_jax.weights.load.abstract_params`).
        mesh: of devices of a topology.
        workload: what a batch holds.

    Raises:
        TooLarge: a program needs more memory than a device has.
        MethodError: the method does not fit the model.
    """
    # of the weights: shared tower tokens arrive in it
    dtype = params["decoder"]["embed_tokens"]["embedding"].dtype
    # Nothing below holds data: shapes, dtypes and shardings are all that the compiler reads.
    inputs = make_abstract_inputs(config, workload, mesh, dtype)
    # the tower's weights stay in memory while the decoder runs
    idle = count_device_bytes(params["vision"])
    with on_mesh(mesh):
        # The decode is compiled for what the prefill leaves, on the devices where it leaves it.
        prefill = _Built.compile(run_prefill, config, method, params, inputs)
        prompt = prefill.results()
        # [1], the id that ends an answer; replicated
        stop = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
        decode = _Built.compile(
            run_decode,
            with_rope(config, prompt.rope),
            workload.new_tokens,
            params["decoder"],
            # [B, vocabulary], spans of [L, B, S, G, C], [B]
            *(prompt.logits, prompt.cache, prompt.next_position, stop),
        )
    return Compiled(
        prefill=prefill.read(idle=0 if workload.tower else idle),
        # the tower lies idle while tokens are decoded
        decode=decode.read(idle=idle, one_token=True),
        weights=count_device_bytes(params),
        cache=count_device_bytes([(span.keys, span.values) for span in prompt.cache]),
        formula_flops=count_formula_flops(config, method, workload),
    )


def make_abstract_inputs(
    config: ModelConfig, workload: Workload, mesh: Mesh, dtype: np.dtype
) -> Inputs:
    """Return a batch of `jax.ShapeDtypeStruct`, split over the mesh as a real one would be."""
    B, V, T = workload.batch, workload.visual, workload.text
    N = V + T

    def array(*shape: int, kind: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind)

    rows, patches = _find_rows(config, V)
    # [B, V, D], and [J, B, V, D] if the model has such features
    visual = features = None
    if not workload.tower:
        shape = (B, V, config.decoder.hidden_size)
        visual, J = array(*shape, kind=dtype), len(config.vision.deepstack)
        features = array(J, *shape, kind=dtype) if J else None
    inputs = Inputs(
        # One image a sample, M = 1, and N = V + T slots without padding.
        tokens=array(B, N),
        layout=Layout(
            visual_index=array(B, V),
            visual_valid=array(B, V, kind=np.bool_),
            visual_origin=array(B, V),
            image_id=array(B, V),
            grid=array(B, V, 3),
            content=array(B, V, kind=np.bool_),
            tiles=array(B, V, 2),
            image_count=array(B, V),
            visual_count=array(B),
            text_index=array(B, T),
            text_valid=array(B, T, kind=np.bool_),
            positions=array(3, B, N),
            lengths=array(B),
            num_images=1,
            visual_slots=V,
            num_positions=N,
        ),
        next_position=array(B),
        # [R, P, patch values]
        patches=array(B * rows, patches, config.vision.patch_values, kind=np.float32),
        patch_positions=array(B * rows, patches, 2),
        visual_source=array(B, V),
        visual=visual,
        deepstack=features,
    )
    return jax.tree.map(
        lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
        *(inputs, shard_inputs(inputs, mesh)),
    )


def _find_rows(config: ModelConfig, visual: int) -> tuple[int, int]:
    """Return the patch rows of an image of so many visual tokens, and the patches of a row."""
    vision = config.vision
    merge = vision.spatial_merge_size
    if vision.table_side is not None and not vision.table_interpolated:  # it sees one size
        cells = (-(-vision.table_side // merge)) ** 2
        return -(-visual // cells), cells * vision.merge_area
    # the smallest square that holds all cells: towers see whole images
    side = math.isqrt(max(visual - 1, 0)) + 1
    return 1, find_footprint((1, side * merge, side * merge), config).patches


def count_device_bytes(tree: Any) -> int:
    """Add up what one device holds of arrays, abstract or not."""
    return sum(
        # the shard, not the array: replicated leaves count in full
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def count_formula_flops(config: ModelConfig, method: Method, workload: Workload) -> float:
    """Return the operations of the decoder blocks in a prefill of the whole batch."""
    layers, visual = config.decoder.num_layers, workload.visual
    total = 0.0  # the cuts of the plan shorten all blocks behind them
    for step in make_plan(layers, method):
        if isinstance(step, Span):  # a cut costs nothing by the formula
            tokens = np.array(visual + workload.text)  # N, that all blocks of a span see
            for layer in range(step.start, step.stop):
                total += float(count_block_flops(config.decoder, tokens, layer))
        else:
            # V of the spans behind the cut
            visual = min(method.capacity(step.stage, workload.visual, 1), visual)
    return total * workload.batch


@dataclasses.dataclass(frozen=True)
class _Built:
    """A compiled program as JAX returns it, and its text as the compiler wrote it."""

    lowered: Any
    compiled: Any
    text: str
    seconds: float

    @classmethod
    def compile(cls, function: Any, *arguments: Any) -> "_Built":
        """Trace and compile a jitted function for the TPU that its arguments lie on."""
        start = time.perf_counter()
        # this machine's backend is the CPU
        lowered = function.trace(*arguments).lower(lowering_platforms=("tpu",))
        with tempfile.TemporaryDirectory() as folder:
            # `compiled.as_text()` needs a JAX that knows all that the compiler writes, which for
            # v5p and v6e it may not.
            options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            try:
                compiled = lowered.compile(compiler_options=options)
            except jax.errors.JaxRuntimeError as error:
                # any other failure is a bug, not an answer
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise TooLarge(_explain(str(error))) from None
            (path,) = pathlib.Path(folder).glob("*.after_codegen.txt")
            text = path.read_text()
        return cls(lowered, compiled, text, time.perf_counter() - start)

    def results(self) -> Any:
        """Return what the program leaves behind, abstract, where it leaves it."""
        return jax.tree.map(
            lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
            *(self.lowered.out_info, self.compiled.output_shardings),
        )

    def read(self, *, idle: int, one_token: bool = False) -> Program:
        """Read sizes and cost from the program."""
        sizes = self.compiled.memory_analysis()
        return Program(
            compile_seconds=self.seconds,
            arguments=sizes.argument_size_in_bytes,
            # what aliases an argument is counted there
            results=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
            temporaries=sizes.temp_size_in_bytes,
            code=sizes.generated_code_size_in_bytes,
            idle=idle,
            cost=measure(hlo.parse(self.text), open_loop=one_token),
        )


def _explain(message: str) -> str:
    """Shorten the compiler's message to what is needed and what there is."""
    found = re.search(r"\(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)", message)
    return f"needs {found[1]} of {found[2]}" if found else message.splitlines()[0]
