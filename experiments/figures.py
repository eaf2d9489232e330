"""Records under docs -> their figures again, and the tables of runs that follow from results.json.

    python experiments/figures.py                       # all of docs
    python experiments/figures.py docs/evidence/keep    # one folder

Nothing is measured: results.json, comparison.json and drawn.jsonl of a run, study_*.json of an
ablation, sets.json, lens.json and choice.json hold what their figures show. Pictures of the bundled
benchmark are drawn again where they are missing; they are the same from the same seed. The figures
of docs/evidence/cells come with their page, from `experiments/coordinates.py`.
"""

import importlib.util
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import digit_scenes.tsv
from ivc_jax.commands.pictures import find_pictures
from ivc_jax.evals.running.records import read, write_atomically
from ivc_jax.evals.schema import Row, build
from ivc_jax.reports import canvas, figures, markdown, report, tables
from ivc_jax.reports.comparison import Cell
from ivc_jax.reports.results import Results, read_meta
from ivc_jax.reports.section import Report, Section
from ivc_jax.studies import figure as study_figure
from ivc_jax.studies.calibration import pareto
from ivc_jax.studies.calibration import report as choice
from ivc_jax.studies.lens import figures as lens
from ivc_jax.studies.sets import figures as sets
from ivc_jax.studies.sets import measures
from ivc_jax.studies.study import Study
from ivc_jax.studies.table import read_row

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Cells, split, scenes, seeds.
_DRAWN_FOLDER = re.compile(r"digit_scenes(?:-\d+x\d+)?-(\w+)-(\d+)-([\d-]+)")


def redraw_run(folder: pathlib.Path) -> None:
    """Draw the figures of a run, and write the sections of its report that follow from its rows."""
    results = _read_results(folder)
    for file in results.meta.files.values():
        _draw_benchmark(pathlib.Path(file).parent)
    drawn = tuple(figures.draw(results))
    for each in drawn:
        (folder / each.path).write_bytes(each.png)
    known = {path.stem for path in (folder / "figures").iterdir()}
    assert known == {each.name for each in drawn}, f"{folder}: a figure has no record"
    sections = tables.make_scores(results), tables.make_costs(results)
    sections += (Section(report.FIGURES, figures=drawn),)
    _replace_sections(folder / "report.md", sections)


def _read_results(folder: pathlib.Path) -> Results:
    rows = json.loads((folder / "results.json").read_text())["rows"]
    cells = json.loads((folder / "comparison.json").read_text())
    return Results(
        read_meta(folder),
        [build(Row, row) for row in rows],
        tuple(read(folder / report.DRAWN)),
        compared=[Cell(**cell) for cell in cells],
    )


def _draw_benchmark(folder: pathlib.Path) -> None:
    """Draw the bundled benchmark of a run where it is gone; its folder says which."""
    named = _DRAWN_FOLDER.fullmatch(folder.name)
    if named and not folder.exists():
        folder.mkdir(parents=True)
        seeds = tuple(map(int, named[3].split("-")))
        digit_scenes.tsv.write(folder, int(named[2]), seeds, named[1])


def _replace_sections(path: pathlib.Path, sections: Iterable[Section]) -> None:
    """Put sections in the place of those with the same titles in a report."""
    text = path.read_text()
    for section in sections:
        new = markdown.render(Report("", "", {}, (section,))).partition("\n## ")[2]
        start = text.index(f"\n## {section.title}\n")
        end = text.find("\n## ", start + 1)
        rest = text[end:] if end >= 0 else ""
        text = f"{text[:start]}\n## {new.rstrip()}\n{rest}"
    write_atomically(path, text)


def redraw_studies(folder: pathlib.Path) -> None:
    """Draw the figure of each study, as the configuration of that name asks for it."""
    studies = {study.name: study for study in _load_studies(folder.name)}
    for path in sorted(folder.glob("study_*.json")):
        study = studies[path.stem.removeprefix("study_")]
        rows = [read_row(row) for row in json.loads(path.read_text())["rows"]]
        drawn = study_figure.draw(study, rows)
        (folder / "figures" / f"{study.name}.png").write_bytes(canvas.render(drawn))
        _write_caption(folder, study)


def _load_studies(name: str) -> Sequence[Study]:
    path = ROOT / "experiments" / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONFIG.studies


def _write_caption(folder: pathlib.Path, study: Study) -> None:
    """Put the caption behind the image of a study in place of the paragraph there, if any."""
    image = f"](figures/{study.name}.png)\n"
    before, found, after = (folder / "report.md").read_text().partition(image)
    paragraphs = after.lstrip("\n").split("\n\n")
    if not re.match(r"[#|!]", paragraphs[0]):
        paragraphs = paragraphs[1:]
    caption = markdown.wrap(study_figure.CAPTIONS[study.figure])
    text = "\n\n".join((f"{before}{found}", caption, *paragraphs)).replace(")\n\n\n", ")\n\n")
    write_atomically(folder / "report.md", text.rstrip("\n") + "\n")


def redraw_sets(folder: pathlib.Path) -> None:
    """Draw the figures of `sets`."""
    content = json.loads((folder / "sets.json").read_text())
    sets.draw(folder, measures.find(list(content["presets"])), content)


def redraw_lens(folder: pathlib.Path) -> None:
    """Draw the figures of `lens`."""
    content = json.loads((folder / "lens.json").read_text())
    target = folder / "figures"
    lens.draw_layers(target / "layers.png", content["layers"])
    lens.draw_overlap(target / "overlap.png", content["shares"], content["rows"])
    meta, drawn = content["meta"], content["drawn"]
    _, asked = find_pictures(None, meta["pictures"], meta["held_out"])
    lens.draw_maps(target / "maps.png", [picture for picture, _ in asked[: len(drawn)]], drawn)


def redraw_choice(folder: pathlib.Path) -> None:
    """Draw the figure of `choose-layer`."""
    content = json.loads((folder / "choice.json").read_text())
    fields = pareto.Row.__dataclass_fields__
    dense, *rows = (pareto.Row(**{name: row[name] for name in fields}) for row in content["rows"])
    (chosen,) = (row for row in rows if row.spec == content["choice"]["spec"])
    choice.save_figure(folder, dense, rows, chosen)


_KINDS: dict[str, Callable[[pathlib.Path], Any]] = {
    "results.json": redraw_run,
    "study_*.json": redraw_studies,
    "sets.json": redraw_sets,
    "lens.json": redraw_lens,
    "choice.json": redraw_choice,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw again from the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    folders = [pathlib.Path(name) for name in given]
    folders = folders or sorted({path.parent for path in (ROOT / "docs").rglob("figures")})
    for folder in folders:
        for pattern, redraw in _KINDS.items():
            if any(folder.glob(pattern)):
                redraw(folder)
                print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
