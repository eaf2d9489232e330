"""Readers of answers without a model."""

from ivc_jax.evals.benchmarks.scorers.base import Reader
from ivc_jax.inputs.resize import SmartResize

RELEASED = SmartResize(min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28)


def read_as(family: str, pictures: SmartResize = RELEASED) -> Reader:
    """Read as a family does, by default within the bounds of the published Qwen2.5-VL."""
    return Reader(family, pictures)
