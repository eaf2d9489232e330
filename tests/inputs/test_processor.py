"""Ids and patches equal those of Hugging Face's chat template and processor."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from families.qwen import change, write_processor_files
from helpers.tiny import tiny_config
from PIL import Image

from ivc_jax.families import QWEN2_VL, parse_config
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.processor import Processor
from ivc_jax.inputs.prompt import ChatTemplate
from ivc_jax.inputs.tokenizer import Tokenizer
from ivc_jax.model import load_processor

CONFIG = parse_config(tiny_config())
IMAGE, VIDEO = CONFIG.image_token_id, CONFIG.video_token_id
START, END = CONFIG.vision_start_id, CONFIG.vision_end_id


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return pixels.astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_processor_files(tmp_path)
    return tmp_path


@pytest.fixture
def processor(folder: Path) -> Processor:
    return load_processor(folder, CONFIG, QWEN2_VL)


def hf_processor(folder: Path):
    """Load HF's processor for images and text (its video half cannot load without torchvision)."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

    class WithoutVideo(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, argument_name, argument):
            return None

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return WithoutVideo(images, tokenizer, chat_template=tokenizer.chat_template)


def test_chat_prompts_equal_hf(folder, processor):
    reference = hf_processor(folder)
    images = [[noise(30, 45), noise(20, 20, 1)], [], [noise(64, 16, 2)]]
    batch = processor(
        ["Is <image> the same as <image>?\n", "No picture: 7", "\nLocate the 7."], images
    )
    text = lambda value: {"type": "text", "text": value}  # noqa: E731
    contents = [
        [text("Is "), {"type": "image"}, text(" the same as "), {"type": "image"}, text("?\n")],
        [text("No picture: 7")],
        [{"type": "image"}, text("\nLocate the 7.")],
    ]
    rendered = [
        reference.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        for content in contents
    ]
    flat = [Image.fromarray(image) for row in images for image in row]
    expected = reference(images=flat, text=rendered, padding=True, return_tensors="np")
    for row, tokens in enumerate(batch.tokens):
        valid = expected["attention_mask"][row].astype(bool)
        assert tokens.dtype == np.int32
        assert tokens.tolist() == expected["input_ids"][row][valid].tolist()
    patches = np.concatenate([image.patches for image in batch.images])
    np.testing.assert_array_equal(patches, expected["pixel_values"])
    assert [image.grid for image in batch.images] == [
        tuple(grid) for grid in expected["image_grid_thw"].tolist()
    ]


def test_raw_prompts_equal_hf(folder, processor):
    reference = hf_processor(folder)
    image = noise(24, 40)
    marked = "<|vision_start|><|image_pad|><|vision_end|>What is it?"
    expected = reference(images=[Image.fromarray(image)], text=[marked], return_tensors="np")
    for prompt in (marked, "<image>What is it?", "What is it?"):
        batch = processor([prompt], [[image]], chat=False)
        assert batch.tokens[0].tolist() == expected["input_ids"][0].tolist()


def test_a_long_template_equals_hf(folder):
    source = (
        "{%- set ns = namespace(n=0) -%}\n"
        "{% for message in messages %}\n"
        "    {% if message.role == 'none' %}{{ raise_exception('no') }}{% continue %}{% endif %}\n"
        "{{ bos_token or 'X' }}{{ eos_token }}{{ message | tojson }}{% set ns.n = ns.n + 1 %}\n"
        "{% endfor %}\n"
        "{{ ns.n }}{% if tools %}tools{% endif %}{% if add_generation_prompt %}go{% endif %}\n"
    )
    change(folder / "tokenizer_config.json", chat_template=source)
    template = ChatTemplate.from_pretrained(folder, {"eos_token": "<|im_end|>"})
    messages = [{"role": "user", "content": "<é>'\""}]
    found = template.render(messages)
    assert found == 'X<|im_end|>{"role": "user", "content": "<é>\'\\""}1go'
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for generate in (True, False):
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate
        )
        assert template.render(messages, add_generation_prompt=generate) == expected


def test_templates_are_found_where_hf_finds_them(folder):
    render = lambda: ChatTemplate.from_pretrained(folder, {}).render([])  # noqa: E731
    named = [{"name": "other", "template": "O"}, {"name": "default", "template": "D"}]
    change(folder / "tokenizer_config.json", chat_template=named)
    assert render() == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert render() == "J"
    (folder / "chat_template.json").write_text('{"chat_template": "N"}')
    assert render() == "N"
    (folder / "processor_config.json").write_text('{"processor_class": "P"}')
    assert render() == "N"
    for template in ("P", {"other": "O", "default": "P"}):
        (folder / "processor_config.json").write_text(json.dumps({"chat_template": template}))
        assert render() == "P"
    change(folder / "processor_config.json", chat_template={"a": "A", "b": "B"})
    with pytest.raises(InputError, match="the chat templates 'a', 'b', none of them 'default'"):
        render()


@pytest.mark.parametrize("elsewhere", [None, "tokenizer_config.json", "chat_template.json"])
def test_the_template_of_processor_config_equals_hf(folder, elsewhere):
    processing = pytest.importorskip("transformers").processing_utils
    source = "{{ 'SYS ' }}<|image_pad|>{{ messages[0].content[1].text }}"
    change(folder / "tokenizer_config.json", chat_template=None)
    (folder / "processor_config.json").write_text(json.dumps({"chat_template": source}))
    if elsewhere:
        content = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / elsewhere).write_text(json.dumps({**content, "chat_template": "other"}))
    found = load_processor(folder, CONFIG, QWEN2_VL)(["hi"], [[noise(16, 16)]])
    settings, _ = processing.ProcessorMixin.get_processor_dict(folder)
    assert settings["chat_template"] == source
    encode = Tokenizer.from_pretrained(folder).encode
    assert found.tokens[0].tolist() == [*encode("SYS "), *[IMAGE] * 4, *encode("hi")]


def test_bounds_replace_those_of_the_files(folder, processor):
    # files: 16 * 16 to 64 * 64, cells of 8 x 8: 32 x 32 takes 4 x 4 of them
    def count(bounded):
        return bounded.measure("?", [(32, 32)]).visual

    assert count(processor) == 16
    assert count(processor.bound(None, 16 * 16)) == 4
    assert count(processor.bound(48 * 48, None)) == 36
    narrow = processor.bound(8 * 8, 16 * 16)
    assert narrow.videos == narrow.images  # no settings of their own
    assert len(narrow(["?"], [[noise(32, 32)]]).images[0].patches) == 4 * 4
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    videos = settings | {"max_pixels": 32 * 32}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    own = load_processor(folder, CONFIG, QWEN2_VL)
    assert own.bound(None, 16 * 16).videos.max_pixels == 32 * 32
    with pytest.raises(InputError, match=r"min_pixels 5000 must be in 1\.\.max_pixels = 4096"):
        processor.bound(5000, None)
    fixed = dataclasses.replace(processor.images, do_resize=False)
    with pytest.raises(InputError, match="leave out min_pixels and max_pixels"):
        fixed.bound(None, 256)
    assert fixed.bound(None, None) is fixed


def test_placeholders_repeat_for_each_visual_token(processor):
    batch = processor(
        ["a<video>b<image>c"], [[noise(16, 24)]], [[np.stack([noise(16, 16)] * 4)]], chat=False
    )
    letters = {letter: processor.writer.tokenizer.number(letter) for letter in "abc"}
    assert batch.tokens[0].tolist() == [
        *(letters["a"], START, *[VIDEO] * 8, END),
        *(letters["b"], START, *[IMAGE] * 6, END, letters["c"]),
    ]
    assert batch.videos[0].grid == (2, 4, 4)


def test_a_family_may_write_a_visual_and_its_own_template(folder):
    """As InternVL does: images between marks of their own, files without a template."""
    family = dataclasses.replace(
        QWEN2_VL,
        write_visual=lambda taken, mark: f"<{taken.rows}|{mark * taken.count}>",
        chat_template="A{% for part in messages[0].content %}{% if part.text %}{{ part.text }}"
        "{% else %}<|image_pad|>{% endif %}{% endfor %}",
    )
    change(folder / "tokenizer_config.json", chat_template=None)
    written = load_processor(folder, CONFIG, family)
    batch = written(["b"], [[noise(16, 24)]])
    plain = written.writer.tokenizer.encode
    assert batch.tokens[0].tolist() == [*plain("A<1|"), *[IMAGE] * 6, *plain(">b")]
    change(folder / "tokenizer_config.json", chat_template="{{ 'B' }}<|image_pad|>")
    assert (
        load_processor(folder, CONFIG, family)(["b"], [[noise(16, 24)]]).tokens[0][0]
        == plain("B")[0]
    )


def test_visuals_without_marks_come_first(processor):
    image, video = [noise(16, 16)], [[noise(16, 16)] * 2]
    unmarked = processor(["Q"], [image], [video])
    marked = processor(["<image><video>Q"], [image], [video])
    assert unmarked.tokens[0].tolist() == marked.tokens[0].tolist()
    half = processor(["Q <video>"], [image], [video])
    assert (
        half.tokens[0].tolist()
        == processor(["<image>Q <video>"], [image], [video]).tokens[0].tolist()
    )


def test_frame_rates_become_seconds_between_slices(processor):
    clip = [noise(16, 16)] * 4
    assert processor(["Q"], videos=[[clip]]).videos[0].seconds == 1.0
    assert processor(["Q"], videos=[[clip]], fps=8).videos[0].seconds == 0.25
    each = processor(["Q", "R"], videos=[[clip], [clip, clip]], fps=[[4.0], [1, 0.5]])
    assert [video.seconds for video in each.videos] == [0.5, 2.0, 4.0]


def test_decode_stops_at_the_length_and_skips_marks(processor):
    number = processor.writer.tokenizer.number
    assert processor.stop_ids == (number("<|im_end|>"), number("<|endoftext|>"))
    rows = np.array([[number("a"), number("<|im_end|>"), number("b")], [number("c")] * 3])
    assert processor.decode(rows, np.array([2, 1])) == ["a", "c"]
    assert processor.decode(rows, np.array([3, 0])) == ["ab", ""]


def test_settings_are_read_from_every_file(folder):
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"patch_size": 4, "size": {"shortest_edge": 300, "longest_edge": 600}})
    )
    read = load_processor(folder, CONFIG, QWEN2_VL)
    assert (read.images.min_pixels, read.images.max_pixels) == (256, 4096)
    assert (read.videos.min_pixels, read.videos.max_pixels) == (300, 600)
    nested = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 128}}
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": nested, "video_processor": {**nested, "min_pixels": 100}})
    )
    read = load_processor(folder, CONFIG, QWEN2_VL)
    assert (read.images.min_pixels, read.images.max_pixels) == (64, 128)
    assert (read.videos.min_pixels, read.videos.max_pixels) == (100, 128)


ONE = noise(16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "one"}, "prompts must be a list of strings"),
        ({"prompts": ["a", "b"], "images": [[ONE]]}, "1 lists of images for 2 prompts; pass"),
        ({"prompts": ["a"], "images": [ONE]}, "sample 0: its images are a ndarray, not a list"),
        ({"prompts": ["a"], "images": ["a.png"]}, "sample 0: its images are a str, not a list"),
        ({"prompts": ["a"], "images": ONE}, "images must be a list with a list for each sample"),
        (
            {"prompts": ["a", "<image>"], "images": [None, []]},
            "sample 1: prompt has 1 <image> marks for 0 images",
        ),
        (
            {"prompts": ["<image><image><image>"], "images": [[ONE] * 2]},
            "sample 0: prompt has 3 <image> marks for 2 images; write one mark",
        ),
        ({"prompts": ["<|image_pad|>"]}, "sample 0: prompt has 1 <image> marks for 0 images"),
        ({"prompts": ["a"], "videos": [[[ONE]]], "fps": 0}, r"sample 0: fps \[0\] must be a pos"),
        ({"prompts": ["a"], "videos": [[[ONE]]], "fps": [[]]}, r"sample 0: fps \[\] must be a pos"),
        ({"prompts": ["<video>"]}, "sample 0: prompt has 1 <video> marks for 0 videos"),
        (
            {"prompts": ["a", "b"], "images": [None, [ONE, "missing.png"]]},
            "sample 1, image 1: there is no file missing.png",
        ),
        ({"prompts": ["a"], "videos": [[[ONE, None]]]}, "sample 0, video 0, frame 1 is a NoneType"),
        ({"prompts": [""], "chat": False}, "sample 0 has no tokens; give it a prompt"),
    ],
)
def test_bad_calls_are_named(processor, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        processor(**arguments)
    assert "\n" not in str(caught.value)


def test_templates_that_fail_are_named(folder):
    def load(source):
        change(folder / "tokenizer_config.json", chat_template=source)
        return load_processor(folder, CONFIG, QWEN2_VL)

    with pytest.raises(InputError, match="no chat template; add one or use chat=False"):
        load(None)(["a"])
    assert load(None)(["a"], chat=False).tokens[0].size == 1
    with pytest.raises(InputError, match=r"^chat template: .*chat=False"):
        load("{% if %}")
    with pytest.raises(InputError, match="chat template: never"):
        load("{{ raise_exception('never') }}")(["a"])
    with pytest.raises(InputError, match="chat template: "):
        load("{{ 'a' + messages[0]['content'] }}")(["a"], [[ONE]])
    assert load("{{ 'a' + messages[0]['content'] }}")(["b"]).tokens[0].size == 2
    with pytest.raises(InputError, match="sample 0: the rendered prompt has 0 image placeholders"):
        load("{{ messages | length }}")(["a"], [[ONE]])


def test_missing_and_foreign_files_are_named(folder):
    load = lambda: load_processor(folder, CONFIG, QWEN2_VL)  # noqa: E731
    change(folder / "preprocessor_config.json", patch_size=14)
    with pytest.raises(InputError, match=r"patch_size 14 of the preprocessor differs .* model's 4"):
        load()
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config.json is not valid JSON"):
        load()
    (folder / "preprocessor_config.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        load()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config.json; copy it"):
        load()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="damaged tokenizer"):
        load()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"neither tokenizer.json nor vocab.json and merges.txt"):
        load()
