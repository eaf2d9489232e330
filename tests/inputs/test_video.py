import sys
import wave

import numpy as np
import pytest
from helpers.videos import decode, draw_frames, write_video

import ivc_jax
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.clips import load_clip
from ivc_jax.inputs.sampling import SampleEnds, SampleMiddles, SampleStarts, VideoOptions
from ivc_jax.inputs.video import Clip, open_video

pytest.importorskip("av")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Twenty frames at ten a second."""
    path = tmp_path_factory.mktemp("video") / "film.mp4"
    return write_video(path, draw_frames(20, 48, 64))


def test_a_file_says_its_size_and_its_length(film):
    video = open_video(film)
    assert (video.total, video.rate, video.width, video.height) == (20, 10.0, 64, 48)
    assert open_video(video) is video


@pytest.mark.parametrize("index", [(0,), (3, 4, 19), (5, 5, 6), tuple(range(20))])
def test_frames_are_those_of_the_decoder(film, index):
    clip = open_video(film).read(index)
    np.testing.assert_array_equal(clip.frames, decode(film)[list(index)])
    assert (clip.index, clip.total, clip.rate) == (index, 20, 10.0)
    assert clip.times == tuple(number / 10 for number in index)


def test_bytes_are_a_file_too(film):
    theirs, ours = open_video(film), open_video(film.read_bytes())
    np.testing.assert_array_equal(ours.read((1, 7)).frames, theirs.read((1, 7)).frames)


def test_a_file_without_a_count_of_frames_is_counted(tmp_path):
    video = open_video(write_video(tmp_path / "film.mkv", draw_frames(7, 16, 16), rate=5))
    assert (video.total, video.rate) == (7, 5.0)


def test_a_title_may_be_of_any_encoding(tmp_path):
    path = write_video(tmp_path / "film.mp4", draw_frames(3, 16, 16), title="A title")
    content = path.read_bytes()
    assert content.count(b"A title") == 1
    video = open_video(content.replace(b"A title", "Ça été".encode("latin-1") + b"!"))
    assert (video.total, len(video.read((0, 2)))) == (3, 2)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_frames_are_turned_upright(tmp_path, turn):
    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :16, :32] = 255  # the upper left
    plain = write_video(tmp_path / "plain.mp4", frames)
    turned = open_video(write_video(tmp_path / "turned.mp4", frames, turn=turn))
    shown = np.rot90(decode(plain), turn // 90, axes=(1, 2))
    assert (turned.height, turned.width) == shown.shape[1:3]
    np.testing.assert_array_equal(turned.read((0, 1, 2)).frames, shown)


def test_what_is_no_video_is_one_line(film, tmp_path):
    content = film.read_bytes()
    path = write_video(tmp_path / "front.mp4", draw_frames(40, 48, 64), movflags="faststart")
    front = path.read_bytes()  # its table comes first
    broken = bytearray(front)
    start = broken.find(b"mdat") + len(broken) // 4
    broken[start : start + 2000] = b"\xff" * 2000
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    cases = {
        "empty.mp4": (b"", "is an empty file"),
        "text.mp4": (b"no video " * 99, "cannot be read as a video"),
        "half.mp4": (content[: len(content) // 2], "cannot be read as a video"),
        "short.mp4": (front[:-9000], "frames that it lists, it is damaged"),
        "broken.mp4": (bytes(broken), "cannot be read as a video|damaged"),
        "sound.wav": (sound.read_bytes(), "has no video stream"),
    }
    for name, (found, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(found)
        for source in (path, found):
            with pytest.raises(InputError, match=message) as caught:
                open_video(source, "sample 0, video 1").read(range(20))
            assert str(caught.value).startswith("sample 0, video 1")
            assert len(str(caught.value).splitlines()) == 1
    nothing = write_video(tmp_path / "nothing.mp4", np.zeros((0, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=r"nothing.mp4\) has no (frames|video stream)"):
        open_video(nothing)
    with pytest.raises(InputError, match="there is no file"):
        open_video(tmp_path / "missing.mp4")
    with pytest.raises(InputError, match="is a folder"):
        open_video(tmp_path)


def test_without_the_library_there_is_one_line(film, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'ivc_jax\[video\]'"):
        open_video(film)


def test_slices_are_halfway_between_their_frames():
    clip = Clip(np.zeros((5, 4, 4, 3), np.uint8), (0, 4, 8, 12, 16), 8.0, 20)
    assert clip.times == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert clip.time_slices(2) == (0.25, 1.25, 2.0)
    assert clip.time_slices(1) == clip.times
    assert clip.shown_rate == 2.0
    assert clip.take((1, 4)).times == (0.5, 2.0)


def test_frames_and_clips_are_shown_as_they_are(film):
    frames = draw_frames(3, 8, 8)
    clip = load_clip(frames, 4.0, SampleStarts(), "video")
    assert (clip.times, clip.shown_rate) == ((0.0, 0.25, 0.5), 4.0)
    assert load_clip(list(frames), None, SampleStarts(), "video").rate == 2.0
    assert load_clip(clip, 1.0, SampleStarts(), "video") is clip
    assert load_clip(str(film), 5.0, SampleStarts(), "video").index == tuple(range(0, 20, 2))
    with pytest.raises(InputError, match="video is no video"):
        load_clip(3, None, SampleStarts(), "video")


@pytest.mark.parametrize(
    ("rule", "index"),
    [
        (SampleStarts(), (0, 5, 10, 15)),
        (SampleStarts(fps=3), (0, 3, 6, 10, 13, 16)),
        (SampleStarts(fps=3, max_frames=5), (0, 5, 10, 15)),
        (SampleStarts(fps=0.1, min_frames=1), (0, 10)),
        (SampleStarts(fps=None, num_frames=5), (0, 5, 10, 15)),
        (SampleEnds(), (0, 6, 13, 19)),
        (SampleEnds(fps=3.5), (0, 3, 6, 10, 13, 16, 19)),
        (SampleEnds(fps=30), tuple(range(20))),
        (SampleMiddles(), (1, 3, 6, 8, 11, 13, 16, 18)),
        (SampleMiddles(fps=2), (2, 7, 12, 17)),
        (SampleMiddles(num_frames=4, initial_shift=0), (0, 5, 10, 15)),
    ],
)
def test_rules_choose_frames(rule, index):
    assert rule.choose(20, 10.0) == index


def test_short_files_are_shown_whole():
    assert SampleStarts().choose(1, 30.0) == (0,)
    assert SampleStarts().choose(3, 30.0) == (0, 1)
    assert SampleEnds().choose(1, 30.0) == (0,)
    assert SampleMiddles().choose(3, 30.0) == (0, 1, 2)
    for rule in (SampleStarts, SampleMiddles):
        with pytest.raises(InputError, match="8 frames are asked for of a video that has 3"):
            rule(fps=None, num_frames=8).choose(3, 30.0)


def test_options_change_what_they_name():
    rule = SampleStarts().change(VideoOptions(max_frames=2))
    assert (rule.fps, rule.min_frames, rule.max_frames) == (2.0, 2, 2)
    rule = SampleMiddles().change(VideoOptions(min_frames=3))
    assert (rule.fps, rule.num_frames, rule.min_frames) == (2.0, None, 3)
    rule = SampleEnds().change(VideoOptions(num_frames=6))
    assert rule.choose(20, 10.0) == (0, 4, 8, 11, 15, 19)
    assert SampleEnds().change(VideoOptions(min_pixels=9)) == SampleEnds()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps of videos must be positive"),
        ({"fps": float("nan")}, "fps of videos must be positive"),
        ({"max_frames": -1}, "max_frames of videos must be positive"),
        ({"fps": 1, "num_frames": 2}, "exclude each other"),
        ({"num_frames": 2, "max_frames": 2}, "leave them out with num_frames"),
        ({"min_frames": 5, "max_frames": 2}, "min_frames 5 exceeds max_frames 2"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        VideoOptions(**options)


def test_settings_of_a_file_win_over_the_usual():
    rule = SampleEnds.from_hf({"fps": 4, "max_frames": 9, "min_frames": None, "size": {}}, 2)
    assert rule == SampleEnds(fps=4, max_frames=9)
    assert SampleMiddles.from_hf({"num_frames": 3}, 1) == SampleMiddles(num_frames=3, depth=1)
    with pytest.raises(InputError, match="fps and num_frames; leave one"):
        SampleStarts.from_hf({"fps": 4, "num_frames": 9}, 2)


def test_processors_read_files_at_marks_and_at_rates_of_their_own(tiny_hf, film):
    _, processor = ivc_jax.load(tiny_hf(family="qwen2_5_vl"), dtype="float32")
    once = processor(["When<video>?"], videos=[[film]])
    assert [(clip.grid[0], clip.seconds) for clip in once.videos] == [(2, 1.0)]
    rates = [[5.0, 2.0], None]
    several = processor(
        ["<video>or<video>?", "None?"], videos=[[str(film), film.read_bytes()], None], fps=rates
    )
    assert [(clip.grid[0], clip.seconds) for clip in several.videos] == [(5, 0.4), (2, 1.0)]
    np.testing.assert_array_equal(several.videos[1].patches, once.videos[0].patches)
    clip = processor.read_video(film)
    assert (clip.index, clip.times) == ((0, 5, 10, 15), (0.0, 0.5, 1.0, 1.5))
    given = processor(["When<video>?"], videos=[[clip]])
    np.testing.assert_array_equal(given.videos[0].patches, once.videos[0].patches)
    assert given.tokens[0].tolist() == once.tokens[0].tolist()
    part = processor(["When<video>?"], videos=[[clip.take((0, 3))]])
    assert (part.videos[0].grid[0], part.videos[0].times) == (1, (0.75,))
    fewer = processor.sample(VideoOptions(num_frames=2, max_pixels=16 * 16))
    assert fewer(["<video>"], videos=[[film]]).videos[0].grid[0] == 1
    assert fewer.videos.max_pixels == 16 * 16
    with pytest.raises(InputError, match=r"sample 0, video 0 \(none.mp4\): there is no file"):
        processor(["When?"], videos=[["none.mp4"]])
    with pytest.raises(InputError, match="video is the processor's"):
        ivc_jax.load(tiny_hf(), processor=False, video=VideoOptions(fps=1))
