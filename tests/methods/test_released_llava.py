"""IVC-Prune on LLaVA against the released method, walked by hand on a transformers model."""

import numpy as np
import pytest
from families.llava import ID, TOKENS, hf_arrays

import ivc_jax

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from helpers import parity, released, released_llava

STEPS = 24


@pytest.fixture(scope="module")
def loaded(tiny_hf, load_torch):
    path = tiny_hf(family="llava", num_hidden_layers=6, num_key_value_heads=2)
    return ivc_jax.load(path, dtype="float32")[0], load_torch(path)


@pytest.mark.parametrize(("before", "behind", "whole"), [(4, 9, 0), (34, 16, 1)])
@pytest.mark.parametrize("layer", [2, 4])
def test_kept_sets_logits_and_greedy_tokens_equal_the_released_method(
    loaded, layer, before, behind, whole
):
    model, reference = loaded
    arrays = hf_arrays([(before, "image", behind)], seed=before + layer)
    ids = arrays["input_ids"][0]
    span = released.Span(int(np.flatnonzero(ids == ID["<image>"])[0]), TOKENS)
    tensors = parity.to_tensors(arrays)
    with torch.no_grad():
        walk = released_llava.ReleasedLlava(reference, whole)
        kept, logits, tokens = walk.generate(tensors, layer, span, STEPS)
        own = reference(**tensors).logits[0, -1]
        dense, _ = walk.generate(tensors, None, span, 1)[1:]
    np.testing.assert_allclose(dense, own, rtol=0, atol=1e-4)
    method = f"ivc:layer={layer},whole_kv_layers={whole}"
    prompt = parity.check_answers(model, arrays, logits[None], [tokens], method)
    np.testing.assert_array_equal(prompt.kept[0], kept)
    assert len(kept) < len(ids) - TOKENS // 2
