"""Plans: what each method needs on a slice, gathered from its compiled programs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from ivc_jax.config import ModelConfig
from ivc_jax.methods import parse
from ivc_jax.nn.blocks import Params
from ivc_jax.parallel.mesh import make_mesh, parse_mesh
from ivc_jax.studies.planning.compile import Compiled, TooLarge, Workload, compile_method
from ivc_jax.studies.planning.search import find_largest_batch
from ivc_jax.studies.planning.slices import Slice


@dataclasses.dataclass(frozen=True)
class MethodPlan:
    """What one method needs.

    Attributes:
        spec: as it was given.
        compiled: None if the compiler cannot fit a program.
        problem: why not; empty if it fits.
        largest_batch: that fits, 0 for none; None if it was not looked for.
    """

    spec: str
    compiled: Compiled | None
    problem: str
    largest_batch: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the batch that was asked for fits."""
        return not self.problem


def choose_mesh(text: str | None, config: ModelConfig, place: Slice) -> Mesh:
    """Arrange a slice as `data=2,model=4` says.

    Without text `model` is the largest size that divides both key heads and devices: then weights
    and caches are split as far as they go.

    Raises:
        ValueError: another spelling, or a product that is not the number of devices.
    """
    count = len(place.devices)
    if text is None:
        heads = config.decoder.num_kv_heads
        # heads are never cut: KV heads of a shard must be whole
        model = max(n for n in range(1, heads + 1) if heads % n == 0 and count % n == 0)
        return make_mesh(count // model, model, place.devices)
    sizes = parse_mesh(text)
    product = sizes["data"] * sizes["model"]
    if product != count:
        raise ValueError(
            f"mesh {text} has {product} devices, topology {place.name} has {count}:"
            " make data x model equal to it"
        )
    return make_mesh(**sizes, devices=place.devices)


def plan_methods(
    config: ModelConfig,
    specs: tuple[str, ...],
    params: Params,
    mesh: Mesh,
    place: Slice,
    workload: Workload,
    *,
    search: bool = False,
    log: Callable[[str], None] = print,
) -> list[MethodPlan]:
    """Compile every method for a workload, one after the other.

    Args:
        config: of the model.
        specs: of methods.
        params: abstract, sharded over the mesh.
        mesh: from `choose_mesh`.
        place: the slice whose devices the mesh holds.
        workload: its batch must be a multiple of the `data` axis.
        search: also look for the largest batch.
        log: gets a line for each compilation.

    Raises:
        MethodError: a method that does not fit the model.
        ValueError: a batch that does not divide.
    """
    step = mesh.shape["data"]  # samples are whole: a batch is a multiple of the shards
    if workload.batch < 1 or workload.batch % step:
        raise ValueError(
            f"batch-size must be a multiple of data={step} of the mesh, got {workload.batch}"
        )
    methods = {spec: parse(spec).resolve(config) for spec in specs}  # complain before compiling

    def compile_at(spec: str, batch: int) -> Compiled:
        log(f"{spec}: compiling for batch {batch}")
        chosen = dataclasses.replace(workload, batch=batch)
        return compile_method(config, methods[spec], params, mesh, chosen)

    plan = functools.partial(_plan_method, batch=workload.batch, step=step, place=place)
    return [plan(spec, functools.partial(compile_at, spec), search=search) for spec in methods]


def _plan_method(
    spec: str,
    compile_at: Callable[[int], Compiled],
    *,
    batch: int,
    step: int,
    place: Slice,
    search: bool,
) -> MethodPlan:
    """Compile one method for a batch and, for a search, for others."""
    found: dict[int, Compiled] = {}  # by batch
    problems: dict[int, str] = {}

    def peak_at(size: int) -> int | None:
        try:
            found[size] = compile_at(size)
        except TooLarge as reason:
            problems[size] = str(reason)  # the compiler refused
            return None
        return found[size].peak

    limit, largest = place.chip.hbm_bytes, None
    if search:
        largest = find_largest_batch(peak_at, batch, step, limit)
    else:
        peak_at(batch)
    compiled, problem = found.get(batch), problems.get(batch, "")
    # It compiled alone; with the weights that lie idle beside it, it may still be too large.
    if compiled is not None and compiled.peak > limit:
        problem = f"needs {compiled.peak / 2**30:.2f}G of {limit / 2**30:.2f}G"
    return MethodPlan(spec, compiled, problem, largest)


def record(plans: list[MethodPlan], place: Slice) -> list[dict[str, Any]]:
    """Turn plans into plain values, with what follows from the chip's rates."""
    return [_record(each, place) for each in plans]


def _record(each: MethodPlan, place: Slice) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": each.spec,
        "fits": each.fits,
        "problem": each.problem,
        "largest_batch": each.largest_batch,
        "device_hbm_bytes": place.chip.hbm_bytes,
    }
    if each.compiled is None:
        return row
    compiled = each.compiled
    row |= {
        "peak_bytes": compiled.peak,
        "weights_bytes": compiled.weights,
        "cache_bytes": compiled.cache,
        "decoder_formula_flops": compiled.formula_flops,
    }
    for name in ("prefill", "decode"):
        # bytes first, then times, then what they come from
        program = dataclasses.asdict(getattr(compiled, name))
        cost = program.pop("cost")
        row[name] = (
            program | {"peak": getattr(compiled, name).peak} | _estimate_times(cost, place) | cost
        )
        row[name]["compile_seconds"] = round(row[name]["compile_seconds"], 1)
    return row


def _estimate_times(cost: Mapping[str, Any], place: Slice) -> dict[str, float]:
    """Turn cycles, operations and bytes into milliseconds at the chip's rates."""
    chip = place.chip
    milliseconds = {
        "compiler_ms": cost["cycles"] / chip.clock,  # seconds as yet
        "kernels_at_peak_ms": cost["kernel_flops"] / chip.flops,
        "hbm_at_peak_ms": cost["hbm_bytes"] / chip.hbm_rate,
        "matrices_at_peak_ms": cost["flops"] / chip.flops,
    }
    times = {name: round(1000 * seconds, 3) for name, seconds in milliseconds.items()}
    # the compiler estimates no kernels, and what it does estimate excludes them
    times["estimated_ms"] = round(times["compiler_ms"] + times["kernels_at_peak_ms"], 3)
    return times
