"""The sections of a report on ablations: a table and a figure a study, and its numbers as JSON."""

import dataclasses
import json
import math

from ivc_jax.reports import report, tables
from ivc_jax.reports.labels import write_rows_note
from ivc_jax.reports.results import Results
from ivc_jax.reports.section import Cell, Section, Table
from ivc_jax.studies import table
from ivc_jax.studies.study import Study, read_study

# what of the run's meta goes into the JSON of each study
_META = ("command", "commits", "date", "device", "dtype", "jax_version", "model", "limit")
# A run of studies has dozens of variants of one method: its figures are those of the studies.
_REPLACED = (tables.CATEGORIES, report.FIGURES, tables.ANSWERS)
_TEXT = (
    "Scores in percent with 95 % bootstrap intervals over pictures; differences in points are "
    "paired by example, to the column `versus`; p from flipping signs by picture, adjusted (Holm) "
    "for all rows of this table; marked where it is below 0.05. `kept`: share left after the last "
    "cut, `cached`: mean over layers."
)


def make_sections(results: Results) -> list[Section]:
    """Make a section of each study that the run was made for and that has rows."""
    studies = [read_study(content) for content in results.meta.studies]
    # All studies are tabulated before any is written: their tables have the same groups as columns.
    tabulated = [(study, table.tabulate(study, results.records)) for study in studies]
    groups = table.list_shown_groups(tabulated)
    return [_make_section(study, rows, groups, results) for study, rows in tabulated if rows]


def _make_section(
    study: Study, rows: list[table.Row], groups: list[str], results: Results
) -> Section:
    from ivc_jax.reports import figures  # matplotlib takes a while to import
    from ivc_jax.studies import figure

    drawn = figure.draw(study, rows)
    saved = ()  # no figure where no row is compared with another
    if drawn is not None:
        caption = figure.CAPTIONS[study.figure]
        saved = (figures.save(study.name, study.title, caption, drawn),)
    content = {
        "meta": {name: getattr(results.meta, name) for name in _META},
        "study": {name: getattr(study, name) for name in ("title", "question", "reference")},
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    return Section(
        study.title,
        (study.question, _TEXT + write_rows_note(results.meta.tasks)),
        (_make_table(study, rows, groups),),
        saved,
        files={f"study_{study.name}.json": json.dumps(content, indent=1) + "\n"},
        replaces=_REPLACED,
    )


def _make_table(study: Study, rows: list[table.Row], groups: list[str]) -> Table:
    # only the axes that the study names
    axes = [(name, axis) for name, axis in ((study.x_label, "x"), (study.y_label, "y")) if name]
    columns = [name for name, _ in axes]
    columns += ["series", "variant", "kept", "cached", "GFLOP", "versus"]
    columns += [name for group in groups for name in (group, "difference", "p")]
    lines = []
    for row in rows:
        line = [f"{getattr(row, axis):g}" for _, axis in axes]
        line += [row.series, row.label, f"{row.kept_share:.3f}", f"{row.cached_share:.3f}"]
        line += [f"{row.flops / 1e9:.3g}", row.versus or "-"]
        for group in groups:
            cell = row.cells[group]
            line += [
                tables.write_score(cell),
                tables.write_difference(cell, marked=False),
                _write_p(cell),
            ]
        lines.append(tuple(line))
    return Table(tuple(columns), tuple(lines))


def _write_p(cell: table.Cell) -> Cell:
    """Write an adjusted p value; "-" where nothing was compared."""
    if math.isnan(cell.p_holm):
        return Cell("-")
    # 10,000 flips cannot show much less (`ivc_jax.reports.resampling`)
    text = "<0.001" if cell.p_holm < 0.001 else f"{cell.p_holm:.3f}"
    return Cell(text, mark="best" if cell.p_holm < 0.05 else "")
