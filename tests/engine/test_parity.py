"""Whole-model agreement with transformers, the Qwen families: logits, not correlations.

Every case goes through the public calls on a tiny random checkpoint whose parameters are far from
their usual start values, in float32 at highest matmul precision.
"""

import numpy as np
import pytest
from helpers.prompts import CASES, IMAGE, VIDEO, hf_arrays

import ivc_jax
from ivc_jax.inputs.bucket import Buckets, collate

pytest.importorskip("torch")
from helpers import parity

CHECKPOINTS = {
    "untied": {"tied": False, "generation": "new"},
    "tied": {"tied": True, "generation": "old"},
    "qwen2_5_vl": {"tied": False, "generation": "old", "family": "qwen2_5_vl"},
    "qwen3_vl": {"tied": False, "generation": "old", "family": "qwen3_vl"},
}
# Cases of as many prompts share a program.
BUCKET = Buckets(text=(24,), visual=(18,), rows=(3,), images=(2,))
SECONDS = {"qwen2_5_vl": 0.7}  # 2.8 time positions a frame, rounded down


def hf_call(arrays):
    tensors = parity.to_tensors(arrays)
    kinds = (tensors["input_ids"] == IMAGE) + 2 * (tensors["input_ids"] == VIDEO)
    return {**tensors, "mm_token_type_ids": kinds.int()}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def pair(request, tiny_hf, load_torch):
    path = tiny_hf(**CHECKPOINTS[request.param])
    model, _ = ivc_jax.load(path, dtype="float32")
    return model, load_torch(path)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_32_greedy_tokens_equal_transformers(pair, case):
    model, reference = pair
    stamped = model.config.vision.timestamps
    arrays = hf_arrays(CASES[case], seconds=SECONDS.get(model.config.family), stamped=stamped)
    wanted = parity.ask(reference, hf_call(arrays))
    parity.check_answers(model, arrays, *wanted, buckets=BUCKET)


def test_padding_side_does_not_matter(pair, highest_precision):
    model, _ = pair
    left, right = (hf_arrays(CASES["ragged batch"], side) for side in ("left", "right"))
    batches = (ivc_jax.Batch.from_hf(**arrays) for arrays in (left, right))
    first, second = (ivc_jax.prefill(model, collate(b, model.config, BUCKET)) for b in batches)
    np.testing.assert_array_equal(first.logits, second.logits)
