"""IVC-Prune on LLaVA against the released method, walked by hand on a transformers model."""

import jax
import numpy as np
import pytest
from families.llava import ID, TOKENS, hf_arrays

import ivc_jax

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
released = pytest.importorskip("helpers.released")
released_llava = pytest.importorskip("helpers.released_llava")

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
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        walk = released_llava.ReleasedLlava(reference, whole)
        kept, logits, tokens = walk.generate(tensors, layer, span, STEPS)
        own = reference(**tensors).logits[0, -1]
        dense, _ = walk.generate(tensors, None, span, 1)[1:]
    np.testing.assert_allclose(dense, own, rtol=0, atol=1e-4)
    with jax.default_matmul_precision("highest"):
        method = f"ivc:layer={layer},whole_kv_layers={whole}"
        prompt = ivc_jax.prefill(model, ivc_jax.Batch.from_hf(**arrays), method)
        out = ivc_jax.decode(model, prompt, STEPS, ())
    np.testing.assert_array_equal(prompt.kept[0], kept)
    assert len(kept) < len(ids) - TOKENS // 2
    np.testing.assert_allclose(prompt.logits[0], logits, rtol=0, atol=1e-4)
    assert out.tokens[0].tolist() == tokens
