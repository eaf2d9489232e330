"""Chat messages: ids and patches equal those of transformers' `apply_chat_template`."""

import importlib

import numpy as np
import pytest
from families.qwen import change, write_processor_files
from helpers.tiny import tiny_config
from PIL import Image

from ivc_jax.families import find_family, parse_config
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.processor import Processor
from ivc_jax.model import load_processor

# What the released checkpoints' template does: a system turn of its own unless there is one, and a
# visual wherever a part says so by its type or by a key.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def image(*size):
    return {"type": "image", "image": picture(*size)}


def text(value):
    return {"type": "text", "text": value}


def user(*content):
    return {"role": "user", "content": list(content)}


CONVERSATIONS = {
    "system turn": [
        {"role": "system", "content": "Answer in one word."},
        user(image(45, 30), text("What is this?")),
    ],
    "two images": [
        user(text("Is "), image(20, 20, 1), text(" like "), image(16, 64, 2), text("?"))
    ],
    "earlier answers": [
        user(image(40, 24, 3), text("Locate the 7.\n")),
        {"role": "assistant", "content": [text("(2, 3)")]},
        user(text("And the 4?"), image(24, 24, 4)),
        {"role": "assistant", "content": "nowhere"},
        user(text("Sure?")),
    ],
    "text only": [user(text("No picture: "), text("7"))],
    "string content": [{"role": "user", "content": " plain words "}],
    "marks are text": [
        {"role": "system", "content": [text("<image> and <video> are tags of HTML.")]},
        user(text("What does the <image> tag do?"), image(33, 17, 5)),
    ],
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    write_processor_files(tmp_path)
    change(tmp_path / "tokenizer_config.json", chat_template=TEMPLATE)
    return tmp_path


@pytest.fixture
def processor(folder, family) -> Processor:
    config = parse_config(tiny_config(family=family))
    return load_processor(folder, config, find_family(family))


@pytest.fixture
def reference(folder, family):
    """Transformers' processor for images and text; its video half needs torchvision."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    module = importlib.import_module(f"transformers.models.{family}.processing_{family}")

    class WithoutVideo(getattr(module, FAMILIES[family])):
        def check_argument_for_proper_class(self, argument_name, argument):
            return None

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return WithoutVideo(images, tokenizer, chat_template=tokenizer.chat_template)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_and_patches_equal_those_of_transformers(processor, reference, name):
    messages = CONVERSATIONS[name]
    expected = reference.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="np", add_generation_prompt=True
    )
    batch = processor(messages)
    assert batch.tokens[0].tolist() == expected["input_ids"][0].tolist()
    assert len(batch.images) == len(expected.get("image_grid_thw", ()))
    for ours, grid in zip(batch.images, expected.get("image_grid_thw", ()), strict=True):
        assert ours.grid == tuple(grid)
    if batch.images:
        patches = np.concatenate([each.patches for each in batch.images])
        np.testing.assert_array_equal(patches, expected["pixel_values"])


def test_a_video_and_several_turns_equal_transformers(processor, reference):
    """Transformers cannot cut the video here: its text is expanded by hand, 2 slices of 2 x 3."""
    clip = [np.asarray(picture(24, 16, seed)) for seed in range(4)]
    for video in (clip, np.stack(clip)):
        messages = [
            user({"type": "video", "video": video}, text("What moves?")),
            {"role": "assistant", "content": "A 7."},
            user(text("Where?")),
        ]
        bare = [user({"type": "video"}, text("What moves?")), *messages[1:]]
        written = reference.apply_chat_template(bare, tokenize=False, add_generation_prompt=True)
        written = written.replace("<|video_pad|>", "<|video_pad|>" * 12)
        batch = processor(messages, fps=4)
        assert batch.tokens[0].tolist() == reference.tokenizer(written)["input_ids"]
        assert (batch.videos[0].grid, batch.videos[0].seconds) == ((2, 4, 6), 0.5)


def test_a_list_of_conversations_is_a_batch(processor, tmp_path):
    conversations = list(CONVERSATIONS.values())
    together = processor(prompts=conversations)
    alone = [processor(messages) for messages in conversations]
    assert [t.tolist() for t in together.tokens] == [b.tokens[0].tolist() for b in alone]
    assert len(together.images) == sum(len(batch.images) for batch in alone)
    # A single turn is what a prompt and its picture are; paths are opened.
    picture(45, 30).save(tmp_path / "a.png")
    turn = user({"type": "image", "path": str(tmp_path / "a.png")}, text("What?"))
    plain = processor(["What?"], [[picture(45, 30)]])
    assert processor([turn]).tokens[0].tolist() == plain.tokens[0].tolist()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user(text("<|image_pad|>"))], "message 0: its text holds <|image_pad|>, which stands"),
        ([user(text("a")), {"role": "user", "content": "<|video_pad|>"}], "message 1: its text"),
        ([{"role": "user"}], "message 0: write {'role': ..., 'content': ...}, got"),
        ([user({"type": "audio"})], "message 0: a part has type 'audio'; write"),
        ([user("a")], "message 0: a part has type None; write"),
        ([user({"type": "image"})], "message 0: write the image under one of the keys image, url"),
        ([user({"type": "text"})], "message 0: the part .* has no string under the key text"),
        ([{"role": "user", "content": None}], "message 0: its content is neither a string nor"),
        ([user({**image(9, 9), "max_pixels": 9})], "message 0: max_pixels is not read; leave it"),
        ([[user(text("a"))], "b"], "sample 1: a conversation is a list of messages, got 'b'"),
        ([user({"type": "image", "image": "gone.png"})], "sample 0, image 0: there is no file"),
    ],
)
def test_bad_messages_are_named(processor, messages, message):
    with pytest.raises(InputError, match=message.replace("|", r"\|")) as caught:
        processor(messages)
    assert "\n" not in str(caught.value)


def test_messages_bring_their_own_pictures(processor, folder):
    messages = CONVERSATIONS["system turn"]
    for more in ({"images": [[picture(9, 9)]]}, {"videos": [None]}, {"chat": False}):
        with pytest.raises(InputError, match="leave out images, videos and chat"):
            processor(messages, **more)
    change(folder / "tokenizer_config.json", chat_template=None)
    bare = load_processor(folder, processor.config, find_family(processor.config.family))
    with pytest.raises(InputError, match="has no chat template"):
        bare(messages)
