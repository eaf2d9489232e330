"""Devices of a run: their processes, their mesh and their name."""

import jax
from jax.sharding import Mesh
from rich.console import Console

from ivc_jax.commands.settings import RunConfig, SettingsError
from ivc_jax.parallel.mesh import make_mesh, parse_mesh
from ivc_jax.parallel.processes import initialize


def join(
    console: Console,
    distributed: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> Console:
    """Join the processes of a run, if there are several; all but the first fall silent.

    Raises:
        ValueError: see `ivc_jax.parallel.processes.initialize`.
    """
    if not distributed and (coordinator, num_processes, process_id) == (None, None, None):
        return console
    initialize(coordinator, num_processes, process_id)
    return Console(quiet=True) if jax.process_index() else console  # one process speaks for all


def choose_mesh(settings: RunConfig) -> Mesh | None:
    """Arrange the devices as the settings say; several processes need a mesh over all."""
    if settings.mesh is None:
        return make_mesh(data=jax.device_count()) if jax.process_count() > 1 else None
    sizes = parse_mesh(settings.mesh)
    if jax.process_count() > 1 and sizes["data"] * sizes["model"] != jax.device_count():
        raise SettingsError(
            f"mesh {settings.mesh!r} must use all {jax.device_count()} devices of the"
            f" {jax.process_count()} processes"
        )
    return make_mesh(**sizes)


def name_devices() -> str:
    """Say how many devices of which kind this run has."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
