"""Plan an evaluation on a TPU slice from any machine: memory, time and collectives, no weights.

    ivc-jax plan --model qwen2-vl-7b --topology v5e:2x4 --mesh data=2,model=4 \
        --methods dense ivc:keep_ratio=0.5

Prefill and decode are compiled ahead of time for the slice by libtpu, which must be installed but
needs no TPU. What is printed is read from the compiled programs.
"""

import dataclasses
import functools
import json
import pathlib
import time
from typing import Annotated, Any

import tyro
from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Sizes and weights.

    Attributes:
        model: name of published sizes such as qwen2-vl-7b, a config.json, a checkpoint folder or a
            hub name.
        dtype: of the weights.
        weights: int8 keeps the decoder's matrices in 8 bits.
        no_tower: leave the vision tower out of the prefill, as when methods share it.
    """

    model: Annotated[str, option("PATH")] = "qwen2-vl-7b"
    dtype: Annotated[str, option("TYPE")] = "bfloat16"
    weights: Annotated[str | None, option("TYPE", "as dtype")] = None
    no_tower: bool = False


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """The slice.

    Attributes:
        topology: such as v5e:2x4, v6e:2x2, v4:2x2x1 or v5p:2x2x1.
        mesh: such as data=2,model=4.
    """

    topology: Annotated[str, option("NAME")] = "v5e:2x4"
    mesh: Annotated[
        str | None, option("AXES", "as much `model` as key heads and devices allow")
    ] = None


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What runs on it.

    Attributes:
        methods: such as dense, "ivc:layer=3,keep_ratio=0.5" or fastv:budget=0.5.
        batch_size: examples that run together, over all devices.
        visual_tokens: of each example.
        text_tokens: of each example.
        new_tokens: that the cache has room for.
        no_search: do not look for the largest batch, which takes two or three compilations more.
        out: JSON file for all numbers.
    """

    methods: Annotated[tuple[str, ...], option("SPEC ...")] = ("dense", "ivc:keep_ratio=0.5")
    batch_size: Annotated[int, option("B")] = 8
    visual_tokens: Annotated[int, option("V")] = 4096
    text_tokens: Annotated[int, option("T")] = 64
    new_tokens: Annotated[int, option("N")] = 64
    no_search: bool = False
    out: Annotated[str | None, option("FILE", "none")] = None


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compile for a TPU slice without having it, and say what fits.

    Attributes:
        traceback: show where an error came from.
    """

    model: tyro.conf.OmitArgPrefixes[ModelOptions] = ModelOptions()
    device: tyro.conf.OmitArgPrefixes[DeviceOptions] = DeviceOptions()
    run: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions()
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} plan") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program, width=140)


def _run(arguments: Arguments, command: str, console: Console) -> None:
    """Check, compile, print and write."""
    from ivc_jax.studies.planning import report

    results = make_plan(arguments, command, console)
    console.print(results["meta"]["summary"], markup=False)
    report.show(console, results)
    if arguments.run.out:
        path = pathlib.Path(arguments.run.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"numbers: {path}", markup=False)


def make_plan(arguments: Arguments, command: str, console: Console) -> dict[str, Any]:
    """Compile what the arguments ask for and return all numbers.

    Raises:
        ValueError: any argument that cannot be used.
    """
    from ivc_jax.studies.planning import slices

    slices.prepare_environment()
    # Only now: JAX must not start before.
    import jax

    from ivc_jax.commands.origin import find_commit
    from ivc_jax.model import check_dtype
    from ivc_jax.studies.planning import plan, sizes
    from ivc_jax.studies.planning.compile import Workload
    from ivc_jax.weights import quantize
    from ivc_jax.weights.placement import abstract_params
    from ivc_jax.weights.source import DTYPES

    start = time.monotonic()
    _check(arguments, DTYPES)
    check_dtype(arguments.model.dtype, "tpu")
    quantize.check(arguments.model.weights)
    config = sizes.find_config(arguments.model.model)
    place = slices.find_slice(arguments.device.topology)
    mesh = plan.choose_mesh(arguments.device.mesh, config, place)
    stored = arguments.model.weights
    params = abstract_params(config, DTYPES[arguments.model.dtype], mesh, stored)
    workload = Workload(
        batch=arguments.run.batch_size,
        visual=arguments.run.visual_tokens,
        text=arguments.run.text_tokens,
        new_tokens=arguments.run.new_tokens,
        tower=not arguments.model.no_tower,
    )
    plans = plan.plan_methods(
        config, arguments.run.methods, params, mesh, place, workload,
        search=not arguments.run.no_search, log=functools.partial(console.print, markup=False),
    )  # fmt: skip
    shape, stored = dict(mesh.shape), arguments.model.weights or arguments.model.dtype
    meta = {
        "command": command,
        "commit": find_commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "jax_version": jax.__version__,
        "libtpu_version": slices.read_libtpu_version(),
        "seconds": round(time.monotonic() - start, 1),
        "model": arguments.model.model,
        "topology": place.name,
        "device_kind": place.devices[0].device_kind,
        "mesh": shape,
        "workload": dataclasses.asdict(workload),
        "dtype": arguments.model.dtype,
        "weights": arguments.model.weights,
        "summary": f"{arguments.model.model}, {stored}, on {place.name} as {shape}: batch of"
        f" {workload.batch} with {workload.visual} visual and {workload.text} text tokens each",
    }
    return {"meta": meta, "methods": plan.record(plans, place)}


def _check(arguments: Arguments, dtypes: Any) -> None:
    """Complain about numbers and names, before anything is compiled."""
    for name in ("batch_size", "visual_tokens", "text_tokens", "new_tokens"):
        if getattr(arguments.run, name) < 1:
            raise ValueError(f"{name.replace('_', '-')} must be at least 1")
    if arguments.model.dtype not in dtypes:
        raise ValueError(f"unknown dtype {arguments.model.dtype!r}; known: {', '.join(dtypes)}")
    if not arguments.run.methods:
        raise ValueError("methods is empty: name at least one, such as dense")
