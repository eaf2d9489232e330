"""The inspection script: table, picture, and one-line errors."""

import numpy as np
import pytest
from helpers.videos import draw_frames, write_video
from PIL import Image

from ivc_jax.commands import inspect as inspect_image
from ivc_jax.commands import main
from ivc_jax.evals.running.recording import Answer
from ivc_jax.reports.kept import shade
from ivc_jax.reports.kept_frames import list_slices
from ivc_jax.studies.inspection import grid


def test_dropped_cells_are_darkened_where_a_place_is_one_token():
    pixels = np.full((4, 6, 3), 200, np.uint8)
    halves = shade(pixels, (1, 1, 2), [1])
    assert halves[:, :3].max() == 50
    assert halves[:, 3:].min() == 200
    assert shade(pixels, (3, 1, 2), [5]).min() == 200  # in tiles, whose tokens are others


@pytest.fixture(autouse=True)
def _few_ratios(monkeypatch):
    monkeypatch.setattr(grid, "RATIOS", (0.5,))


def test_one_image_on_a_tiny_model(tiny_hf, tmp_path, capsys):
    Image.effect_noise((40, 56), 90).convert("RGB").save(tmp_path / "noise.png")
    out = tmp_path / "new" / "kept.png"
    options = ["--model", tiny_hf(), "--prompt", "What is [this]?", "--out", out]
    options += ["--methods", "dense", "ivc:keep_ratio=0.5", "--max-new-tokens", 4]
    arguments = ["inspect", tmp_path / "noise.png", *options, "--repeats", 2]
    assert main.main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert "times: median of 2 warm runs" in printed
    page = out.with_suffix(".html").read_text()
    assert "What is [this]?" in page
    assert "18 of 35" in page
    assert "medians of 2 warm runs" in page
    assert "What is [this]?" in printed
    assert "ivc:keep_ratio=0.5" in printed
    # 40 x 56 pixels are 5 x 7 tokens of 8 pixels; half of 35 rounds to 18
    assert "35 of 35" in printed
    assert "18 of 35" in printed
    bounds = ["--min-pixels", "64", "--max-pixels", "640"]
    assert main.main([*map(str, arguments[:-1]), "0", *bounds]) == 0
    # 640 pixels are 10 cells: the picture shrinks by the root of 3.5, to 21 x 30, so 2 x 3 cells
    printed = capsys.readouterr().out
    assert "6 of 6" in printed
    assert " ms" not in printed  # no times that are not medians
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.png"], "there is no file missing.png"),
        (["--methods", "prune"], "unknown method 'prune'"),
        (["--model", "missing-folder"], "missing-folder is neither a directory nor a hub id"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--repeats", "-1"], "repeats must not be negative"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, options, message):
    assert inspect_image.main([*options, "--out", str(tmp_path / "kept.png")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("family", ["qwen2_vl", "internvl"])
def test_one_video_on_a_tiny_model(tiny_hf, tmp_path, capsys, family):
    pytest.importorskip("av")
    film = write_video(tmp_path / "film.mp4", draw_frames(20, 32, 32))
    out = tmp_path / "kept.png"
    model = tiny_hf(family=family, generation="old")
    options = [
        "--model",
        model,
        "--out",
        out,
        "--methods",
        "dense",
        "random:layer=1,keep_ratio=0.5",
    ]
    arguments = ["inspect", film, *options, "--max-new-tokens", 2, "--fps", 2, "--repeats", 0]
    assert main.main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert "What is in this video?" in printed
    # four frames of 16 tokens, in two slices or as four images
    tokens = 32 if family == "qwen2_vl" else 64
    assert f"{tokens} of {tokens}" in printed
    assert f"{tokens // 2} of {tokens}" in printed
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert out.with_suffix(".html").read_text().count('"title":"') == tokens // 16  # slices
    (tmp_path / "film.mp4").write_bytes(b"")
    assert main.main([str(argument) for argument in arguments]) == 2
    assert "video (film.mp4) is an empty file" in capsys.readouterr().err


def test_slices_of_a_video_are_pieces_of_one_or_images():
    answer = Answer("", 12, [0, 5, 6, 11], [[2, 1, 3], [1, 2, 3]], 0, 0, 0, 0)
    assert list_slices(answer) == [((1, 3), [0]), ((1, 3), [2]), ((2, 3), [0, 5])]
