"""Video files beside transformers' processors and models: frames, times, ids, positions, logits.

Its video processors choose, resize and cut; frames that need no resizing are equal to the bit
there, others as closely as PIL's filter and torch's are.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers.videos import draw_frames, write_video

import ivc_jax
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.inputs.layout import arrange

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("av")
from families.internvl import TOKENS
from helpers import parity
from helpers.hf_videos import ask_processors

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
# name -> settings in the file of the video half, and what the call says
CASES = {
    "by rate": ({}, {"fps": 2.0}),
    "by number": ({}, {"num_frames": 6, "fps": None}),
    "by file": ({"fps": 5, "min_frames": 3, "max_frames": 5}, {}),
    "resized": ({}, {"fps": 1.5}),
    "capped": ({"cap_pixels_per_frame": True, "max_video_tokens": 10}, {"fps": 2}),
}
RESIZED = ("resized", "capped")
OF_TILES = {"by file": ({"num_frames": 5, "initial_shift": False}, {})}
BUCKETS = Buckets(text=(64, 128, 192), visual=(64, 128, 192), rows=(12,), images=(12,))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos that need no resizing, in the tiny models, and one that does."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", draw_frames(31, 32, 40), rate=10)
    write_video(folder / "b.mp4", draw_frames(25, 48, 32, seed=1), rate=12.5)
    write_video(folder / "tile.mp4", draw_frames(31, 32, 32, seed=2), rate=10)
    write_video(folder / "large.mp4", draw_frames(33, 74, 110, seed=3), rate=8)
    return folder


def choose_videos(family, case, folder):
    names = ["a", "b"] if family != "internvl" else ["tile", "tile"]
    return [folder / f"{name}.mp4" for name in (["large"] if case == "resized" else names)]


def write_settings(source, target, more):
    """Copy a checkpoint, with settings of its own for videos."""
    shutil.copytree(source, target)
    if not more:
        return target
    file = target / "video_preprocessor_config.json"
    found = file if file.exists() else target / "preprocessor_config.json"
    settings = json.loads(found.read_text()) | more
    settings.pop("image_processor_type", None)
    file.write_text(json.dumps(settings | {"video_processor_type": "Video"}))
    return target


@pytest.fixture(scope="module")
def checkpoints(tiny_hf, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("checkpoints"), {}
    for family in FAMILIES:
        source = tiny_hf(family=family, generation="old")
        for case in CASES:
            settings, options = CASES[case]
            if family == "internvl":
                if case == "capped":
                    continue  # a frame is a tile
                settings, options = OF_TILES.get(case, (settings, options))
            target = write_settings(source, folder / f"{family} {case}", settings)
            found[family, case] = target, options
    return found


@pytest.fixture(scope="module")
def wanted(checkpoints, videos, tmp_path_factory):
    """What transformers' processors make of every case."""
    requests = []
    for (family, case), (path, options) in checkpoints.items():
        files = choose_videos(family, case, videos)
        request = {"family": family, "path": str(path), "options": options}
        request["videos"] = [str(file) for file in files]
        request["more"] = {"image_seq_length": TOKENS} if family == "internvl" else {}
        requests.append(request | {"messages": write_messages([{}] * len(files))})
    found = ask_processors(requests, tmp_path_factory.mktemp("hf"))
    return dict(zip(checkpoints, found, strict=True))


def write_messages(sources):
    content = [{"type": "text", "text": "What moves?"}]
    for source in sources:
        content += [{"type": "video", **source}, {"type": "text", "text": "and here"}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("family", "case"),
    [(f, c) for f in FAMILIES for c in CASES if (f, c) != ("internvl", "capped")],
)
def test_video_files_are_what_transformers_makes_of_them(
    family, case, checkpoints, wanted, videos, load_torch
):
    path, options = checkpoints[family, case]
    chosen = ivc_jax.VideoOptions(**options)
    model, processor = ivc_jax.load(path, dtype="float32", video=chosen)
    files = choose_videos(family, case, videos)
    expected = dict(wanted[family, case])
    index = [expected.pop(f"index_{number}") for number in range(len(files))]
    for file, frames in zip(files, index, strict=True):
        assert processor.read_video(file).index == tuple(frames)
    batch = processor(write_messages([{"video": str(file)} for file in files]))
    assert batch.tokens[0].tolist() == expected["input_ids"][0].tolist()
    (sample,) = arrange(batch, model.config)
    hf_batch = ivc_jax.Batch.from_hf(**expected)
    (theirs,) = arrange(hf_batch, model.config)
    np.testing.assert_array_equal(sample.positions, theirs.positions)
    patches, hf_patches = (
        np.concatenate([segment.visual.patches for segment in each.segments])
        for each in (sample, theirs)
    )
    if case in RESIZED:
        # a level of 256 here and there
        levels = np.abs(patches - hf_patches) * 255 * 0.2
        assert levels.max() < 3
        assert (levels > 0.5).mean() < 0.05
        return
    np.testing.assert_allclose(patches, hf_patches, rtol=0, atol=1e-5)
    if family == "qwen2_5_vl":
        steps, hf_steps = ([clip.seconds for clip in each.videos] for each in (batch, hf_batch))
        assert steps == pytest.approx(hf_steps)
    reference = load_torch(path)
    tensors = parity.to_tensors(expected)
    check_positions(reference, tensors, sample, family)
    logits, tokens = parity.ask(reference, tensors, steps=4)
    with jax.default_matmul_precision("highest"):
        prompt = ivc_jax.prefill(model, collate(batch, model.config, BUCKETS), "dense")
        out = ivc_jax.decode(model, prompt, max_new_tokens=4, stop_ids=())
    np.testing.assert_allclose(prompt.logits, logits, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(out.tokens, tokens)


def check_positions(reference, tensors, sample, family):
    """Hold our position ids to those of the model's own function, where it has one."""
    if family == "internvl":
        return
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask")
    names += ("second_per_grid_ts",) if family == "qwen2_5_vl" else ()
    positions, _ = reference.model.get_rope_index(**{name: tensors[name] for name in names})
    np.testing.assert_array_equal(sample.positions, positions[-3:, 0].numpy())
