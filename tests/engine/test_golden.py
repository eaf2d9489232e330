"""Logits recorded from transformers 5.23, for machines without torch.

`tests/golden/logits.npz` holds one array a case: float32 [B, vocab], the last token's logits of
the untied tiny checkpoint, computed as in `test_parity.py`. Cases of other families than Qwen2-VL
carry their name.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.prompts import CASES, hf_arrays

import ivc_jax

GOLDEN = Path(__file__).parents[1] / "golden" / "logits.npz"


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(), dtype="float32")[0]


@pytest.mark.parametrize("case", ["ragged batch", "video"])
def test_windows_and_time_equal_the_recorded_ones(tiny_hf, case):
    model, _ = ivc_jax.load(tiny_hf(family="qwen2_5_vl"), dtype="float32")
    with jax.default_matmul_precision("highest"):
        batch = ivc_jax.Batch.from_hf(**hf_arrays(CASES[case], seconds=0.7))
        logits = ivc_jax.prefill(model, batch).logits
    recorded = np.load(GOLDEN)[f"qwen2_5_vl {case}"]
    np.testing.assert_allclose(logits, recorded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["ragged batch", "image and video"])
def test_logits_equal_the_recorded_ones(model, case):
    with jax.default_matmul_precision("highest"):
        logits = ivc_jax.prefill(model, ivc_jax.Batch.from_hf(**hf_arrays(CASES[case]))).logits
    np.testing.assert_allclose(logits, np.load(GOLDEN)[case], rtol=0, atol=1e-4)
