"""Room for compiled programs: each takes hundreds of memory maps, and Linux allows few a process.

XLA ends the process where there is none left ("Unable to allocate section memory").
"""

import pathlib

_LIMIT, _USED = pathlib.Path("/proc/sys/vm/max_map_count"), pathlib.Path("/proc/self/maps")
_FULL = 0.8  # what is left is for the programs that compile at a time: up to a thousand maps each


def find_limit() -> int | None:
    """Return how many maps this process may have; None where nobody says."""
    try:
        return int(_LIMIT.read_text())
    except OSError:
        return None


def is_nearly_full() -> bool:
    """Tell whether this process has used most of the maps that it may have."""
    limit = find_limit()
    if limit is None:
        return False
    return _USED.read_bytes().count(b"\n") > _FULL * limit
