"""Search the settings of VFlowOpt for a model and a budget, without labels.

    ivc-jax vflowopt-search --budget 0.25                # bundled model, its own scenes
    ivc-jax vflowopt-search --model DIR --images PICTURES --budget 0.25 --out runs/search

Writes preset.json, which `--methods vflowopt:preset=FILE` reads, search.json and trials.jsonl, one
line a trial. An interrupted search goes on where it stopped when the same command is given again,
and ends where an undisturbed one does.
"""

import dataclasses
import json
import pathlib
import time
from typing import Annotated, Any

import tyro
from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import PictureOptions, WeightOptions, check_counts
from ivc_jax.commands.pictures import collate_all, find_pictures

_RANGE = option("LOW HIGH")

Trial = tuple[float, dict[str, float]]  # a score, and what it is of


@dataclasses.dataclass(frozen=True)
class AskedOptions(PictureOptions):
    """Pictures.

    Attributes:
        question: what pictures of a folder are asked.
    """

    question: Annotated[str | None, option("TEXT", "what is in the picture")] = None


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """What is searched, and how.

    Attributes:
        budget: mean over layers of the share of visual tokens.
        layers: first block behind each of the three cuts.
        trials: in all.
        starts: the first ones are drawn at random.
        seed: of all that is drawn.
        first: range of the share kept at the first cut, R1.
        second: of the share of those kept at the second, R2.
        threshold: of the calibration queries, t.
        cell: of the side of a recycling cell, a.
        alpha: of the weight of the pixel entropy.
        out: result folder.
    """

    budget: Annotated[float, option("SHARE")] = 0.25
    layers: Annotated[tuple[int, int, int] | None, option("LAYER ...", "the method's")] = None
    trials: Annotated[int, option("N")] = 77
    starts: Annotated[int, option("N")] = 27
    seed: Annotated[int, option("N")] = 42
    first: Annotated[
        tuple[float, float] | None, option("LOW HIGH", "1 to 1.5 times the budget")
    ] = None
    second: Annotated[tuple[float, float], _RANGE] = (0.533, 1.0)
    threshold: Annotated[tuple[float, float], _RANGE] = (0.0, 50.0)
    cell: Annotated[tuple[float, float], _RANGE] = (3.0, 24.0)
    alpha: Annotated[tuple[float, float], _RANGE] = (-1.0, 1.0)
    out: Annotated[str, option("DIR")] = "runs/vflowopt-search"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Search the settings of VFlowOpt for a model and a budget, without labels.

    Attributes:
        traceback: show where an error came from.
    """

    model: tyro.conf.OmitArgPrefixes[WeightOptions] = dataclasses.field(
        default_factory=WeightOptions
    )
    pictures: tyro.conf.OmitArgPrefixes[AskedOptions] = AskedOptions(limit=30, batch_size=10)
    search: tyro.conf.OmitArgPrefixes[SearchOptions] = SearchOptions()
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} vflowopt-search") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program, resumes=True)


def _run(arguments: Arguments, command: str, console: Console) -> None:
    """Check, search, compare with the default, and write."""
    # Imported late, so that a wrong option or --help does not wait for JAX.
    from ivc_jax.commands.compile_cache import use_compile_cache
    from ivc_jax.commands.origin import find_commit, find_model, name_model
    from ivc_jax.evals.running.answerer import fingerprint
    from ivc_jax.studies import vflowopt

    start, options, pictures = time.monotonic(), arguments.search, arguments.pictures
    ranges = _check(arguments, vflowopt)
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    asked = find_pictures(
        pictures.images, pictures.limit, pictures.held_out, pictures.question
    )  # to search on, and others
    use_compile_cache()
    path = find_model(arguments.model.model)
    console.print(f"loading {path}", markup=False)
    model, processor = arguments.model.load(path)
    objective, others = (
        vflowopt.Objective(
            model,
            collate_all(model, processor, part, pictures.batch_size),
            options.budget,
            options.layers,
        )
        for part in asked
    )
    about = {
        "model": fingerprint(path),
        "dtype": str(model.dtype),
        **{name: getattr(options, name) for name in ("budget", "layers", "starts")},
        **{name: getattr(pictures, name) for name in ("images", "question", "limit")},
        **{name: getattr(arguments.model, name) for name in ("min_pixels", "max_pixels")},
    }
    trials = _search(objective, ranges, options, folder / "trials.jsonl", about, console)
    record = {
        "meta": {
            "command": command,
            "commit": find_commit(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": name_model(path),
            "pictures": len(asked[0]),
            "held_out": len(asked[1]),
        },
        "ranges": ranges,
        **_compare(objective, others, trials, options),
    }
    record["meta"]["seconds"] = round(time.monotonic() - start, 1)
    _write(folder, record, objective.make(_find_best(trials)[1]), console)


def _search(
    objective: Any,
    ranges: Any,
    options: SearchOptions,
    journal: pathlib.Path,
    about: dict[str, Any],
    console: Console,
) -> list[Trial]:
    """Run what is missing; return every trial."""
    from ivc_jax.studies import vflowopt

    trials = []
    with console.status("searching") as status:
        for number, numbers, value in vflowopt.search(
            objective, ranges, journal, trials=options.trials, starts=options.starts,
            seed=options.seed, about=about,
        ):  # fmt: skip
            trials.append((value, numbers))
            best = _find_best(trials)[0]
            status.update(f"trial {number + 1} of {options.trials}: {value:.4f}, best {best:.4f}")
    if objective.make(_find_best(trials)[1]) is None:
        raise vflowopt.SearchError(
            f"no trial reaches a budget of {options.budget:g} with cuts before blocks"
            f" {objective.layers}; give other ranges or layers"
        )
    return trials


def _find_best(trials: list[Trial]) -> Trial:
    """Return the first of the best."""
    return max(trials, key=lambda trial: trial[0])


def _compare(
    objective: Any, others: Any, trials: list[Trial], options: SearchOptions
) -> dict[str, Any]:
    """Score the best settings and the default ones, on what was searched and on the others."""
    import ivc_jax
    from ivc_jax.methods import describe

    usual = ivc_jax.methods.VFlowOpt(budget=options.budget, layers=options.layers)
    methods = {
        "best": objective.make(_find_best(trials)[1]),
        "default": usual.resolve(objective.model.config),
    }
    found = {
        name: {
            "searched": objective.score(method),
            "held_out": others.score(method),
            "spec": describe(method),
        }
        for name, method in methods.items()
    }
    return {
        "budget": options.budget,
        "seed": options.seed,
        "trials": len(trials),
        "infeasible": sum(objective.make(numbers) is None for _, numbers in trials),
        **found,
        "values": [round(value, 6) for value, _ in trials],
    }


def _write(folder: pathlib.Path, record: dict[str, Any], method: Any, console: Console) -> None:
    """Write record and preset, and say what was found."""
    from ivc_jax.evals.running.records import write_atomically
    from ivc_jax.studies import vflowopt

    fields = vflowopt.write_preset(method)
    preset = {"method": "vflowopt", "fields": fields, "meta": record["meta"]}
    for name, content in (("search", record), ("preset", preset)):
        write_atomically(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    for name in ("best", "default"):
        found = record[name]
        console.print(
            f"{name}: {found['searched']:.4f}, held out {found['held_out']:.4f}  {found['spec']}",
            markup=False,
        )
    console.print(f"preset: {folder / 'preset.json'}", markup=False)


def _check(arguments: Arguments, vflowopt: Any) -> dict[str, tuple[float, float]]:
    """Refuse what cannot be searched; return the ranges."""
    from ivc_jax.methods.fields import check_keep_ratio

    options = arguments.search
    check_keep_ratio(options.budget, "budget")
    check_counts(options, "trials", "starts")
    arguments.pictures.check()
    names = ("first", "second", "threshold", "cell", "alpha")
    ranges = vflowopt.Ranges(**{name: getattr(options, name) for name in names})
    return ranges.resolve(options.budget)
