"""The IVC set of known grids: published sets, what moves them, the report and its errors."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.published import D_COS, D_SIN, E_COS, E_SIN
from PIL import Image

from digit_scenes import CHECKPOINT
from ivc_jax import ivc
from ivc_jax.commands import sets as command
from ivc_jax.families import parse_config
from ivc_jax.studies.sets import figures, measures

QWEN, LLAVA, BUNDLED = (
    measures.PRESETS[name] for name in ("qwen2.5-vl-7b", "llava-1.5-7b", "bundled")
)
# At theta 10,000 few planes turn across twelve cells.
SLOW = dataclasses.replace(BUNDLED, theta=1e4, grid=(1, 12, 12))


@pytest.fixture
def small(monkeypatch):
    """Few starts, sizes and figures."""
    monkeypatch.setattr(measures, "LAST_PREFIX", 12)
    monkeypatch.setattr(measures, "SIZES", (8, 9))
    monkeypatch.setattr(measures, "MAPPED_SIZES", (8, 9))
    monkeypatch.setattr(measures, "ASPECTS", measures.ASPECTS[1:4])
    monkeypatch.setattr(figures, "NAMES", ("maps", "prefix"))


@pytest.mark.parametrize(
    ("preset", "cos", "sin"), [(QWEN, D_COS, D_SIN), (LLAVA, E_COS, E_SIN)], ids=["qwen", "llava"]
)
def test_presets_give_the_published_sets(preset, cos, sin):
    shape = measures.describe_set(preset)
    assert shape["cos"] == cos
    assert shape["sin"] == sin
    assert shape["union"] == sorted(cos + sin)
    assert (shape["both"], shape["overlap"]) == (0, 0)
    rows, columns = np.divmod(cos, preset.grid[2])
    assert shape["cos_rows_touched"] == round(len(set(rows)) / preset.grid[1], 4)
    assert shape["cos_mean_column"] == round(np.mean(columns) / (preset.grid[2] - 1), 4)


def test_the_literal_start_of_llava_moves_its_set():
    moved = measures.describe_set(dataclasses.replace(LLAVA, prefix=5))
    assert moved["cos"] == [*range(28), 32]


def test_the_bundled_preset_is_the_checkpoint():
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert parse_config(config).decoder.rope == BUNDLED.rope


@pytest.mark.parametrize("preset", [QWEN, LLAVA], ids=["M-RoPE", "1-D"])
def test_sets_at_many_prefixes_are_those_of_each_one(preset):
    starts = [0, preset.prefix, 77]
    moved = measures.pick_at(preset, starts)
    for place, start in enumerate(starts):
        alone = measures.pick(dataclasses.replace(preset, prefix=start))
        for name, marks in alone.items():
            assert np.array_equal(moved[name][place], marks), (name, start)


def test_overlap_is_one_at_no_shift_and_below_it_elsewhere(small):
    table = measures.tabulate_prefix(BUNDLED)
    for name in ("cos", "sin", "union"):
        assert len(table[name]) == 13
        assert table[name][BUNDLED.prefix] == 1
    assert max(np.delete(table["union"], BUNDLED.prefix)) < 1
    shown = [entry for entry in table["strip"] if entry["prefix"] == BUNDLED.prefix]
    assert [entry["union"] for entry in shown] == [measures.describe_set(BUNDLED)["union"]]
    half = table["union_half"]
    assert table["union"][1 + half] < 0.5 <= min(table["union"][1 : 1 + half])


def test_overlap_counts_cells():
    first, second = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 1], bool)
    assert measures.compare(first, second) == 0.25
    assert measures.compare(first & False, second & False) == 1
    assert measures.compare(first, first) == 1
    assert measures.compare_by_chance(0.5) == 0.3333


def test_a_grid_and_its_transpose_mirror_each_other():
    waves = dict(zip(("cos", "sin"), ivc.scores(QWEN.head_dim, QWEN.theta, 40), strict=True))
    sums: dict[str, list[float]] = {"cos": [], "sin": []}
    for rows, columns in ((5, 9), (9, 5)):
        shape = measures.describe_set(dataclasses.replace(QWEN, grid=(1, rows, columns)))
        for part, found in sums.items():
            # Ties between transposed cells go by order: the scores agree, the cells need not.
            ids = QWEN.prefix + np.array(np.divmod(shape[part], columns))
            found.append(waves[part][ids].sum())
    for wide, tall in sums.values():
        assert wide == pytest.approx(tall, rel=1e-12)


def test_turns_and_range_of_the_bundled_model():
    summary = measures.summarize(BUNDLED)
    V, U = (wave[1:17] / 24 for wave in ivc.scores(48, 10.0, 17))
    for letter, wave in (("V", V), ("U", U)):
        assert summary[letter]["positions"] == 16
        assert summary[letter]["low"] == round(wave.min(), 4)
        assert summary[letter]["spread"] == round(np.ptp(wave), 4)
        assert summary[letter]["distinct_float32"] == 16
        # 16 x 16 sums of two terms, alike when transposed.
        assert summary[letter]["distinct_cells_float32"] == 136
        assert summary[letter]["distinct_cells_bfloat16"] < 136
    # Sections 6, 9, 9: plane 6 turns by 10^(-1/4) = 0.56 a row, plane 15 by 10^(-5/8) a column.
    turns = {"height": round(15 * 10**-0.25, 4), "width": round(15 * 10**-0.625, 4)}
    assert summary["largest_own_turn"] == turns
    assert summary["largest_turn"] == {"height": 15, "width": 15}
    assert summary["own_planes_past_1_rad"] == {"height": 9, "width": 9}
    assert measures.count_axis_steps(LLAVA) == {"height": 23 * 24, "width": 23}


def test_planes_that_hardly_turn_change_nothing_and_sections_much():
    table = measures.tabulate_selection(SLOW)
    bands = table["bands"]
    assert bands["without 8"] == {"cos": 1, "sin": 1, "union": 1}
    assert bands["section"]["union"] < bands["high"]["union"]
    assert list(bands)[:4] == ["high", "middle", "low", "section"]
    assert "section" not in measures.split_planes(LLAVA)
    assert table["worst_loss"]["union"] == min(
        overlaps["union"] for name, overlaps in bands.items() if name.startswith("without")
    )
    for name, curve in table["planes"].items():
        assert len(curve) == 24
        assert curve[table["best_plane"][name]] == max(curve)


def test_command_writes_tables_report_and_figures(small, tmp_path, capsys):
    out = tmp_path / "new" / "sets"
    assert command.main(["--presets", "bundled", "--out", str(out)]) == 0
    assert str(out / "report.md") in capsys.readouterr().out
    results = json.loads((out / "sets.json").read_text())
    assert results["meta"]["command"].startswith("run.py sets --presets bundled")
    assert results["presets"]["bundled"]["union"] == measures.describe_set(BUNDLED)["union"]
    assert [entry["rows"] for entry in results["grids"]["sizes"]] == [8, 9]
    assert "<title>The IVC set on the grids" in (out / "report.html").read_text()
    report = (out / "report.md").read_text()
    # What is written can be written again from the file alone.
    assert command.render(results) == report
    V = results["presets"]["bundled"]["V"]
    assert f"from {V['low']:.3f} to {V['high']:.3f} of it" in report
    for name in ("maps", "prefix"):
        assert f"figures/{name}.png" in report
        with Image.open(out / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 300


@pytest.mark.parametrize("name", ["curves", "frequency_bands", "selection"])
def test_other_figures_are_drawn(tmp_path, name):
    tables = {
        "presets": {BUNDLED.name: measures.summarize(BUNDLED)},
        "selection": {BUNDLED.name: measures.tabulate_selection(BUNDLED)},
    }
    figures.draw(tmp_path, [BUNDLED], tables | {"grids": None}, [name])
    with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--presets", "bundled", "qwen"], "unknown preset 'qwen'; known: qwen2.5-vl-7b, llava"),
        (["--presets"], "presets is empty; known: qwen2.5-vl-7b"),
        ([], "File exists"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, options, message):
    (tmp_path / "taken").write_text("")
    assert command.main([*options, "--out", str(tmp_path / "taken")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
