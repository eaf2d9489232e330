"""Pictures in tiles and the prompts around them, beside transformers' processors."""

import json

import numpy as np
import pytest
from families.internvl import ID, SIDE, TOKENS, hf_arrays
from helpers.tiny import tiny_config
from PIL import Image

import ivc_jax
from ivc_jax.config import ConfigError
from ivc_jax.families import parse_config
from ivc_jax.inputs.batch import Batch, InputError
from ivc_jax.inputs.layout import arrange
from ivc_jax.inputs.tiles import Tiles
from ivc_jax.methods.base import MethodError
from ivc_jax.model import find_family, load_processor, read_config

MODES = ("RGB", "L", "RGBA", "P", "LA", "CMYK", "1")


def draw_picture(number: int) -> Image.Image:
    draw = np.random.default_rng(number)
    width, height = (int(side) for side in draw.integers(1, 200, 2))
    pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(MODES[number % len(MODES)])


@pytest.fixture(scope="module", params=["internvl", "internvl_chat"])
def processor(request, tiny_hf):
    folder = tiny_hf(family=request.param, generation="old")
    config, family = read_config(folder), find_family(folder)
    return load_processor(folder, config, family)


@pytest.fixture(scope="module")
def chat(tiny_hf):
    folder = tiny_hf(family="internvl_chat", generation="old")
    return load_processor(folder, read_config(folder), find_family(folder))


def cut_back(visual, patch=4):
    """Put the patches of a visual together: pixels [t, 3, height, width]."""
    t, h, w = visual.grid
    blocks = visual.patches.reshape(t, h // 2, w // 2, 2, 2, 3, patch, patch)
    return blocks.transpose(0, 5, 1, 3, 6, 2, 4, 7).reshape(t, 3, h * patch, w * patch)


def test_40_pictures_are_cut_as_transformers_cuts_them(processor):
    pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.models.got_ocr2")
    reference = processors.GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        crop_to_patches=True,
    )
    counts = set()
    for number in range(40):
        picture = draw_picture(number)
        wanted = np.stack(reference(picture.convert("RGB"))["pixel_values"])
        batch = processor(["?"], [[picture]])
        found = cut_back(batch.images[0])
        np.testing.assert_array_equal(found, wanted, err_msg=f"picture {number}, {picture}")
        assert batch.images[0].tiles == processor.images.find_tiles(*picture.size)
        size = processor.measure("?", [picture.size])
        assert (size.visual, size.rows) == (len(found) * TOKENS, len(found))
        counts.add(len(found))
    assert len(counts) > 5


def test_of_equally_near_grids_the_larger_is_for_larger_pictures():
    rule = Tiles(tile_size=448)
    assert rule.find_tiles(400, 400) == (1, 1)
    assert rule.find_tiles(800, 800) == (2, 2)  # 640 000 > 0.5 * 4 * 448²
    assert rule.find_tiles(600, 600) == (1, 1)
    assert rule.find_tiles(1300, 1300) == (3, 3)
    assert rule.find_tiles(1200, 800) == (3, 2)
    assert rule.limit(4).find_tiles(1300, 1300) == (2, 2)
    assert rule.find_grid(1200, 800) == (7, 32, 32)
    assert rule.find_grid(10, 10) == (1, 32, 32)


def test_pictures_of_a_prompt_share_64_tiles():
    rule = Tiles()
    assert [rule.share(count).max_patches for count in (1, 5, 6, 20, 100)] == [12, 12, 10, 3, 1]


def test_the_option_and_bad_settings(tiny_hf, processor):
    assert processor.bound(None, None, 2).images.max_patches == 2
    with pytest.raises(InputError, match="max_tiles must be at least 1"):
        processor.bound(None, None, 0)
    with pytest.raises(InputError, match="does not resize pictures within bounds"):
        processor.bound(4, None)
    qwen = tiny_hf()
    with pytest.raises(InputError, match="does not cut pictures into tiles"):
        ivc_jax.load(qwen, max_tiles=4)
    with pytest.raises(InputError, match="differs from the tile of the model, 32 x 32"):
        Tiles.from_model({"size": {"height": 448, "width": 448}}, processor.config.vision)
    with pytest.raises(InputError, match="min_patches 3 must be in"):
        Tiles(min_patches=3, max_patches=2)


def text_of(processor, batch):
    tokens = processor.writer.tokenizer
    text = tokens.decode(batch.tokens[0], skip_special_tokens=False)
    for count in (5, 3, 1):
        text = text.replace("<IMG_CONTEXT>" * TOKENS * count, f"[{count}]")
    return text


SYSTEM = (
    "<s><|im_start|>system\n你是书生·万象，英文名是InternVL，"  # noqa: RUF001
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。<|im_end|>\n"
)
WIDE, SQUARE = Image.new("RGB", (64, 32)), Image.new("RGB", (20, 20))


@pytest.mark.parametrize(
    ("prompt", "images", "videos", "line"),
    [
        ("What?", [SQUARE], [], "<img>[1]</img>\nWhat?"),
        ("<image>\nWhat?", [WIDE], [], "<img>[3]</img>\nWhat?"),
        ("Is <image> it?", [WIDE], [], "Is <img>[3]</img> it?"),
        (
            *("Same?", [WIDE, SQUARE], []),
            "Image-1: <img>[3]</img>\nImage-2: <img>[1]</img>\nSame?",
        ),
        (
            *("When?", [], [[SQUARE] * 2]),
            "Frame1: <img>[1]</img>\nFrame2: <img>[1]</img>\nWhen?",
        ),
        (
            *("Here <image> or in <video>?", [SQUARE], [[WIDE]]),
            "Here <img>[1]</img> or in Frame1: <img>[1]</img>?",
        ),
        ("Hello", [], [], "Hello"),
    ],
)
def test_prompts_are_those_of_the_released_model(chat, prompt, images, videos, line):
    batch = chat([prompt], [images], [videos])
    rest = f"<|im_start|>user\n{line}<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(chat, batch) == SYSTEM + rest
    assert len(batch.images) == len(images) + sum(map(len, videos))
    assert not batch.videos
    arrange(batch, chat.config)


def test_a_template_of_the_folder_that_writes_pictures_is_taken(tiny_hf):
    """A video is written as by transformers' processor: a line a frame."""
    folder = tiny_hf(family="internvl", generation="old")
    native = load_processor(folder, read_config(folder), find_family(folder))
    batch = native(["When?"], [[WIDE]], [[[SQUARE, SQUARE]]])
    assert text_of(native, batch) == (
        "<|im_start|>user\n<img>[3]</img>\nFrame1: <img>[1]</img>\nFrame2: <img>[1]</img>\nWhen?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_messages_with_a_system_turn_and_a_video_between_pictures(chat):
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "video", "video": [SQUARE, SQUARE]},
                {"type": "image", "image": WIDE},
                {"type": "text", "text": "A?"},
            ],
        },
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "C?"},
    ]
    batch = chat(messages)
    assert text_of(chat, batch) == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        "Frame1: <img>[1]</img>\nFrame2: <img>[1]</img>\n<img>[3]</img>\nA?<|im_end|>\n"
        "<|im_start|>assistant\nB.<|im_end|>\n<|im_start|>user\nC?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [image.grid[0] for image in batch.images] == [1, 1, 3]


def test_ids_and_pixels_are_those_of_the_processor_of_transformers(tiny_hf):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    models = transformers.models
    folder = tiny_hf(family="internvl", generation="old")
    ours = load_processor(folder, read_config(folder), find_family(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    class WithoutVideos(transformers.InternVLProcessor):
        """Its video processor, which is not asked here, wants a library more."""

        def check_argument_for_proper_class(self, name, argument):
            return None

    theirs = WithoutVideos(
        image_processor=models.got_ocr2.GotOcr2ImageProcessorPil.from_pretrained(folder),
        tokenizer=tokenizer,
        image_seq_length=TOKENS,
        chat_template=tokenizer.chat_template,
    )
    pictures = [draw_picture(number).convert("RGB") for number in (3, 8)]
    content = [{"type": "text", "text": "A"}, {"type": "image"}, {"type": "image"}]
    content.append({"type": "text", "text": "same?"})
    text = theirs.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    wanted = theirs(images=pictures, text=text, return_tensors="np")
    messages = [{"role": "user", "content": [
        content[0],
        *({"type": "image", "image": picture} for picture in pictures),
        content[-1],
    ]}]  # fmt: skip
    batch = ours(messages)
    np.testing.assert_array_equal(batch.tokens[0], wanted["input_ids"][0])
    found = np.concatenate([cut_back(image) for image in batch.images])
    np.testing.assert_allclose(found, np.asarray(wanted["pixel_values"]), rtol=0, atol=1e-5)
    # what it returns says nothing about tiles: they are told by the runs of placeholders
    read = arrange(Batch.from_hf(**wanted), ours.config)[0]
    assert [each.visual.grid for each in read.segments] == [each.grid for each in batch.images]
    for each, image in zip(read.segments, batch.images, strict=True):
        np.testing.assert_allclose(each.visual.patches, image.patches, rtol=0, atol=1e-5)


def test_tiles_are_told_by_runs_by_counts_and_by_grids(chat):
    arrays = hf_arrays([(3, (3,), 2, (1,), 4), (1, (5,), 2)])
    told = {
        "runs": {},
        "counts": {"num_patches": [3, 1, 5]},
        "grids": {"images_spatial_crop": [[2, 1], [1, 1], [2, 2]]},
        "both": {"num_patches": [3, 1, 5], "images_spatial_crop": [[2, 1], [1, 1], [2, 2]]},
    }
    for name, more in told.items():
        samples = arrange(Batch.from_hf(**arrays, **more), chat.config)
        segments = [each for sample in samples for each in sample.segments]
        assert [each.footprint.rows for each in segments] == [3, 1, 5]
        known = [(2, 1), (1, 1), (2, 2)] if "images_spatial_crop" in more else [(0, 0), (1, 1)]
        assert [each.footprint.tiles for each in segments][: len(known)] == known, name
    with pytest.raises(InputError, match=r"expected .* placeholders, found"):
        arrange(Batch.from_hf(**arrays, num_patches=[2, 2, 5]), chat.config)


def test_the_placeholder_and_the_end_of_answers_come_from_the_tokenizer(tiny_hf, tmp_path):
    folder = tiny_hf(family="internvl_chat", generation="old")
    model, none = ivc_jax.load(folder, processor=False)
    assert none is None
    assert model.config.image_token_id == ID["<IMG_CONTEXT>"]
    assert model.stop_ids == (ID["<|im_end|>"],)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(folder / file)
    with pytest.raises(ConfigError, match="states no image_token_id, and no tokenizer"):
        read_config(tmp_path)
    assert read_config(tmp_path, home=folder) == model.config
    added = {"<IMG_CONTEXT>": 263, "<|im_end|>": 259}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    assert read_config(tmp_path).image_token_id == 263
    (tmp_path / "added_tokens.json").unlink()
    listed = {"added_tokens_decoder": {"264": {"content": "<IMG_CONTEXT>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(listed))
    assert read_config(tmp_path).image_token_id == 264


def test_an_unplaced_picture_of_several_tiles_is_refused_by_tile_mode_alone(tiny_hf):
    model, _ = ivc_jax.load(tiny_hf(family="internvl_chat", generation="old"), dtype="float32")
    arrays = hf_arrays([(3, (3,), 4)])
    with pytest.raises(MethodError, match="sample 0: image 0 has 3 tiles"):
        ivc_jax.prefill(model, Batch.from_hf(**arrays), "ivc:layer=1")
    known = Batch.from_hf(**arrays, images_spatial_crop=[[2, 1]])
    assert len(ivc_jax.prefill(model, known, "ivc:layer=1").kept[0]) == 9 + round(0.5 * 3 * TOKENS)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("internvl_chat", {"ps_version": "v1"}, "ps_version 'v1' is not supported"),
        ("internvl_chat", {"select_layer": -2}, "select_layer -2"),
        ("internvl_chat", {"llm_config": {"architectures": ["Phi3"]}}, "'Phi3' is not one of"),
        ("internvl_chat", {"llm_config": {"bias": True}}, "bias=true of a internlm2 decoder"),
        ("internvl_chat", {"force_image_size": 36}, "image_size 36 must be a multiple of 8"),
        ("internvl", {"text_config": {"model_type": "qwen3"}}, "model_type 'qwen3' is not one of"),
        ("internvl", {"vision_config": {"patch_size": [4, 8]}}, "patch_size .* must be square"),
        ("internvl", {"vision_config": {"norm_type": "batch"}}, "norm_type 'batch'"),
        (
            *("internvl", {"text_config": {"rope_parameters": {"rope_type": "yarn"}}}),
            "rope type 'yarn' is not supported",
        ),
    ],
)
def test_settings_that_cannot_be_run_are_named(family, change, message):
    config = tiny_config("old", family=family)
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=message):
        parse_config(config)


def test_class_defaults_fill_in_what_files_leave_out():
    chat = parse_config(
        {
            "model_type": "internvl_chat",
            "image_token_id": 5,
            "ps_version": "v2",
            "llm_config": {"architectures": ["InternLM2ForCausalLM"], "bias": False},
            "vision_config": {},
        }
    )
    # the tower of 6 billion parameters, at 224 pixels
    assert (chat.vision.embed_dim, chat.vision.depth, chat.vision.table_side) == (3200, 48, 16)
    assert (chat.vision.norm, chat.vision.qk_norm, chat.vision.qkv_bias) == ("rmsnorm", True, False)
    assert (chat.decoder.vocab_size, chat.decoder.max_positions) == (103168, 2048)
    native = parse_config({"model_type": "internvl", "image_token_id": 5, "vision_config": {}})
    tower = native.vision
    assert (tower.embed_dim, tower.depth, tower.table_side) == (1024, 24, 32)
    assert (native.decoder.vocab_size, native.decoder.qkv_bias) == (151936, True)
    assert native.decoder.tie_embeddings
