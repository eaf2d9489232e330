"""The README's example of a method runs as printed."""

import re
from pathlib import Path

import numpy as np
import pytest
from prompts import hf_arrays

import ivc_jax
from ivc_jax.methods import METHODS

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture
def example():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = [block for block in blocks if "class" in block]
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    yield METHODS["long_values"]
    METHODS.pop("long_values")


def test_method_example_keeps_the_longest_values(example, tiny_hf):
    model, _ = ivc_jax.load(tiny_hf(), dtype="float32")
    arrays = hf_arrays([(3, ("image", (1, 6, 8)), 5)])
    batch = ivc_jax.Batch.from_hf(**arrays)
    kept = ivc_jax.prefill(model, batch, ivc_jax.methods.parse("long_values:keep_ratio=0.25"))
    values = ivc_jax.prefill(model, batch).cache[0].values[1, 0, 4:16]  # block 1, the image's slots
    length = np.linalg.norm(values, axis=(1, 2))
    expected = 4 + np.sort(np.argsort(-length, kind="stable")[:3])
    np.testing.assert_array_equal(kept.kept[0], [*range(4), *expected, *range(16, 22)])
