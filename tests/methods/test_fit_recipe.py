"""The command that finds FitPrune's recipe for a model."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import ivc_jax

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def find(monkeypatch, tiny_hf):
    """Give the command for a tiny model, two pictures and one alpha, a half: one program."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import fit_pore
    import fit_recipe

    monkeypatch.setattr(fit_pore, "_BATCH", 2)
    search = partial(fit_recipe.search_recipe, interval=0.5)
    monkeypatch.setattr(fit_recipe, "search_recipe", search)
    options = ["--model", str(tiny_hf(num_hidden_layers=3)), "--pairs", "2"]
    return lambda *more: fit_recipe.main([*options, *more])


def test_the_recipe_is_recorded_and_printed_as_a_method(find, tmp_path, capsys):
    path = tmp_path / "made" / "fit.json"
    assert find("--reduction", "0.1", "--min-cut", "0", "--out", str(path)) == 0
    record = json.loads(path.read_text())
    assert record["method"] in capsys.readouterr().out
    assert (record["tokens"], record["alpha"]) == (64, 0.5)
    assert record["command"].startswith("fit_recipe.py --model ")
    left = 1 - np.cumsum(record["recipe"]) / 64
    assert left[0] < 1
    assert left[-1] == left[-2]  # nothing leaves behind the last block
    method = ivc_jax.methods.parse(record["method"])
    np.testing.assert_allclose(method.ratios, left[np.array(method.layers) - 1])


@pytest.mark.parametrize(
    ("reduction", "message"),
    [
        ("0.99", "error: no recipe saves 99% of the FLOPs: ask for less\n"),
        ("1.5", "error: reduction must be in (0, 1), got 1.5\n"),
    ],
)
def test_what_cannot_be_saved_is_one_line(find, tmp_path, capsys, reduction, message):
    path = tmp_path / "fit.json"
    assert find("--reduction", reduction, "--out", str(path)) == 2
    assert capsys.readouterr().err == message
    assert not path.exists()
