"""Ablations: rows, paired differences and tests, on records whose answers are known."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.records import make_meta, make_record

from ivc_jax.commands.settings import list_configs, load_config
from ivc_jax.methods import parse
from ivc_jax.reports import report
from ivc_jax.reports.resampling import Resampler, adjust, average_by_task, subtract
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Cell
from ivc_jax.studies import ablation, figure
from ivc_jax.studies.study import Study, Variant, list_methods, read_study
from ivc_jax.studies.table import ALL, list_shown_groups, tabulate

FULL = "ivc:keep_ratio=0.5"
STUDY = Study(
    name="layers",
    title="Layers",
    question="Which?",
    reference=FULL,
    variants=(
        Variant(FULL, "ivc", x=3),
        Variant("ivc:layer=1,keep_ratio=0.5", "ivc", x=1),
        Variant("random:keep_ratio=0.5", "random", x=1, versus="ivc"),
        Variant("random:keep_ratio=0.5,seed=1", "random", x=1, versus="ivc"),
        Variant("never:ran=1", "ivc", x=2),
    ),
    figure="lines",
    x_label="layer",
)
SCORES = {  # by specification: six answers on grounding, two on colour; two questions a picture
    "dense": ([1, 1, 1, 1, 1, 1], [1, 1]),
    FULL: ([1, 1, 1, 1, 0, 0], [1, 1]),
    "ivc:layer=1,keep_ratio=0.5": ([1, 1, 0, 0, 0, 0], [1, 0]),
    "random:keep_ratio=0.5": ([0, 0, 0, 0, 0, 0], [1, 1]),
    "random:keep_ratio=0.5,seed=1": ([1, 0, 0, 0, 0, 0], [0, 0]),
}


def record(method, task, number, score):
    return make_record(
        method=method, task=f"DigitScenes_{task}", example_id=str(number), score=float(score),
        picture=str(number // 2), visual_tokens=100, kept_tokens=50, flops=2.0,
    )  # fmt: skip


RECORDS = [
    record(method, task, number, score)
    for method, tasks in SCORES.items()
    for task, scores in zip(("grounding", "colour"), tasks, strict=True)
    for number, score in enumerate(scores)
]


@pytest.fixture(scope="module")
def rows():
    return {(row.series, row.x): row for row in tabulate(STUDY, RECORDS)}


def test_rows_have_scores_and_differences(rows):
    assert list(rows) == [("ivc", 3), ("ivc", 1), ("random", 1)]  # what never ran drops out
    early = rows["ivc", 1].cells["grounding"]
    assert early.score == pytest.approx(1 / 3)
    assert early.difference == pytest.approx(-1 / 3)
    assert rows["ivc", 1].versus == FULL
    average = rows["ivc", 1].cells[ALL]
    assert average.score == pytest.approx((1 / 3 + 1 / 2) / 2)  # tasks weigh alike
    assert average.difference == pytest.approx((-1 / 3 - 1 / 2) / 2)


def test_seeds_are_pooled_and_compared_with_their_control(rows):
    random = rows["random", 1]
    assert len(random.specs) == 2
    assert random.versus == "ivc"
    assert random.cells["grounding"].score == pytest.approx(1 / 12)
    assert random.cells["grounding"].difference == pytest.approx(1 / 12 - 1 / 3)
    assert random.cells["DigitScenes_colour"].difference == pytest.approx(0)


def test_the_reference_is_compared_with_nothing(rows):
    cell = rows["ivc", 3].cells["grounding"]
    assert rows["ivc", 3].versus == ""
    assert math.isnan(cell.difference)
    assert math.isnan(cell.p_holm)


def test_groups_shown_are_without_single_tasks():
    rows = tabulate(STUDY, RECORDS)
    assert list_shown_groups([(STUDY, rows)]) == ["grounding", "semantic", ALL]


def scores_of(values, pictures):
    records = [
        make_record(task="t", example_id=str(n), score=float(v), picture=str(p))
        for n, (v, p) in enumerate(zip(values, pictures, strict=True))
    ]
    return Resampler(records), average_by_task(records, ["t"])


def test_p_is_the_share_of_sign_flips_at_least_as_extreme():
    resampler, scores = scores_of([1] * 8, range(8))
    # All eight signs equal: 2 of 256 draws.
    assert resampler.p_value(scores) == pytest.approx(2 / 256, abs=0.003)
    resampler, scores = scores_of([1, -1, 1, -1], range(4))
    assert resampler.p_value(scores) == 1.0
    resampler, scores = scores_of([0, 0, 0], range(3))
    assert resampler.p_value(scores) == 1.0


def test_questions_about_one_picture_count_as_one_draw():
    values = np.repeat(np.arange(40) % 2, 4)
    alone, scores = scores_of(values, range(160))
    together, _ = scores_of(values, np.repeat(np.arange(40), 4))
    mean, low, high = alone.interval(scores)
    wide_mean, wide_low, wide_high = together.interval(scores)
    assert mean == wide_mean == 0.5
    # Four times fewer independent draws: twice the width.
    assert (wide_high - wide_low) / (high - low) == pytest.approx(2, rel=0.15)
    few = [1, 1, 1, 1, 1, 1, -1, -1]
    alone, scores = scores_of(few, range(8))
    together, _ = scores_of(few, [0, 0, 0, 0, 0, 0, 1, 1])
    assert alone.p_value(scores) == pytest.approx(74 / 256, abs=0.02)  # at least 6 or at most 2
    assert together.p_value(scores) == 1.0  # |6 - 2| is the least of all sums


def test_intervals_are_those_of_the_binomial():
    resampler, scores = scores_of(np.arange(400) < 300, range(400))
    _, low, high = resampler.interval(scores)
    error = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - error, 0.75 + error), abs=0.006)


def test_pairs_drop_what_one_side_lacks():
    assert subtract({"t": {"a": 1.0, "b": 0.0}}, {"t": {"a": 0.5, "c": 1.0}}) == {"t": {"a": 0.5}}


def test_holm_by_hand():
    adjusted = adjust([0.01, 0.04, 0.03, math.nan, 0.9])
    assert adjusted[:3] == pytest.approx([0.04, 0.09, 0.09])
    assert math.isnan(adjusted[3])
    assert adjusted[4] == pytest.approx(0.9)
    assert adjust([0.6, 0.7]) == [1.0, 1.0]


def test_figures_have_what_is_asked():
    drawn = figure.draw(STUDY, tabulate(STUDY, RECORDS))
    assert [axes.get_title() for axes in drawn.axes] == ["grounding", "semantic", ALL]
    x, y = drawn.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, [1, 3])
    np.testing.assert_allclose(y, [100 / 3, 200 / 3])

    listed = dataclasses.replace(STUDY, figure="rows")
    drawn = figure.draw(listed, tabulate(listed, RECORDS))
    names = [text.get_text() for text in drawn.axes[0].get_yticklabels()]
    assert len(names) == 2  # the reference has no difference

    variants = tuple(dataclasses.replace(v, x=n, y=1) for n, v in enumerate(STUDY.variants))
    heat = dataclasses.replace(STUDY, figure="heat", variants=variants)
    drawn = figure.draw(heat, tabulate(heat, RECORDS))
    shown = drawn.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown[0], [200 / 3, 100 / 3, 0, 100 / 6])
    assert figure.draw(STUDY, []) is None


def test_a_study_is_a_section_with_table_figure_and_numbers():
    empty = dataclasses.replace(STUDY, reference="dense", variants=STUDY.variants[-1:])
    studies = [dataclasses.asdict(study) for study in (STUDY, empty)]
    (section,) = ablation.make_sections(Results(make_meta(studies=studies), [], RECORDS))
    assert section.title == "Layers"
    assert report.FIGURES in section.replaces
    (table,) = section.tables
    groups = [
        name for group in ("grounding", "semantic", ALL) for name in (group, "difference", "p")
    ]
    assert list(table.columns) == [
        *("layer", "series", "variant", "kept", "cached", "GFLOP", "versus"), *groups,
    ]  # fmt: skip
    first, second, _ = table.rows
    assert first[:7] == ("3", "ivc", "", "0.500", "0.500", "2e-09", "-")
    assert first[8:10] == (Cell("-"), Cell("-"))  # the reference is compared with nothing
    assert (second[7].text, second[8].text, second[8].mark) == ("33.3", "-33.3", "")
    (drawn,) = section.figures
    assert (drawn.path, drawn.png[:4]) == ("figures/layers.png", b"\x89PNG")
    content = json.loads(section.files["study_layers.json"])
    assert content["study"] == {"title": "Layers", "question": "Which?", "reference": FULL}
    assert content["meta"]["commits"] == ["abc"]
    assert len(content["rows"]) == 3
    assert ablation.make_sections(Results(make_meta(), [], RECORDS)) == []


def test_studies_say_what_is_wrong():
    with pytest.raises(ValueError, match="no variant is the reference 'fastv'"):
        dataclasses.replace(STUDY, reference="fastv")
    with pytest.raises(ValueError, match="figure must be one of"):
        dataclasses.replace(STUDY, figure="pie")
    with pytest.raises(ValueError, match="has no y"):
        dataclasses.replace(STUDY, figure="heat")
    assert read_study(dataclasses.asdict(STUDY)) == STUDY


@pytest.mark.parametrize("name", list_configs())
def test_studies_of_the_configurations_fit_their_methods(name):
    config = load_config(name)
    for study in config.studies:
        assert set(list_methods([study])) <= set(config.methods)
        rows = {(v.series, v.label, v.x, v.y) for v in study.variants}
        for variant in study.variants:
            parse(variant.spec)
            if variant.versus is not None:
                assert (variant.versus, variant.label, variant.x, variant.y) in rows
