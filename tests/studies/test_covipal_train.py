"""CoViPAL's training as a run: killed and started again, its data, its command."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from helpers.tsv import HEADER, encode, write_tsv
from PIL import Image

import ivc_jax
from ivc_jax.commands.main import main
from ivc_jax.module_sizes import Sizes
from ivc_jax.studies.covipal.data import Rows, open_file
from ivc_jax.studies.covipal.settings import Training
from ivc_jax.studies.covipal.train import train

SIZES = Sizes(width=16, heads=2)
TRAINING = Training(
    samples_1=8, samples_2=6, batch_1=2, batch_2=2, answers="model", max_new_tokens=3,
    rate_1=1e-2, rate_2=1e-2, guide=1,
)  # fmt: skip
FILES = ("module.safetensors", "README.md", "log.jsonl")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    draw = np.random.default_rng(0)
    rows = []
    for number in range(5):
        picture = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8))
        rows.append([str(number), encode(picture), f"what is {number}?", f"answer {number}"])
    rows.append(["5", "no picture", "and here?", "none"])
    return write_tsv(tmp_path_factory.mktemp("data") / "own.tsv", HEADER, rows)


@pytest.fixture(scope="module")
def folder(tiny_hf):
    return tiny_hf(num_hidden_layers=2)


@pytest.fixture(scope="module")
def rows(folder, file):
    return Rows.find(*ivc_jax.load(folder, dtype="float32"), [open_file(file)])


class Killed(BaseException):
    pass


def test_a_killed_run_ends_with_the_same_bytes(rows, tmp_path):
    """Killed between checkpoints of either stage: steps are lost, and done again."""

    def kill(when):
        def report(*step):
            if step[:2] == when:
                raise Killed

        return report

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(rows, SIZES, TRAINING, whole, save_every=2)
    for when in (("imitation", 3), ("tuning", 1), ("tuning", 3)):
        with pytest.raises(Killed):
            train(rows, SIZES, TRAINING, parts, save_every=2, report=kill(when))
        for log in parts.glob("*.jsonl"):  # in the middle of a line
            log.write_text(log.read_text() + '{"stage": "im')
    train(rows, SIZES, TRAINING, parts, save_every=2)
    for name in FILES:
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    steps = [("imitation", n) for n in (1, 2, 3, 4)] + [("tuning", n) for n in (1, 2, 3)]
    assert [(row["stage"], row["step"]) for row in log] == steps
    assert all(np.isfinite(row["loss"]) for row in log)
    # done is done; and what a module says of itself is enough to prune with it
    train(rows, SIZES, TRAINING, parts, report=kill(("imitation", 0)))
    spec = f"covipal:weights={parts},keep_ratio=0.5"
    batch = ivc_jax.Batch.join(rows.ask(rows.places[:2]))
    kept = ivc_jax.prefill(rows.model, batch, spec).kept
    assert [len(all) - len(own) for all, own in zip(batch.tokens, kept, strict=True)] == [6, 6]
    other = dataclasses.replace(TRAINING, rate_1=0.5)
    with pytest.raises(ValueError, match=r"holds a run of other settings \(rate_1\)"):
        train(rows, SIZES, other, parts)


def test_rows_come_once_before_any_comes_again(rows):
    assert len(rows.places) == 5
    assert len(rows.failures) == 1
    assert "row 6" in rows.failures[0]
    seen = [place for step in range(5) for place in rows.choose((3, 1), step, 3)]
    assert [len({*seen[i : i + 5]}) for i in (0, 5, 10)] == [5, 5, 5]
    assert seen[:5] != seen[5:10]
    assert rows.choose((3, 1), 2, 3) == seen[6:9]
    end = rows.model.stop_ids[0]
    (answer,) = rows.read_answers([(0, 2)])
    assert rows.processor.decode([answer], [len(answer) - 1]) == ["answer 2"]
    assert answer[-1] == end


def test_the_command_trains_exports_and_is_refused_in_one_line(folder, file, tmp_path, capsys):
    out, target = tmp_path / "run", tmp_path / "there" / "small.safetensors"
    command = ["covipal-train", "--model", str(folder), "--data", str(file), "--out", str(out)]
    command += ["--width", "16", "--heads", "2", "--samples-1", "2", "--batch-1", "2"]
    command += ["--samples-2", "0", "--guide", "1", "--export-to", str(target)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "left out: own.tsv row 6" in shown
    assert "5 rows of 1 files" in shown
    assert target.read_bytes() == (out / "module.safetensors").read_bytes()
    card = target.with_suffix(".md").read_text()
    assert re.search(r"command: `.*covipal-train --model", card)
    assert "| width | 16 |" in card
    assert main([*command, "--seed", "3"]) == 2
    assert "holds a run of other settings (seed)" in capsys.readouterr().err
    # another checkpoint of the same sizes, read in another way
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "note.txt").write_text("tuned further")
    command[2] = str(other)
    assert main([*command, "--max-pixels", "5000"]) == 2
    assert "other settings (checkpoint, max_pixels)" in capsys.readouterr().err


def test_scenes_are_of_training_digits(folder, tmp_path, capsys):
    command = ["covipal-train", "--model", str(folder), "--out", str(tmp_path), "--scenes", "1"]
    assert main([*command, "--tasks", "reading", "--guide", "9"]) == 2
    assert "guide must be a block behind layer=0" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").iterdir()] == [
        "digit_scenes-16x16-calibration-1-17"
    ]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--width", "30"])
    assert "width must be a multiple of heads and of 4, got 30 and 8" in capsys.readouterr().err


def test_experts_have_no_second_stage(tiny_hf, file, tmp_path, capsys):
    model = tiny_hf(family="deepseek_vl2", num_hidden_layers=2)
    command = ["covipal-train", "--model", str(model), "--data", str(file)]
    assert main([*command, "--out", str(tmp_path / "run"), "--samples-2", "2"]) == 2
    assert "no gradient goes back through experts; give --samples-2 0" in capsys.readouterr().err
    assert main([*command, "--tasks", "reading"]) == 2
    assert "data and tasks exclude each other" in capsys.readouterr().err
