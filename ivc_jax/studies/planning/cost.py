"""What a compiled program costs one device: operations, bytes, time, collectives.

XLA's own totals count the body of a loop once, whatever the number of layers; here every
instruction counts as often as it runs.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable

from ivc_jax.studies.planning.hlo import Array, Computation, Execution, Instruction, Program

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# They move no data: names for what is there already, or the second half of a pair.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "opt-barrier", "async-start",
    "async-update", "async-done", "copy-done",
}  # fmt: skip
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')  # in the backend_config of an instruction
# the compiler writes 2**63 - 1 where it does not know; nothing real comes near
_NO_ESTIMATE = 2**62


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind and size.

    Attributes:
        kind: such as all-reduce.
        devices: that take part in each, None if the program does not say.
        nbytes: of one, on one device: the larger of what goes in and what comes out.
        count: how often a run executes it.
        source: what of the model it belongs to.
    """

    kind: str
    devices: int | None
    nbytes: int
    count: int
    source: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a run on one device.

    Attributes:
        flops: of matrix products, two for a multiplication and an addition.
        kernel_flops: of attention kernels, the whole score matrix counted; not in `flops`.
        cycles: the compiler's estimates of all instructions that it gives one for. It gives none
            for kernels and for collectives.
        hbm_bytes: read from and written to HBM.
        collectives: largest total first.
    """

    flops: int
    kernel_flops: int
    cycles: int
    hbm_bytes: int
    collectives: tuple[Collective, ...]


def measure(program: Program, *, open_loop: bool = False) -> Cost:
    """Add up a program.

    Args:
        open_loop: count one round of the loop whose length is not known, and nothing outside of
            it; otherwise the whole program, such loops once.
    """
    # open: inside the loop over generated tokens
    chosen = [run for run in program.executions() if run.open or not open_loop]
    flops = kernels = cycles = moved = 0
    for run in chosen:
        instruction, times = run.instruction, run.times
        flops += times * _count_flops(program, run.computation, instruction)
        kernels += times * _count_kernel_flops(run.computation, instruction)
        cycles += times * _read_cycles(instruction)
        moved += times * _count_hbm_bytes(program, run.computation, instruction)
    return Cost(flops, kernels, cycles, moved, tuple(list_collectives(chosen)))


def _read_cycles(instruction: Instruction) -> int:
    """Read the compiler's estimate; the largest integer says that there is none."""
    found = _CYCLES.search(instruction.attributes)
    return int(found[1]) if found and int(found[1]) < _NO_ESTIMATE else 0


def list_collectives(runs: Iterable[Execution]) -> list[Collective]:
    """List the collectives among some instructions, equal ones together."""
    counts: collections.Counter[tuple] = collections.Counter()
    for run in runs:
        # -start and -done are one collective; -done is no kind
        kind = run.instruction.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            inputs = _find_inputs(run.computation, run.instruction)
            # an all-gather grows, a reduce-scatter shrinks
            size = max(array.nbytes for array in (*run.instruction.results, *inputs))
            attributes = run.instruction.attributes
            counts[kind, _find_group_size(attributes), size, _name_source(attributes)] += run.times
    found = [
        Collective(kind, devices, size, count, source)
        for (kind, devices, size, source), count in counts.items()
    ]
    return sorted(found, key=lambda each: -each.nbytes * each.count)


def _find_group_size(attributes: str) -> int | None:
    """Read how many devices a group has, in any of the three spellings of replica_groups."""
    # replica_groups={{0,1},{2,3}}, =[4,2]<=[8], or =mesh['data'=4,'model'=2] {'model'}
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        count = 1
        for axis in re.findall(r"'([^']+)'", found[2]):
            count *= int(sizes[axis])
        return count
    return None


def _name_source(attributes: str) -> str:
    """Shorten the name stack of an operation to the parts that name the model."""
    found = re.search(r'op_name="([^"]*)"', attributes)
    parts = found[1].split("/") if found else []
    noise = re.compile(
        r"jit\(.*\)|while|body|cond|closed_call|eval_jaxpr|shard_map|dot_general|branch_.*"
    )
    return "/".join(part for part in parts if not noise.fullmatch(part))


def _find_inputs(computation: Computation, instruction: Instruction) -> list[Array]:
    known = [computation[name] for name in instruction.operands if name in computation]
    return [array for operand in known for array in operand.results]


def _count_flops(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Count the matrix products of an instruction, also those inside a fusion."""
    if instruction.opcode == "convolution":
        return _count_convolution_flops(computation, instruction)
    if instruction.opcode == "dot":
        return _count_dot_flops(computation, instruction)
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.called("calls")]
        return sum(_count_flops(program, inner, each) for each in inner.values())
    return 0


def _count_dot_flops(computation: Computation, instruction: Instruction) -> int:
    (left,) = computation[instruction.operands[0]].results
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    count = 2 * instruction.results[0].size  # times the contracted dimensions, below
    for dimension in found[1].split(","):
        count *= left.shape[int(dimension)] if dimension else 1
    return count


def _count_convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """Count a convolution: on TPU every matrix product is one, its batch a strange window."""
    (left,), (right,) = (computation[name].results for name in instruction.operands[:2])
    # b01f_01io->b01f: a letter a dimension; b batch, f features out, i features in
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    output = dict(zip(labels[3], instruction.results[0].shape, strict=True))
    image = dict(zip(labels[1], left.shape, strict=True))
    kernel = dict(zip(labels[2], right.shape, strict=True))
    # window={size=3x3 stride=2x2 pad=1_1x1_1 ...}: an entry for each axis, joined by "x"
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    # a product and a sum for each (output, kernel) pair
    count = 2 * output["b"] * output["f"] * kernel["i"]
    for axis in sorted(label for label in output if label.isdigit()):
        count *= _count_valid_pairs(int(axis), fields, image[axis], kernel[axis], output[axis])
    return count


def _count_valid_pairs(
    axis: int, fields: dict[str, str], image: int, kernel: int, output: int
) -> int:
    """Count (output, kernel) positions that meet an element of the image."""

    def field(name: str, default: int) -> int:
        # pad=1_0 is before_after; what is before is enough
        values = fields.get(name, "").split("x")
        return int(values[axis].split("_")[0]) if values[0] else default

    # output o and kernel k look at image place o * stride + k * gap - low, which lies between
    # two elements unless `spread` divides it
    stride, low = field("stride", 1), field("pad", 0)
    spread, gap = field("lhs_dilate", 1), field("rhs_dilate", 1)
    # where in the spread-out, padded image the kernel lies
    places = (
        o * stride + k * gap - low for o, k in itertools.product(range(output), range(kernel))
    )
    # holes between spread-out elements are zeros that nobody multiplies
    return sum(place % spread == 0 and 0 <= place // spread < image for place in places)


def _count_kernel_flops(computation: Computation, instruction: Instruction) -> int:
    """Count the two products of a splash attention kernel, masked scores included."""
    if instruction.opcode != "custom-call" or "splash" not in instruction.name:
        return 0
    # masks and block tables are integers
    vectors = [array for array in _find_inputs(computation, instruction) if array.dtype in _FLOATS]
    queries, keys = vectors[:2]  # [.., T, C] and [.., S, C]: scores and values, 2 T S C each
    return 4 * queries.size * keys.shape[-2]


_FLOATS = ("bf16", "f16", "f32")


def _count_traffic(arrays: Iterable[Array]) -> int:
    """Add up arrays in HBM; scalars live elsewhere."""
    return sum(array.nbytes for array in arrays if array.shape and not array.space)


def _count_hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Count what an instruction reads from and writes to HBM; slices count as slices."""
    opcode, results = instruction.opcode, instruction.results
    if opcode in _FREE or opcode.removesuffix("-done") in _COLLECTIVES:
        return 0
    if opcode == "custom-call" and "tpu_custom_call" not in instruction.attributes:
        return 0  # a hint to the compiler
    if opcode == "fusion":
        return _count_fusion_bytes(program, computation, instruction)
    inputs = _find_inputs(computation, instruction)
    if opcode == "copy-start":
        return _count_traffic(results[:2])  # (destination, source, context)
    if opcode in ("dynamic-slice", "slice", "gather"):
        # what is taken is read and written; the source stays where it is
        return 2 * _count_traffic(results)
    if opcode == "dynamic-update-slice":
        # (target, update, offsets): the target is written in place
        return 2 * _count_traffic(inputs[1:2])
    return _count_traffic(inputs) + _count_traffic(results)


def _count_fusion_bytes(
    program: Program, computation: Computation, instruction: Instruction
) -> int:
    """Count the operands of a fusion in HBM and its results; what is written in place, once."""
    inner = program.computations[instruction.called("calls")]
    total, updated = 0, set()
    for number, name in enumerate(instruction.operands):
        whole = _count_traffic(computation[name].results)  # bytes of the operand
        reads = _find_readers(program, inner, number) if whole else []
        # None: read as something else than the source of a slice
        kinds = {each.opcode if first else None for _, each, first in reads}
        # A loop over layers takes its slice of the stacked weights: only that slice is read.
        if kinds and kinds <= {"dynamic-slice", "gather"}:
            total += sum(array.nbytes for _, each, _ in reads for array in each.results)
        # A cache that takes one token: the update is written, the rest is the same buffer.
        elif kinds == {"dynamic-update-slice"}:
            parts = [where[each.operands[1]].results for where, each, _ in reads]
            total += sum(array.nbytes for results in parts for array in results)
            # the rest of the result is the operand itself, in place
            updated |= {each.results[0].shape for _, each, _ in reads}
        else:
            total += whole
    return total + _count_traffic(a for a in instruction.results if a.shape not in updated)


def _find_readers(
    program: Program, inner: Computation, number: int
) -> list[tuple[Computation, Instruction, bool]]:
    """Find who reads a fusion's operand, behind other names for it and in fusions within.

    The bool says whether it is the reader's first operand, such as what a slice is taken of.
    """
    found = []
    # grows: a bitcast is another name for the same bytes
    names = {i.name for i in inner.values() if (i.opcode, i.attributes) == _find_parameter(number)}
    for each in inner.values():
        if not names.intersection(each.operands):
            continue
        if each.opcode == "bitcast":
            names.add(each.name)
        elif each.opcode == "fusion":
            nested = program.computations[each.called("calls")]
            places = [place for place, name in enumerate(each.operands) if name in names]
            found += [read for place in places for read in _find_readers(program, nested, place)]
        else:
            found.append((inner, each, each.operands[0] in names))
    return found


def _find_parameter(number: int) -> tuple[str, str]:
    return "parameter", str(number)
