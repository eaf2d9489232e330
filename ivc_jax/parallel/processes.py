"""Several processes that run one program, and the shards that each of them has.

A batch is cut into equal shards along the `data` axis of the mesh. Each process loads the rows of
the shards that its devices hold and writes the records of those that it owns:

    mesh data=4, model=2      shard 0   shard 1 | shard 2   shard 3
    devices                    0  1      2  3   |  4  5      6  7
    process                         0           |       1
"""

import logging

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

_log = logging.getLogger(__name__)
# Seconds until the others notice that a process has died; the usual 100 are long to wait.
_HEARTBEAT = 30


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the processes of a run, before anything else asks JAX for devices.

    TPU VMs and the usual cluster managers find their peers by themselves; elsewhere all three
    arguments are needed.

    Args:
        coordinator: address:port of process 0, the same for all.
        num_processes: how many there are.
        process_id: of this one, from 0.

    Raises:
        ValueError: some of the arguments are missing, or the peers cannot be reached.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and None in given:
        raise ValueError("give all of --coordinator, --num-processes and --process-id, or none")
    if num_processes is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id must be in [0, {num_processes - 1}], got {process_id}")
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the processes of the run cannot be joined: {reason}") from None
    _log.info("process %d of %d", jax.process_index(), jax.process_count())


def num_shards(mesh: Mesh | None) -> int:
    """Return into how many shards a batch is cut."""
    return mesh.shape["data"] if mesh else 1


def local_shards(mesh: Mesh | None) -> tuple[int, ...]:
    """List the shards that devices of this process hold a part of."""
    if mesh is None:
        return (0,)
    me = jax.process_index()
    rows = enumerate(mesh.devices)
    return tuple(row for row, devices in rows if any(d.process_index == me for d in devices))


def owner(mesh: Mesh | None, shard: int) -> int:
    """Return the process that writes the records of a shard."""
    if mesh is None:
        return jax.process_index()
    return min(device.process_index for device in mesh.devices[shard])


def any_process(mask: np.ndarray) -> np.ndarray:
    """Return the element-wise "or" over all processes of a bool array, of one shape in all."""
    if jax.process_count() == 1:
        return mask
    return np.asarray(multihost_utils.process_allgather(mask)).any(axis=0)


def wait_for_all(name: str) -> None:
    """Wait until every process has come to this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
