"""Timing in turns, and what the machine could do at most, in both libraries.

A B A B A B     a slow second hits both; medians are compared
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch_side

Runs = Mapping[str, Callable[[], Any]]


def alternate(runs: Runs, repeats: int, label: str = "") -> dict[str, list[float]]:
    """Time functions in turns.

    Args:
        runs: each returns when its work is done, and was called before: nothing compiles.
        repeats: calls of each.
        label: what to print before the seconds.

    Returns:
        Seconds of each function's calls.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
            if label:
                print(f"{label}: {name} {seconds[name][-1]:.4g} s", flush=True)
    return seconds


def measure_machine(dtype: str, with_torch: bool, quick: bool = False) -> dict[str, float]:
    """Measure the peaks of this machine.

    Returns:
        `matrix_flops` and `read_bytes` a second: the best of both libraries, and of each one.
    """
    on_cpu = jax.default_backend() == "cpu"
    # On CPU a projection of the model's own feed-forward part; accelerators want more at once.
    rows, inner, columns = (2048, 1536, 8960) if on_cpu else (8192, 8192, 8192)
    size = 2**27 if on_cpu else 2**30  # numbers read: far more than any cache holds
    if quick:
        rows, inner, columns, size = 64, 64, 64, 2**16
    operations, read = 2 * rows * inner * columns, size * jnp.dtype(dtype).itemsize
    found = {}
    libraries = {"jax": _list_jax(rows, inner, columns, size, dtype)}
    if with_torch:
        libraries["torch"] = torch_side.list_peaks(rows, inner, columns, size, dtype)
    for number, (name, work) in enumerate((("matrix_flops", operations), ("read_bytes", read))):
        runs = {
            f"{library}/{way}": run
            for library, kinds in libraries.items()
            for way, run in kinds[number].items()
        }
        for run in runs.values():
            run()  # compiles
        seconds = alternate(runs, 5)
        rates = {run: work / min(taken) for run, taken in seconds.items()}
        for library in libraries:
            found[f"{name}_{library}"] = max(
                rate for run, rate in rates.items() if run.startswith(f"{library}/")
            )
        found[name] = max(rates.values())
    return found


def _list_jax(rows: int, inner: int, columns: int, size: int, dtype: str) -> tuple[Runs, Runs]:
    """Return the ways to multiply matrices, and those to read memory."""
    x = jnp.ones((rows, inner), dtype)
    weight = jnp.ones((inner, columns), dtype)
    table = jnp.ones((size // 2048, 2048), dtype)  # [out, in], as a projection lies
    vector = jnp.ones(2048, dtype)
    multiply = jax.jit(jnp.matmul)
    apply = jax.jit(lambda w, v: jnp.einsum("oi,i->o", w, v))
    add = jax.jit(jnp.sum)
    return (
        {"product": lambda: jax.block_until_ready(multiply(x, weight))},
        {
            "matrix by vector": lambda: jax.block_until_ready(apply(table, vector)),
            "sum": lambda: jax.block_until_ready(add(table)),
        },
    )


def measure_share(work: float, seconds: list[float], peak: float) -> float:
    """Return the share of a peak rate that work done in these seconds (median) reaches."""
    return work / statistics.median(seconds) / peak
