"""IVC-Prune against the released method, walked by hand on a transformers model."""

import numpy as np
import pytest
from helpers.batches import BUCKET, PROMPTS, batch_of
from helpers.prompts import END, IMAGE, START, VIDEO, hf_arrays
from helpers.tiny import QWEN

import ivc_jax
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.methods import IVCPrune

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from helpers import parity, released

STEPS = 16
# Merged grids of 4 x 6 and 7 x 5 tokens, neither a multiple of Qwen2.5-VL's windows in the tests.
GRIDS = [(1, 8, 12), (1, 14, 10)]


def tensors(arrays):
    found = parity.to_tensors(arrays)
    kinds = (found["input_ids"] == IMAGE) + 2 * (found["input_ids"] == VIDEO)
    return {**found, "mm_token_type_ids": kinds.int()}


@pytest.fixture(scope="module", params=QWEN)
def pair(request, tiny_hf, load_torch):
    path = tiny_hf(family=request.param, num_hidden_layers=6)
    return ivc_jax.load(path, dtype="float32")[0], released.Released(load_torch(path))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("layer", [None, 2, 4])
def test_kept_sets_logits_and_greedy_tokens_equal_the_released_method(pair, grid, layer):
    model, reference = pair
    arrays = hf_arrays([(6, ("image", grid), 9)], seed=sum(grid))
    span = released.image_span(arrays["input_ids"][0], START, END)
    with torch.no_grad():
        kept, logits, tokens = reference.generate(tensors(arrays), layer, span, STEPS)
        if layer is None:  # the walk by hand is the model itself
            own = reference.model(**tensors(arrays)).logits[0, -1]
            np.testing.assert_allclose(logits, own, rtol=0, atol=1e-4)
    method = "dense" if layer is None else IVCPrune(layer=layer)
    buckets = Buckets(visual=(36,), patches=(192,))  # a program for both grids
    prompt = parity.check_answers(model, arrays, logits[None], [tokens], method, buckets)
    # Exact ties of V and U, transposed cells, go to the lowest index on both sides.
    np.testing.assert_array_equal(prompt.kept[0], kept)
    visual = span.length if layer is None else round(0.5 * span.length)
    assert len(kept) == 17 + visual


def test_a_mixed_batch_equals_its_prompts_alone(pair):
    model, _ = pair
    together, *batches = batch_of(*range(len(PROMPTS))), *map(batch_of, range(len(PROMPTS)))
    method = IVCPrune(layer=4)
    joint = ivc_jax.generate(model, collate(together, model.config, BUCKET), method, STEPS, ())
    for row, batch in enumerate(batches):
        alone = ivc_jax.generate(model, collate(batch, model.config, BUCKET), method, STEPS, ())
        np.testing.assert_array_equal(joint.kept[row], alone.kept[0])
        np.testing.assert_array_equal(joint.tokens[row], alone.tokens[0])


def test_the_first_caches_may_stay_whole(pair):
    model, _ = pair
    batch = collate(
        ivc_jax.Batch.from_hf(**hf_arrays([(6, ("image", (1, 6, 8)), 9)])), model.config, BUCKET
    )
    full, some = (
        ivc_jax.prefill(model, batch, IVCPrune(layer=4, whole_kv_layers=count)) for count in (0, 1)
    )
    np.testing.assert_array_equal(full.logits, some.logits)
    short = full.cache[0].keys.shape[2]
    assert short < 24 + 32
    by_layer = [span for span in some.cache for _ in span.keys]
    assert [span.keys.shape[2] for span in by_layer] == [24 + 32] + 5 * [short]
    assert [int(span.lengths[0]) for span in by_layer] == [17 + 12] + 5 * [17 + 6]
    keys = np.concatenate([span.keys for span in full.cache])  # [L, B, S, G, C]
    np.testing.assert_array_equal(keys[1:], np.concatenate([s.keys for s in some.cache[1:]]))
