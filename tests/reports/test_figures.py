"""Figures: legends inside the canvas, lines that are pooled, greyed and compared with dense."""

import io

import numpy as np
import pytest
from helpers.records import make_meta, make_record, make_row
from matplotlib import pyplot
from PIL import Image

from ivc_jax.reports import canvas, colours, comparison, figures
from ivc_jax.reports.results import Results
from ivc_jax.studies import figure as study_figure
from ivc_jax.studies.study import Study, Variant
from ivc_jax.studies.table import Cell, Row

LONG = "a_long_name:first_field=0.123456,second_field=some/long/value,third_field={},fourth_field=2"
NAMES = [LONG.format(number) for number in range(12)]


def cells(names):
    shares = {"cached_share": 0.5, "kept_share": 0.5, "kv_bytes": 1.0, "flops": 1.0}
    values = dict.fromkeys(("low", "high", "difference", "difference_low", "difference_high"), 0.5)
    for group in ("grounding", comparison.ALL):
        yield comparison.Cell("dense", 1.0, group, 1, 0.9, **values, **shares)
        for number, name in enumerate(names):
            yield comparison.Cell(name, 0.5, group, 1, number / 20, **values, **shares)


def scores(specs):
    rows = [
        make_row(task, spec, number / 20, metrics={"cached_share": 0.1 + number / 40})
        for task in ("DigitScenes_grounding", "DigitScenes_colour", "average")
        for number, spec in enumerate(specs)
    ]
    return Results(make_meta(methods=list(specs)), rows)


def study_rows(names):
    values = dict.fromkeys(("low", "high", "difference_low", "difference_high", "p"), 0.5)
    for number, name in enumerate(names):
        for x in (1, 2):
            cell = Cell(score=number / 20, difference=number / 20 - 0.9, **values)
            yield Row(name, "", x, None, ("a",), "dense", 0.5, 0.5, 1.0, 4, {"average": cell})


def draw_study(names):
    variants = tuple(Variant(name, name, x=1) for name in names)
    study = Study("s", "S", "?", "dense", variants, figure="lines", x_label="layer")
    return study_figure.draw(study, list(study_rows(names)))


DRAWN = {
    "scores": lambda: figures.draw_scores(scores(["dense", *NAMES])),
    "budgets": lambda: figures.draw_budgets(list(cells(NAMES))),
    "study": lambda: draw_study(NAMES),
}


@pytest.fixture(scope="module", params=DRAWN)
def drawn(request):
    figure = DRAWN[request.param]()
    figure.canvas.draw()
    yield figure
    pyplot.close(figure)


def test_legends_are_inside_the_canvas_and_beside_the_panels(drawn):
    (legend,) = drawn.legends
    box = legend.get_window_extent()
    assert 0 < box.x0 < box.x1 < drawn.bbox.width
    assert 0 < box.y0 < box.y1 < drawn.bbox.height
    for axes in drawn.axes:
        if axes.axison:
            assert axes.get_tightbbox().y0 >= box.y1 - 1  # pixels
            assert axes.get_window_extent().height > 0.1 * drawn.bbox.height


def test_nothing_touches_the_edge_of_the_file(drawn):
    pixels = np.asarray(Image.open(io.BytesIO(canvas.render(drawn))).convert("RGB"))
    inner = np.zeros(pixels.shape[:2], bool)
    inner[6:-6, 6:-6] = True
    assert (pixels[~inner] == 255).all()
    assert (pixels[inner] < 128).any()


def test_eight_lines_have_a_colour_and_the_rest_is_grey_and_counted(drawn):
    texts = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert texts[-2:] == ["dense", "4 others, in the table"]
    assert len(texts) == 10
    panel = drawn.axes[0]
    lines = [
        line for line in panel.lines if len(line.get_xdata()) and line.get_color() == colours.REST
    ]
    assert len(lines) == 4
    assert sum(line.get_label() == "dense" for line in panel.lines) == 1


def test_panels_in_a_row_have_one_range(drawn):
    assert len({axes.get_ylim() for axes in drawn.axes if axes.axison}) == 1


def test_axes_name_their_units(drawn):
    panel = drawn.axes[0]
    assert panel.get_ylabel() == "score (%)"
    assert panel.get_xlabel() in ("visual tokens in the cache (%)", "layer")


def test_names_break_at_commas():
    assert canvas.wrap("short,name", 20) == "short,name"
    assert canvas.wrap("first=1,second=2", 10) == "first=1,\nsecond=2"
    assert max(map(len, canvas.wrap("x" * 50, 20).splitlines())) == 20


def test_seeds_are_one_point_and_budgets_one_line():
    specs = [f"random:budget={b},seed={seed}" for b in (0.5, 0.25) for seed in (0, 1)]
    series = figures.pool_rows(scores(["dense", *specs, "ivc:keep_ratio=0.5"]))
    assert list(series) == ["dense", "random", "ivc"]
    first, second = series["random"]["average"]  # from few tokens to many
    assert (first.score, second.score) == (pytest.approx(1.5 / 20), pytest.approx(3.5 / 20))
    assert np.isnan(first.low)


def test_a_field_that_follows_the_budget_makes_no_line():
    specs = ["fastv+pore:sigma=5.9,budget=0.5", "fastv+pore:sigma=3.8,budget=0.25"]
    specs += ["random:layer=0,budget=0.5", "random:budget=0.5"]
    assert list(figures.pool_rows(scores(specs))) == ["fastv+pore", "random:layer=0", "random"]


def test_dense_of_a_study_follows_from_what_was_compared_with_it():
    rows = list(study_rows(["ivc", "fastv"]))
    assert study_figure.find_dense(rows, "average") == pytest.approx(0.9)
    assert study_figure.find_dense([], "average") is None


def test_records_that_are_drawn_are_enough_to_draw_them_again():
    ends = {"picture": "p", "grids": [[1, 2, 5]], "example_id": "7"}
    methods = ["dense", *(f"{name}:budget={b}" for name in ("ivc", "random") for b in (0.5, 0.25))]
    tasks = ["DigitScenes_grounding", "DigitScenes_colour"]
    records = [
        make_record(task=task, method=method, score=float(number % 2), **ends | {"example_id": one})
        for task in tasks
        for one in ("7", "8")
        for number, method in enumerate(methods, 1)
    ]
    whole = Results(make_meta(methods=methods, tasks=tasks), [], records)
    drawn = figures.list_drawn_records(whole)
    assert [(record.task, record.method) for record in drawn] == [
        (t, m) for t in tasks for m in methods
    ]
    assert {record.example_id for record in drawn} == {"7"}
    assert figures.list_drawn_records(Results(whole.meta, [], drawn)) == drawn


def test_many_methods_are_drawn_at_one_budget():
    methods = ["dense", *(f"m{n}:budget={b}" for n in range(8) for b in (0.5, 0.2, 0.1))]
    records = [make_record(method=method, grids=[[1, 2, 5]]) for method in methods]
    meta = make_meta(methods=methods, tasks=["DigitScenes_colour"])
    drawn = figures.list_drawn_records(Results(meta, [], records))
    assert [record.method for record in drawn] == ["dense", *(f"m{n}:budget=0.2" for n in range(8))]
    assert figures.list_drawn_records(Results(meta, [], drawn)) == drawn
