"""The command `check`: every broken row of every file, without a model."""

import pathlib

import pytest
from helpers.tsv import HEADER, IMAGE, encode, write_tsv
from PIL import Image

from ivc_jax.commands.cli import SCRIPT
from ivc_jax.commands.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETS = {  # a set of each kind in docs/benchmarks.md
    "boxes": "RefCOCO_val",
    "choice": "MMStar",
    "circular choice": "MMBench_DEV_EN_V11",
    "yes or no": "DigitScenes_existence",
    "POPE": "POPE",
    "MME": "MME",
    "HallusionBench": "HallusionBench",
    "free answers": "TextVQA_VAL",
    "OCRBench": "OCRBench",
}
CHOICE = ["index", "image", "question", "A", "B", "answer"]
BOXES = [*HEADER, "height", "width"]


@pytest.fixture
def folder(tmp_path):
    """Three files: one in order, one with broken rows, one that is no UTF-8."""
    write_tsv(tmp_path / "MMStar.tsv", CHOICE, [["1", IMAGE, "q", "x", "nan", "A"]])
    rows = [
        ["1", IMAGE, "q", "0 0 3 3", "4", "6"],
        ["2", IMAGE, "q", "0 0 3 3", "6", "4"],
        ["3", IMAGE, "q", "3 3 0 0", "4", "6"],
        ["4", encode(Image.linear_gradient("L"))[:400], "q", "0 0 3 3", "256", "256"],
    ]
    write_tsv(tmp_path / "RefCOCO_val.tsv", BOXES, rows)
    header = [*HEADER, "category"]
    write_tsv(tmp_path / "POPE.tsv", header, [["1", IMAGE, "caf\xe9?", "Yes", "random"]])
    text = (tmp_path / "POPE.tsv").read_text()
    (tmp_path / "POPE.tsv").write_bytes(text.encode("latin-1"))
    return tmp_path


@pytest.mark.parametrize("program", ["ivc-jax", SCRIPT])
def test_every_broken_row_is_listed(folder, capsys, program):
    assert main(["check", "--data-dir", str(folder)], program) == 2
    shown, error = capsys.readouterr()
    faults = [line for line in shown.splitlines() if " row " in line]
    expected = [
        "RefCOCO_val.tsv row 2 (index 2): picture is 6x4, cells say 4x6",
        "RefCOCO_val.tsv row 3 (index 3): the reference box 3 3 0 0 has no area",
        "RefCOCO_val.tsv row 4 (index 4): the image cannot be read",
        "POPE.tsv row 1: not UTF-8, save it as UTF-8",
    ]
    assert len(faults) == len(expected)
    assert all(text in line for text, line in zip(expected, faults, strict=True))
    assert "MMStar.tsv: 1 rows, nothing broken" in shown
    assert error == "error: 4 faults in 5 rows of 3 files, listed above\n"


def test_files_in_order_end_in_zero(folder, capsys):
    assert main(["check", "--data-dir", str(folder), "--tasks", "MMStar"]) == 0
    assert "MMStar.tsv: 1 rows, nothing broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data-dir", "missing-folder"], "--data-dir missing-folder is not a folder"),
        (["--data-dir", "tests"], "tests holds no file NAME.tsv of a known task"),
        (["--data-dir", "tests", "--tasks", "MME"], "tests lacks the file MME.tsv"),
        (["--data-dir", "tests", "--tasks", "sorting"], "unknown task 'sorting'"),
    ],
)
def test_errors_are_one_line(capsys, options, message):
    assert main(["check", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_examples_of_the_documentation_are_in_order(tmp_path, capsys):
    """The two rows of each kind in docs/benchmarks.md, with a picture in place of the dots."""
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    block = text.partition("```text\n")[2].partition("```")[0]
    picture = encode(Image.new("RGB", (640, 480)))
    lines = [(line[:17].strip(), line[17:].split("|")) for line in block.splitlines()]
    starts = [number for number, (kind, _) in enumerate(lines) if kind]
    kinds = [kind for kind, _ in lines if kind]
    assert kinds == list(SETS)
    for kind, start in zip(kinds, starts, strict=True):
        header, *rows = [
            [picture if cell == "iVBOR..." else cell for cell in cells]
            for _, cells in lines[start : start + 3]
        ]
        write_tsv(tmp_path / f"{SETS[kind]}.tsv", header, rows)
    assert main(["check", "--data-dir", str(tmp_path)]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("2 rows, nothing broken") == len(SETS)
