"""Whole-model agreement with transformers' Qwen2-VL: logits, not correlations.

Every case goes through the public calls on a tiny random checkpoint whose parameters are far from
their usual start values, in float32 at highest matmul precision.
"""

import jax
import numpy as np
import pytest

import ivc_jax

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGE, VIDEO, START, END = 262, 263, 259, 260  # ids of the tiny tokenizer's marks
PATCH_VALUES = 3 * 2 * 4 * 4


def prompt(draw, *parts):
    """Join text lengths (int) and visuals ("image" or "video", (t, h, w) in patches) into ids."""
    ids = []
    for part in parts:
        if isinstance(part, int):
            ids += draw.integers(0, 255, part).tolist()
        else:
            mark = IMAGE if part[0] == "image" else VIDEO
            ids += [START, *[mark] * (np.prod(part[1]) // 4), END]
    return ids


def hf_arrays(prompts, side="left", seed=0):
    """Build what an HF processor returns for prompts made of `prompt` parts."""
    draw = np.random.default_rng(seed)
    rows = [prompt(draw, *parts) for parts in prompts]
    width = max(map(len, rows))
    ids = np.full((len(rows), width), 7)
    mask = np.zeros((len(rows), width), np.int64)
    for row, (target, valid) in zip(rows, zip(ids, mask, strict=True), strict=True):
        where = slice(width - len(row), None) if side == "left" else slice(len(row))
        target[where], valid[where] = row, 1
    arrays = {"input_ids": ids, "attention_mask": mask}
    visuals = [part for parts in prompts for part in parts if not isinstance(part, int)]
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        grids = [size for name, size in visuals if name == kind]
        if grids:
            arrays[grid] = np.array(grids)
            count = int(arrays[grid].prod(axis=1).sum())
            arrays[pixels] = draw.standard_normal((count, PATCH_VALUES)).astype(np.float32)
    return arrays


def hf_call(arrays):
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    kinds = (tensors["input_ids"] == IMAGE) + 2 * (tensors["input_ids"] == VIDEO)
    return {**tensors, "mm_token_type_ids": kinds.int()}


CASES = {
    "text only": [(9,)],
    "one image": [(4, ("image", (1, 4, 6)), 5)],
    "two unequal images": [(2, ("image", (1, 4, 6)), 3, ("image", (1, 8, 4)), 5)],
    "ragged batch": [
        (3, ("image", (1, 6, 4)), 5),
        (11,),
        (1, ("image", (1, 4, 4)), 2, ("image", (1, 2, 8)), 9),
    ],
    "video": [(3, ("video", (3, 4, 6)), 4)],
    "image and video": [(2, ("image", (1, 4, 4)), 2, ("video", (2, 4, 2)), 6), (5,)],
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def pair(request, tiny_hf):
    path = tiny_hf(tied=request.param, generation="old" if request.param else "new")
    reference = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model, _ = ivc_jax.load(path, dtype="float32")
    return model, reference


@pytest.mark.parametrize("case", CASES)
def test_logits_and_32_greedy_tokens_equal_transformers(pair, case):
    model, reference = pair
    arrays = hf_arrays(CASES[case])
    with torch.no_grad():
        logits = reference(**hf_call(arrays)).logits[:, -1].numpy()
        sequences = reference.generate(
            **hf_call(arrays), max_new_tokens=32, do_sample=False, eos_token_id=None
        )
    with jax.default_matmul_precision("highest"):
        prompt = ivc_jax.prefill(model, ivc_jax.Batch.from_hf(**arrays))
        out = ivc_jax.decode(model, prompt, max_new_tokens=32)
    np.testing.assert_allclose(prompt.logits, logits, rtol=0, atol=1e-4)
    assert np.abs(logits).max() > 1  # the comparison is not between two zeros
    np.testing.assert_array_equal(out.tokens, sequences[:, arrays["input_ids"].shape[1] :])
    np.testing.assert_array_equal(out.lengths, 32)


def test_padding_side_does_not_matter(pair):
    model, _ = pair
    left, right = (hf_arrays(CASES["ragged batch"], side) for side in ("left", "right"))
    first, second = (ivc_jax.prefill(model, ivc_jax.Batch.from_hf(**a)) for a in (left, right))
    np.testing.assert_array_equal(first.logits, second.logits)
