"""Qwen3-VL's files: config and its defaults, pictures, videos and prompts as transformers has."""

import json

import numpy as np
import pytest
from families.qwen import ID, change
from families.qwen3 import write_processor_files
from helpers.prompts import hf_arrays
from helpers.tiny import tiny_config
from PIL import Image

from ivc_jax.config import ConfigError
from ivc_jax.families import QWEN3_VL, list_sizes, parse_config
from ivc_jax.inputs.batch import Batch
from ivc_jax.inputs.clip import ClipResize
from ivc_jax.inputs.layout import arrange
from ivc_jax.inputs.resize import SmartResize, process_image
from ivc_jax.methods import parse
from ivc_jax.model import load_processor

CONFIG = parse_config(tiny_config(family="qwen3_vl"))
PUBLISHED = SmartResize.from_hf(
    {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        **{"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }
)


def noise(height, width, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    return pixels.astype(np.uint8)


def test_both_spellings_are_one_config():
    assert parse_config(tiny_config("old", family="qwen3_vl")) == CONFIG
    assert CONFIG.decoder.head_dim == 24  # not 64 / 4
    assert CONFIG.decoder.rope.axis_of_plane.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 0]


def test_what_a_file_leaves_out_is_that_of_the_classes():
    transformers = pytest.importorskip("transformers")
    whole = transformers.Qwen3VLConfig().to_dict()
    assert parse_config({"model_type": "qwen3_vl"}) == parse_config(whole)
    text = parse_config(whole).decoder
    sizes = whole["text_config"]
    assert (text.num_layers, text.hidden_size) == (sizes["num_hidden_layers"], sizes["hidden_size"])
    assert text.rope.theta == sizes["rope_parameters"]["rope_theta"]


@pytest.mark.parametrize(
    ("part", "field", "message"),
    [
        ("text_config", {"attention_bias": True}, "attention_bias=true is not supported"),
        ("text_config", {"hidden_act": "gelu"}, "decoder hidden_act 'gelu'"),
        ("text_config", {"rope_scaling": {"rope_type": "yarn"}}, "rope type 'yarn'"),
        ("text_config", {"rope_scaling": {"mrope_interleaved": False}}, "mrope_interleaved=false"),
        ("vision_config", {"num_position_embeddings": 26}, "num_position_embeddings 26"),
        ("vision_config", {"deepstack_visual_indexes": [2, 0]}, r"deepstack \(2, 0\)"),
        ("vision_config", {"deepstack_visual_indexes": [4]}, r"deepstack \(4,\)"),
        ("vision_config", {"hidden_act": "relu"}, "vision hidden_act 'relu'"),
    ],
)
def test_what_cannot_be_run_is_named(part, field, message):
    config = tiny_config("old", family="qwen3_vl")
    with pytest.raises(ConfigError, match=message):
        parse_config({**config, part: {**config[part], **field}})


def test_mixtures_of_experts_are_another_architecture():
    with pytest.raises(ConfigError, match=r"unknown architecture model_type='qwen3_vl_moe'"):
        parse_config({"model_type": "qwen3_vl_moe"})


@pytest.mark.parametrize("name", ["qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b", "qwen3-vl-32b"])
def test_published_sizes(name):
    config = parse_config(list_sizes()[name])
    vision, decoder = config.vision, config.decoder
    assert vision.out_dim == decoder.hidden_size
    assert (vision.table_side, len(vision.deepstack), vision.patch_size) == (48, 3, 16)
    assert (decoder.head_dim, decoder.rope.theta) == (128, 5e6)
    # interleaved: all three axes turn with planes from fast to slow
    assert parse("ivc:layer=1,frequencies=section").resolve(config).layer == 1


MODES = ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "I;16")


def test_forty_pictures_equal_hf():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    reference = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        **{"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    )
    draw = np.random.default_rng(0)
    for number in range(40):
        height, width = (int(side) for side in draw.integers(20, 420, 2))
        mode = MODES[number % 7]
        image = Image.fromarray(noise(height, width, seed=number)).convert(mode)
        expected = reference(images=[image], return_tensors="np")
        visual = process_image(image, PUBLISHED)
        assert visual.grid == tuple(expected["image_grid_thw"][0])
        assert not any(side % 2 for side in visual.grid[1:])
        np.testing.assert_array_equal(visual.patches, expected["pixel_values"])


@pytest.mark.parametrize("cap", [False, True])
def test_frames_share_the_bounds_of_their_video(cap):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    rule, draw = ClipResize(cap_pixels_per_frame=cap), np.random.default_rng(0)
    for _ in range(200):
        frames = int(draw.integers(2, 40))
        height, width = (int(side) for side in draw.integers(9, 900, 2))
        most = rule.max_pixels
        if cap:
            most = frames * max(min(768 * 1024, most // frames), int(rule.min_pixels * 1.05))
        found = rule.find_frame_size(frames, width, height)
        assert found == smart_resize(
            frames, height, width, factor=32, min_pixels=rule.min_pixels, max_pixels=most
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    write_processor_files(folder)
    return folder


def hf_processor(folder, clips):
    """Load HF's processor; its video half, which wants torchvision, says what is true of `clips`.

    `clips` are (grid, frames, rate) of each video.
    """
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.video_utils import VideoMetadata

    class Videos:
        merge_size = temporal_patch_size = 2

        def __call__(self, videos, **_):
            told = [
                VideoMetadata(total_num_frames=count, fps=rate, frames_indices=list(range(count)))
                for _, count, rate in clips
            ]
            grids = np.array([grid for grid, _, _ in clips])
            return {"video_grid_thw": grids, "video_metadata": told}

    class Processor(Qwen3VLProcessor):
        def check_argument_for_proper_class(self, argument_name, argument):
            return None

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return Processor(images, tokenizer, Videos(), chat_template=tokenizer.chat_template)


IMAGES = [Image.fromarray(noise(*size, seed=sum(size))) for size in ((30, 45), (20, 20), (64, 16))]
CLIPS = [noise(5 * 24, 40).reshape(5, 24, 40, 3), noise(2 * 33, 20).reshape(2, 33, 20, 3)]
# Six conversations of (role, parts): a number is an image, a pair the video of that frame rate.
CONVERSATIONS = [
    [("user", ["What is it?"])],
    [("user", [0, "\nLocate the 7."])],
    [("system", ["Be brief."]), ("user", ["Is ", 1, " the same as ", 2, "?"])],
    [("user", [(0, 2.0), "When?"])],
    [("user", [2, "and then", (1, 24.0), (0, 0.7), " see"]), ("assistant", ["No."]), ("user", [0])],
    [("user", [(0, 3.0), 1, "<0.3 seconds>"]), ("assistant", ["é"]), ("user", ["Why?"])],
]


@pytest.mark.parametrize("turns", CONVERSATIONS, ids=range(6))
def test_six_conversations_have_the_ids_of_hf(folder, turns):
    processor = load_processor(folder, CONFIG, QWEN3_VL)
    ours, theirs, images, videos, rates = [], [], [], [], []
    for role, parts in turns:
        own, bare = [], []
        for part in parts:
            if isinstance(part, str):
                own.append({"type": "text", "text": part})
            elif isinstance(part, int):
                own.append({"type": "image", "image": IMAGES[part]})
                images.append(IMAGES[part])
            else:
                own.append({"type": "video", "video": CLIPS[part[0]]})
                videos.append(CLIPS[part[0]])
                rates.append(part[1])
            bare.append({name: own[-1][name] for name in own[-1] if name in ("type", "text")})
        ours.append({"role": role, "content": own})
        theirs.append({"role": role, "content": bare})
    batch = processor(ours, fps=[rates])
    grids = [clip.grid for clip in batch.videos]
    reference = hf_processor(
        folder, list(zip(grids, (len(clip) for clip in videos), rates, strict=True))
    )
    text = reference.apply_chat_template(theirs, add_generation_prompt=True)
    expected = reference(images=images or None, videos=videos or None, text=[text])
    assert batch.tokens[0].tolist() == list(expected["input_ids"][0])
    (sample,) = arrange(batch, CONFIG)  # the runs fit what they stand for
    assert [len(segment.runs) for segment in sample.segments if segment.kind == "video"] == [
        grid[0] for grid in grids
    ]


def test_a_video_is_written_slice_by_slice(folder):
    processor = load_processor(folder, CONFIG, QWEN3_VL)
    batch = processor(["<video>"], videos=[[CLIPS[0]]], chat=False, fps=2.0)
    (clip,) = batch.videos
    assert clip.times == (0.25, 1.25, 2.0)
    start, end, pad = (ID[f"<|{mark}|>"] for mark in ("vision_start", "vision_end", "video_pad"))
    pads = [pad] * (clip.grid[1] * clip.grid[2] // 4)
    texts = [list(f"<{time} seconds>".encode()) for time in ("0.2", "1.2", "2.0")]
    ids = batch.tokens[0].tolist()
    letters = processor.writer.tokenizer.encode("<0.2 seconds>")
    assert ids[1 : 1 + len(letters)] == letters
    assert len(ids) == 2 + sum(len(text) + 2 + len(pads) for text in texts)
    assert ids.count(pad) == 3 * len(pads)
    assert ids.count(start) == ids.count(end) == 4  # the template's own marks stay around it all


def test_slices_are_numbered_like_images(folder):
    """Each from where it starts; the text behind it after the longer side of its grid."""
    processor = load_processor(folder, CONFIG, QWEN3_VL)
    batch = processor(["<video>"], videos=[[CLIPS[0]]], chat=False)
    (sample,) = arrange(batch, CONFIG)
    (segment,) = sample.segments
    _, rows, columns = (side // 2 for side in batch.videos[0].grid)
    before = 0  # position at which a slice starts
    text = 0  # slot behind the slice before
    for number, run in enumerate(segment.runs):
        before += run.start - text
        time, height, width = sample.positions[:, run]
        assert set(time) == {before}
        assert height.tolist() == np.repeat(np.arange(rows) + before, columns).tolist()
        assert width.tolist() == np.tile(np.arange(columns) + before, rows).tolist()
        assert (
            segment.footprint.grid[number * rows * columns :][: rows * columns, 0] == number
        ).all()
        before, text = before + max(rows, columns), run.stop
    assert sample.next_position == before + len(sample.tokens) - text


def test_settings_without_a_video_processor_serve_frames_as_pictures(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    clip = load_processor(tmp_path, CONFIG, QWEN3_VL).videos
    assert isinstance(clip, ClipResize)
    assert clip.max_pixels == 4 * 48 * 48
    change(tmp_path / "video_preprocessor_config.json", video_processor_type=None)
    assert type(load_processor(tmp_path, CONFIG, QWEN3_VL).videos) is SmartResize
    merged = {"image_processor": json.loads((folder / "preprocessor_config.json").read_text())}
    merged["video_processor"] = json.loads((folder / "video_preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps(merged))
    assert load_processor(tmp_path, CONFIG, QWEN3_VL).videos == clip


def test_positions_of_several_videos_equal_hf(tiny_hf, load_torch):
    torch = pytest.importorskip("torch")
    model = load_torch(tiny_hf(family="qwen3_vl", generation="old")).model
    prompt = (3, ("video", (3, 4, 6)), 2, ("image", (1, 8, 4)), 1, ("video", (1, 6, 2)), 4)
    arrays = hf_arrays([prompt, (2, ("video", (2, 2, 10)), 5)], side="right", stamped=True)
    ids = torch.from_numpy(arrays["input_ids"])
    kinds = (ids == ID["<|image_pad|>"]) + 2 * (ids == ID["<|video_pad|>"])
    grids = {name: torch.from_numpy(arrays[name]) for name in arrays if name.endswith("_thw")}
    mask = torch.from_numpy(arrays["attention_mask"])
    expected, _ = model.get_rope_index(
        input_ids=ids, mm_token_type_ids=kinds.int(), attention_mask=mask, **grids
    )
    for row, sample in enumerate(arrange(Batch.from_hf(**arrays), CONFIG)):
        theirs = expected[-3:, row, : len(sample.tokens)].numpy()
        np.testing.assert_array_equal(sample.positions, theirs)
