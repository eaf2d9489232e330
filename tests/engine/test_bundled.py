"""The bundled checkpoint is an ordinary Hugging Face one and answers the same in both libraries."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open

import ivc_jax
from digit_scenes import CHECKPOINT, digits, export, tokenizer, tower, train
from digit_scenes.questions import TASKS, ask
from digit_scenes.scenes import render
from digit_scenes.setting import SETTINGS
from ivc_jax.model import read_config
from ivc_jax.nn import decoder

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


def test_bundled_checkpoint_is_what_its_setting_trains():
    setting = SETTINGS["bundled"]
    config = train.make_config(setting)
    assert read_config(CHECKPOINT) == config
    key = jax.random.key(0)
    params = {"decoder": decoder.init_params(config, key)["decoder"]}
    params["vision"] = tower.init_params(config.vision, key)["vision"]
    wanted = {name: array.shape for name, array in export.list_tensors(config, params).items()}
    with safe_open(CHECKPOINT / "model.safetensors", "numpy") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert stored == wanted
    words = json.loads(tokenizer.build(setting.grid).to_str())
    assert json.loads((CHECKPOINT / "tokenizer.json").read_text()) == words


def test_bundled_checkpoint_answers_questions_of_every_task():
    model, processor = ivc_jax.load(CHECKPOINT, dtype="float32")
    random, source = np.random.default_rng(4), digits.load("test")
    asked = []
    while len(asked) < 24:
        scene, pixels = render(random, source, 5)
        asked += [(q, pixels) for task in TASKS if (q := ask(random, scene, task)) is not None]
    batch = processor([q.text for q, _ in asked], [[pixels] for _, pixels in asked])
    out = ivc_jax.generate(model, batch, max_new_tokens=8)
    answers = processor.decode(out.tokens, out.lengths)
    right = sum(text == q.answer for (q, _), text in zip(asked, answers, strict=True))
    assert right >= 0.9 * len(asked)
