"""Rows that are broken in every known way: the run ends, names them and scores the rest."""

import base64
import dataclasses
import warnings

import numpy as np
import pytest
from helpers.tsv import HEADER, encode, write_tsv
from PIL import Image

import ivc_jax
from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.running import records, runner, summary
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.evals.running.recording import MethodEntry, RunIdentity
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.evals.running.tsv import TsvFile

_TASK = tasks.TASKS["DigitScenes_colour"]


def noise(width, height, mode="RGB"):
    draw = np.random.default_rng(width * height)
    channels = [Image.fromarray(draw.integers(0, 256, (height, width), np.uint8)) for _ in mode]
    return Image.merge(mode, channels)


def cut(cell, size):
    return encode(base64.b64decode(cell)[:size])


def animation():
    frames = [noise(40, 40), noise(40, 44).resize((40, 40))]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


GOOD = encode(noise(48, 40))
# name -> (image cell, question, answer), and what the error says; None: the row is scored
ROWS = {
    "good": ((GOOD, "What?", "red"), None),
    "bad base64": (("!" + GOOD, "What?", "red"), "not valid base64"),
    "truncated JPEG": ((cut(encode(noise(64, 64), "JPEG"), 900), "What?", "red"), "cannot be read"),
    "no image": ((cut(encode(noise(8, 8)), 20) * 9, "What?", "red"), "the image cell"),
    "missing answer": ((GOOD, "What?", ""), "the answer cell is empty"),
    "empty question": ((GOOD, " ", "red"), "the question cell is empty"),
    "one pixel": ((encode(noise(1, 1)), "What?", "red"), None),
    "panorama": ((encode(Image.new("RGB", (20000, 50)), "JPEG"), "What?", "red"), "aspect ratio"),
    "wide but fair": ((encode(noise(200, 10)), "What?", "red"), None),
    "CMYK": ((encode(noise(40, 40, "CMYK"), "JPEG"), "What?", "red"), None),
    "animated": ((animation(), "What?", "red"), None),
    "grey": ((encode(noise(40, 40, "L")), "What?", "red"), None),
    "endless question": ((GOOD, "word " * 2000, "red"), "positions"),
    "marks in the question": ((GOOD, "Is <image> or <video> a tag?", "red"), None),
    "a placeholder": ((GOOD, "Quote <|image_pad|> please", "red"), "holds <|image_pad|>"),
    "a special token": ((GOOD, "Say <|im_end|> please", "red"), None),
    "missing cell": ((GOOD, "What?"), "3 cells where the header has 4"),
}


@pytest.fixture(scope="module")
def found(tiny_hf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    rows = [[name, *cells] for name, (cells, _) in ROWS.items()]
    file = TsvFile(write_tsv(folder / _TASK.file_name, HEADER, rows), _TASK.scoring.columns)
    model, processor = ivc_jax.load(tiny_hf(num_hidden_layers=2), dtype="float32")
    method = MethodEntry("ivc", 0.5, ivc_jax.methods.parse("ivc:layer=1,keep_ratio=0.5"))
    plan = runner.RunPlan(
        [TaskEntry(_TASK, file)], [method], 2, RunIdentity("tiny", 0, ""), buckets=1,
        max_new_tokens={"": 2},
    )  # fmt: skip
    out = records.RunFolder(folder / "out")
    statistics = runner.run(plan, ModelAnswerer(model, processor), out, lambda *event: None)
    out.close()
    return statistics, {record.example_id: record for record in records.read_all(out.path)}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_scored_or_named(found, name):
    record, message = found[1][name], ROWS[name][1]
    assert record.failed == (message is not None)
    if message:
        row = list(ROWS).index(name) + 1
        assert f"{_TASK.file_name} row {row} (index {name}): " in record.error
        assert message in record.error
    else:
        assert record.score in (0.0, 1.0)
        assert record.kept_tokens < record.visual_tokens or record.visual_tokens == 1


def test_the_others_are_scored_and_counted(found):
    statistics, rows = found
    broken = [message for _, message in ROWS.values() if message]
    assert summary.count_failed(rows.values()) == len(broken)
    (row,) = summary.make_rows(rows.values(), [_TASK.name], ["ivc"])
    assert row.n == len(ROWS) - len(broken)
    assert statistics.buckets == 1  # that all of them fit into


def test_pictures_survive_padding_and_conversion(found):
    """A CMYK picture and an animation take as many tokens as a plain one of their size."""
    tokens = {name: found[1][name].visual_tokens for name in ("CMYK", "animated", "grey")}
    assert set(tokens.values()) == {25}  # 40 x 40 pixels, 8 a token


def test_rows_whose_logits_are_not_finite_fail_by_name(tiny_hf, tmp_path):
    """A damaged embedding in one question's way: each method fails it, the others are scored."""
    questions = ["What?", "What? ~", "Which?"]
    rows = [[str(number), GOOD, text, "red"] for number, text in enumerate(questions)]
    file = TsvFile(write_tsv(tmp_path / _TASK.file_name, HEADER, rows), _TASK.scoring.columns)
    model, processor = ivc_jax.load(tiny_hf(num_hidden_layers=2), dtype="float32")
    decoder = dict(model.params["decoder"])
    table = decoder["embed_tokens"]["embedding"]
    tilde = processor.writer.tokenizer.number("~")
    decoder["embed_tokens"] = {"embedding": table.at[tilde, 0].set(np.nan)}
    model = dataclasses.replace(model, params={**model.params, "decoder": decoder})
    methods = [
        MethodEntry(spec, 1.0, ivc_jax.methods.parse(spec)) for spec in ("dense", "ivc:layer=1")
    ]
    plan = runner.RunPlan(
        [TaskEntry(_TASK, file)], methods, 4, RunIdentity("tiny", 0, ""), buckets=1,
        max_new_tokens={"": 2},
    )  # fmt: skip
    out = records.RunFolder(tmp_path / "out")
    with warnings.catch_warnings():  # the records say it
        warnings.simplefilter("error", UserWarning)
        runner.run(plan, ModelAnswerer(model, processor), out, lambda *event: None)
    out.close()
    found = records.read_all(out.path)
    assert summary.count_failed(found) == 1
    assert {(r.example_id, r.method) for r in found if r.failed} == {("1", m.spec) for m in methods}
    said = f"{_TASK.file_name} row 2 (index 1): logits are not finite in float32: the weights"
    assert all(record.error.startswith(said) for record in found if record.failed)
    assert all(record.prediction is None for record in found if record.failed)
    assert all(row.n == 2 for row in summary.make_rows(found, [_TASK.name], ["dense"]))
