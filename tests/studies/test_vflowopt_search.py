"""The search for VFlowOpt's settings: its objective, its masked trials, restarts, presets."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from helpers.batches import show_pictures

import ivc_jax
from ivc_jax.commands.main import main
from ivc_jax.engine.modules import METHODS, Stored
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import MethodError, VFlowOpt, parse
from ivc_jax.methods.vflowopt_trial import TABLES, Trial
from ivc_jax.studies import vflowopt
from ivc_jax.studies.vflowopt import Objective, Ranges, SearchError, compare, search

pytest.importorskip("optuna")

RANGES = {"first": (0.3, 0.5), "threshold": (0.0, 50.0)}


def test_the_objective_is_the_cosine_of_the_specification():
    one, other = np.array([[0.2, -0.5, 1, 0.3]]), np.array([[0.1, -0.4, 1.1, 0.5]])
    np.testing.assert_allclose(compare(one, other), [0.98013], atol=5e-6)


def test_ranges_are_those_of_the_specification():
    found = Ranges().resolve(0.25)
    assert found == {
        "first": (0.25, 0.375),
        "second": (0.533, 1.0),
        "threshold": (0.0, 50.0),
        "cell": (3.0, 24.0),
        "alpha": (-1.0, 1.0),
    }
    assert Ranges().resolve(0.8)["first"] == (0.8, 1.0)
    for wrong in ({"second": (0.9, 0.5)}, {"first": (0.0, 0.5)}, {"cell": (0.5, 3.0)}):
        with pytest.raises(SearchError):
            Ranges(**wrong).resolve(0.5)


def hill(numbers):
    """A hill with its top at 0.4 and 20, and nothing at all beyond 45."""
    if numbers["threshold"] > 45:
        return 0.0
    return 1 - (numbers["first"] - 0.4) ** 2 - ((numbers["threshold"] - 20) / 50) ** 2


def test_a_search_that_goes_on_ends_where_an_undisturbed_one_does(tmp_path):
    undisturbed = list(search(hill, RANGES, tmp_path / "whole", trials=24, starts=8, seed=3))
    journal = tmp_path / "torn"
    for count in (3, 11):
        list(search(hill, RANGES, journal, trials=count, starts=8, seed=3))
        with journal.open("a") as file:
            file.write('{"trial": 99, "val')  # killed while it wrote
    asked = []
    again = list(
        search(
            lambda numbers: asked.append(numbers) or hill(numbers),
            *(RANGES, journal),
            trials=24,
            starts=8,
            seed=3,
        )
    )
    assert again == undisturbed
    assert len(asked) == 13  # what is in the journal is not tried anew
    assert journal.read_text() == (tmp_path / "whole").read_text()
    values = [value for *_, value in undisturbed]
    assert max(values[8:]) > max(values[:8])
    other = list(search(hill, RANGES, tmp_path / "other", trials=3, starts=8, seed=4))
    assert other != undisturbed[:3]
    for ranges, more in (({"first": (0.1, 0.2)}, {"seed": 3}), (RANGES, {"seed": 4})):
        with pytest.raises(SearchError, match="trials of another search"):
            list(search(hill, ranges, journal, trials=2, **more))
    with pytest.raises(SearchError, match="trials of another search"):
        list(search(hill, RANGES, journal, trials=2, seed=3, about={"budget": 0.1}))


def test_without_optuna_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'ivc_jax\[search\]'"):
        next(search(hill, RANGES, tmp_path / "journal"))


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(num_hidden_layers=4), dtype="float32")


def test_masked_trials_are_the_method_itself_and_one_program(model):
    model, processor = model
    inputs = collate(show_pictures(processor), model.config)
    objective = Objective(model, [inputs], 0.4, None)
    settings = [(0.5, 0.7, 1.1, 2.3, 0.3), (1.0, 0.6, 9.0, 1.5, 0.0)]
    methods = [
        VFlowOpt(
            layers=objective.layers, ratios=(first, first * second, first * second * 0.6),
            threshold=threshold, cell=cell, alpha=alpha,
        )
        for first, second, threshold, cell, alpha in settings
    ]  # fmt: skip
    before = vflowopt._run_last._cache_size()
    found = [objective.score(method) for method in methods]
    assert vflowopt._run_last._cache_size() == before + 1
    assert all(0 < value < 1 for value in found)
    for method in methods:
        tables = vars(method.tabulate(inputs.layout.visual_slots))
        arrays = {name: np.float32(x) if np.ndim(x) == 0 else x for name, x in tables.items()}
        params = {**model.params, METHODS: {TABLES: Stored(arrays, TABLES)}}
        masked = ivc_jax.prefill(
            dataclasses.replace(model, params=params), inputs, Trial(objective.layers)
        )
        real = ivc_jax.prefill(model, inputs, method)
        for one, other in zip(masked.kept, real.kept, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(masked.logits, real.logits, rtol=0, atol=1e-4)


def test_what_cannot_be_scores_nothing(model):
    model, processor = model
    inputs = collate(show_pictures(processor), model.config)
    objective = Objective(model, [inputs], 0.2, None)
    numbers = {"first": 0.9, "second": 1.0, "threshold": 1.0, "cell": 3.0, "alpha": 0.0}
    assert objective.make(numbers) is None
    assert objective(numbers) == 0
    objective.dense = [np.full_like(objective.dense[0], np.nan)]
    assert objective(numbers | {"first": 0.2}) == 0


def test_the_command_writes_a_preset_that_the_method_reads(tiny_hf, tmp_path, capsys):
    path, out = tiny_hf(num_hidden_layers=4), tmp_path / "out"
    given = ["vflowopt-search", "--model", str(path), "--budget", "0.4", "--limit", "2"]
    given += ["--held-out", "2", "--trials", "5", "--starts", "2", "--out", str(out)]
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    from PIL import Image

    for number in range(4):
        pixels = random.integers(0, 256, (56, 84, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    given += ["--images", str(folder)]
    assert main(given) == 0
    printed = capsys.readouterr().out
    record = json.loads((out / "search.json").read_text())
    assert record["trials"] == len(record["values"]) == 5
    assert record["best"]["searched"] == pytest.approx(max(record["values"]), abs=1e-6)
    assert {"best: ", "default: ", "preset: "} <= {line[: line.index(":") + 2] for line in
                                                  printed.splitlines() if ":" in line}  # fmt: skip
    method = parse(f"vflowopt:preset={out / 'preset.json'}")
    assert method == parse(record["best"]["spec"])
    assert method.preset is None
    trials = (out / "trials.jsonl").read_text()
    assert main(given) == 0  # nothing is tried anew
    assert (out / "trials.jsonl").read_text() == trials
    capsys.readouterr()
    # other sizes of the pictures are other scores
    assert main([*given, "--max-pixels", "3136"]) == 2
    assert "holds trials of another search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (None, "", "cannot be read: No such file"),
        ("{}", "", "is no preset that `ivc-jax vflowopt-search` has written"),
        ("{}", ",budget=0.5", "preset and budget exclude each other"),
        ("{}", ",cell=2.5", "preset and cell exclude each other"),
    ],
)
def test_a_preset_that_cannot_be_is_one_line(tmp_path, content, more, message):
    path = tmp_path / "preset.json"
    if content:
        path.write_text(content)
    with pytest.raises(MethodError, match=message):
        parse(f"vflowopt:preset={path}{more}")
