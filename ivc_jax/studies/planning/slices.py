"""TPU slices that the compiler knows without having one: devices, sizes, peak rates."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device of a generation has. A v4 or v5p chip is one device with two cores.

    Attributes:
        flops: bfloat16 operations a second, from Google's page on the generation.
        flops_per_cycle: of its matrix units; with `flops` it gives the clock rate.
        hbm_bytes: that the compiler lets a program use; names its limit when one is too large.
        hbm_rate: bytes a second, from the same page.
        options: how the compiler is asked for the usual configuration.
    """

    flops: float
    flops_per_cycle: int
    hbm_bytes: int
    hbm_rate: float
    options: tuple[tuple[str, str], ...] = ()

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.flops / self.flops_per_cycle


def _from_gib(count: float) -> int:
    return int(count * 2**30)


# Matrix units: four of 128 x 128 a core; v6e has two of 256 x 256 that run twice a cycle.
CHIPS: dict[str, Chip] = {
    "v4": Chip(275e12, 2**18, _from_gib(30.75), 1.2288e12, (("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 2**17, _from_gib(15.75), 8.19e11),
    "v5p": Chip(459e12, 2**18, _from_gib(95.73), 2.765e12),
    "v6e": Chip(918e12, 2**19, _from_gib(31.24), 1.64e12),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of TPU devices, such as v5e:2x4.

    Attributes:
        name: as it was asked for.
        chip: what each device has.
        devices: for compiling only.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]


def prepare_environment() -> None:
    """Make JAX start on the CPU and libtpu without a TPU; before JAX asks for devices."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Compiling takes no TPU away from anybody.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Whatever they say: without them libtpu looks for the machine's own and warns at length.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    import jax

    jax.config.update("jax_platforms", "cpu")  # JAX may have read the variable already


def find_slice(name: str) -> Slice:
    """Ask the compiler for a slice by name, generation:AxB or generation:AxBxC.

    Raises:
        ValueError: libtpu is missing or busy, or there is no such slice.
    """
    found = re.fullmatch(r"(\w+):\d+(x\d+){1,2}", name)
    if not found or found[1] not in CHIPS:
        known = ", ".join(CHIPS)
        raise ValueError(
            f"topology {name!r} is not generation:AxB such as v5e:2x4 or v5p:2x2x1; "
            f"generations: {known}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("plans need the TPU compiler: pip install libtpu")
    import jax
    from jax.experimental import topologies

    chip = CHIPS[found[1]]
    try:
        topology = topologies.get_topology_desc(name, "tpu", **dict(chip.options))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"topology {name}: {reason}") from None
    return Slice(name, chip, tuple(topology.devices))


def read_libtpu_version() -> str:
    """Return the version of the TPU compiler that is installed."""
    return importlib.metadata.version("libtpu")
