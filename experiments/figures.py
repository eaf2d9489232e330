"""Records under docs -> their figures again, and the tables of runs that follow from results.json.

    python experiments/figures.py                       # all of docs
    python experiments/figures.py docs/evidence/keep    # one folder

Nothing is measured: results.json, comparison.json and drawn.jsonl of a run, study_*.json of an
ablation, sets.json, lens.json and choice.json hold what their figures show. Pictures of the bundled
benchmark are drawn again where they are missing; they are the same from the same seed. The figures
of docs/evidence/cells come with their page, from `experiments/coordinates.py`. A record that cannot
be drawn is a ValueError, which names its file and what is missing.
"""

import contextlib
import importlib.util
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def _load(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


@contextlib.contextmanager
def _name(path: pathlib.Path) -> Iterator[None]:
    """Name the file of a record in what is raised where it does not hold what is drawn."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} has no {error}") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def redraw_run(folder: pathlib.Path) -> None:
    """Draw the figures of a run, and write the sections of its report that follow from its rows."""
    results = _read_results(folder)
    for file in results.meta.files.values():
        _draw_benchmark(pathlib.Path(file).parent)
    with _name(folder / "results.json"):
        drawn = tuple(figures.draw(results))
        sections = tables.make_scores(results), tables.make_costs(results)
    gone = set(folder.glob("figures/*")) - {folder / each.path for each in drawn}
    if gone:
        records = f"results.json, comparison.json or {report.DRAWN}"
        raise ValueError(f"{sorted(gone)[0]} does not follow from {records}")
    _replace_sections(folder / "report.md", (*sections, Section(report.FIGURES, figures=drawn)))
    for each in drawn:
        (folder / each.path).write_bytes(each.png)


def _read_results(folder: pathlib.Path) -> Results:
    path = folder / "results.json"
    content = _load(path)
    with _name(path):
        meta, rows = read_meta(folder), [build(Row, row) for row in content["rows"]]
    path = folder / "comparison.json"
    content = _load(path)
    with _name(path):
        compared = [build(Cell, cell) for cell in content]
    path = folder / report.DRAWN
    if not path.exists():
        raise ValueError(f"{path}: no such file, which holds the examples that figures show")
    return Results(meta, rows, tuple(read(path)), compared=compared)


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
        if f"\n## {section.title}\n" not in text:
            raise ValueError(f"{path} has no section {section.title!r}")
        new = markdown.render(Report("", "", {}, (section,))).partition("\n## ")[2]
        start = text.index(f"\n## {section.title}\n")
        end = text.find("\n## ", start + 1)
        rest = text[end:] if end >= 0 else ""
        text = f"{text[:start]}\n## {new.rstrip()}\n{rest}"
    write_atomically(path, text)


def redraw_studies(folder: pathlib.Path) -> None:
    """Draw the figure of each study, as the configuration of that name asks for it."""
    studies = {study.name: study for study in _load_studies(folder)}
    for path in sorted(folder.glob("study_*.json")):
        name, content = path.stem.removeprefix("study_"), _load(path)
        if name not in studies:
            raise ValueError(f"{path}: experiments/configs/{folder.name}.py has no study {name!r}")
        with _name(path):
            rows = [read_row(row) for row in content["rows"]]
            drawn = study_figure.draw(studies[name], rows)
        if drawn is None:
            raise ValueError(f"{path} has no rows to draw")
        _write_caption(folder, studies[name])
        (folder / "figures" / f"{name}.png").write_bytes(canvas.render(drawn))


def _load_studies(folder: pathlib.Path) -> Sequence[Study]:
    path = ROOT / "experiments" / "configs" / f"{folder.name}.py"
    if not path.exists():
        raise ValueError(f"{folder}: its studies have no configuration {path}")
    spec = importlib.util.spec_from_file_location(folder.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONFIG.studies


def _write_caption(folder: pathlib.Path, study: Study) -> None:
    """Put the caption behind the image of a study in place of the paragraph there, if any."""
    image, path = f"](figures/{study.name}.png)\n", folder / "report.md"
    before, found, after = path.read_text().partition(image)
    if not found:
        raise ValueError(f"{path} does not show figures/{study.name}.png")
    paragraphs = after.lstrip("\n").split("\n\n")
    if not re.match(r"[#|!]", paragraphs[0]):
        paragraphs = paragraphs[1:]
    caption = markdown.wrap(study_figure.CAPTIONS[study.figure])
    text = "\n\n".join((f"{before}{found}", caption, *paragraphs)).replace(")\n\n\n", ")\n\n")
    write_atomically(path, text.rstrip("\n") + "\n")


def redraw_sets(folder: pathlib.Path) -> None:
    """Draw the figures of `sets`."""
    content = _load(folder / "sets.json")
    with _name(folder / "sets.json"):
        sets.draw(folder, measures.find(list(content["presets"])), content)


def redraw_lens(folder: pathlib.Path) -> None:
    """Draw the figures of `lens`."""
    content, target = _load(folder / "lens.json"), folder / "figures"
    with _name(folder / "lens.json"):
        lens.draw_layers(target / "layers.png", content["layers"])
        lens.draw_overlap(target / "overlap.png", content["shares"], content["rows"])
        meta, drawn = content["meta"], content["drawn"]
        _, asked = find_pictures(None, meta["pictures"], meta["held_out"])
        lens.draw_maps(target / "maps.png", [picture for picture, _ in asked[: len(drawn)]], drawn)


def redraw_choice(folder: pathlib.Path) -> None:
    """Draw the figure of `choose-layer`."""
    content, fields = _load(folder / "choice.json"), pareto.Row.__dataclass_fields__
    with _name(folder / "choice.json"):
        rows = [pareto.Row(**{name: row[name] for name in fields}) for row in content["rows"]]
        chosen = [row for row in rows[1:] if row.spec == content["choice"]["spec"]]
        if len(chosen) != 1:
            raise ValueError(f"the choice is {len(chosen)} of its rows")
        choice.save_figure(folder, rows[0], rows[1:], chosen[0])


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
        found = [redraw for pattern, redraw in _KINDS.items() if any(folder.glob(pattern))]
        if given and not found:
            raise ValueError(f"{folder} holds no record, which is one of {', '.join(_KINDS)}")
        for redraw in found:
            redraw(folder)
            print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
