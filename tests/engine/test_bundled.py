"""The bundled checkpoint is an ordinary Hugging Face one and answers the same in both libraries."""

import jax
import numpy as np
import pytest

import ivc_jax
from digit_scenes import CHECKPOINT, digits
from digit_scenes.scenes import render

QUESTIONS = ["Locate the red 7.", "How many digits?", "What colour is the 3?", "Is there a blue 2?"]


def test_bundled_checkpoint_answers_as_in_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model, processor = ivc_jax.load(CHECKPOINT, dtype="float32")
    draw, source = np.random.default_rng(3), digits.load("test")
    images = [[render(draw, source, count)[1]] for count in (3, 5, 7, 9)]
    batch = processor(QUESTIONS, images)
    with jax.default_matmul_precision("highest"):
        prompt = ivc_jax.prefill(model, batch)
        out = ivc_jax.decode(model, prompt, 12, processor.stop_ids)
    for row, (tokens, image) in enumerate(zip(batch.tokens, batch.images, strict=True)):
        ids = torch.from_numpy(tokens[None].astype(np.int64))
        arguments = {
            "input_ids": ids,
            "pixel_values": torch.from_numpy(image.patches),
            "image_grid_thw": torch.tensor([image.grid]),
            "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        }
        with torch.no_grad():
            logits = reference(**arguments).logits[0, -1].numpy()
            answer = reference.generate(**arguments, max_new_tokens=12, do_sample=False)
        np.testing.assert_allclose(prompt.logits[row], logits, rtol=0, atol=1e-4)
        length = int(out.lengths[row])
        np.testing.assert_array_equal(out.tokens[row, :length], answer[0, len(tokens) :])
