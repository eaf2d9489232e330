"""Choose the layer and the fractions of IVC-Prune on calibration examples, under a budget.

    ivc-jax choose-layer                       # bundled model and benchmark
    ivc-jax choose-layer --model DIR --data-dir TSVS --tasks RefCOCO_testA \
        --layers 12 14 16 18 20 --limit 500 --out runs/choose-7b

Two rounds: every layer at the usual fraction, then the best layers at all fractions. The bundled
benchmark is asked about scenes of training digits, so that its test split stays unseen. Writes
records/*.jsonl, choice.json, report.md and figures/pareto.png; an interrupted run goes on where it
stopped when the same command is given again.
"""

import dataclasses
import time
from typing import Annotated, Any

import tyro
from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import WeightOptions
from ivc_jax.commands.progress import show_progress
from ivc_jax.commands.settings import RunConfig, SettingsError

_PROBE = 0.1  # fraction of the first round: what the paper uses
_BEST_LAYERS = 2  # that the second round looks at

Grid = dict[str, tuple[int, float]]  # specification -> (layer, fraction)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Questions and pictures.

    Attributes:
        tasks: such as RefCOCO_testA.
        data_dir: folder of the TSV files; the bundled benchmark is drawn where it is missing.
        limit: rows of each task.
    """

    tasks: Annotated[
        tuple[str, ...] | None, option("NAME ...", "grounding, with the bundled model")
    ] = None
    data_dir: Annotated[str | None, option("DIR", "none")] = None
    limit: Annotated[int, option("N")] = 90


@dataclasses.dataclass(frozen=True)
class ChoiceOptions:
    """What there is to choose from, and how.

    Attributes:
        budget: mean over layers of the share of visual tokens in the cache.
        layers: to choose from.
        fractions: shares of IVC tokens by cosine and by sine each, to choose from.
        tolerance: points of retention to give up for a cheaper setting.
    """

    budget: Annotated[float, option("SHARE")] = 0.5
    layers: Annotated[tuple[int, ...] | None, option("LAYER ...", "all of the model")] = None
    fractions: Annotated[tuple[float, ...], option("SHARE ...")] = (0.05, 0.1, 0.15)
    tolerance: Annotated[float, option("POINTS")] = 0.0


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How it runs, and where its results go.

    Attributes:
        out: result folder.
        batch_size: examples that run together.
        no_resume: set earlier records in the result folder aside and start over.
        no_compile_cache: do not keep compiled programs for later runs.
    """

    out: Annotated[str, option("DIR")] = "runs/choose-layer"
    batch_size: Annotated[int, option("B")] = 16
    no_resume: bool = False
    no_compile_cache: bool = False


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Choose the layer and the fractions of IVC-Prune on calibration examples.

    Attributes:
        traceback: show where an error came from.
    """

    model: tyro.conf.OmitArgPrefixes[WeightOptions] = dataclasses.field(
        default_factory=WeightOptions
    )
    data: tyro.conf.OmitArgPrefixes[DataOptions] = DataOptions()
    choice: tyro.conf.OmitArgPrefixes[ChoiceOptions] = ChoiceOptions()
    run: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions()
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} choose-layer") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program, resumes=True)


def _run(arguments: Arguments, command: str, console: Console) -> None:
    """Check, measure both rounds, choose, print and write."""
    # Imported late, so that a wrong option or --help does not wait for JAX.
    from ivc_jax.commands import session as sessions
    from ivc_jax.commands.compile_cache import use_compile_cache
    from ivc_jax.studies.calibration import pareto, report

    start = time.monotonic()
    settings = _make_settings(arguments)
    grid = _make_grid(arguments)  # before the weights are read: a wrong layer shows at once
    # The session is opened for the whole grid; each round runs a part of it.
    settings = dataclasses.replace(settings, methods=("dense", *grid))
    use_compile_cache(not arguments.run.no_compile_cache)
    session = sessions.open_session(settings, resume=not arguments.run.no_resume, log=console.print)
    try:
        meta, calibration = _measure(session, grid, _choose_probe(arguments), console)
    finally:
        session.close()
    chosen = pareto.choose(calibration.rows, arguments.choice.tolerance)
    meta |= {
        "command": command,
        "wall_seconds": round(time.monotonic() - start, 1),
        "budget": arguments.choice.budget,
        "layers": sorted({layer for layer, _ in grid.values()}),
        "fractions": sorted({fraction for _, fraction in grid.values()}),
        "probe_fraction": _choose_probe(arguments),
        "tolerance": arguments.choice.tolerance,
    }
    result = report.collect(meta, calibration, chosen)
    report.show(console, result)
    report.write(session.folder.path, result, calibration, chosen)
    console.print(f"report: {session.folder.path / 'report.md'}", markup=False)


def _make_settings(arguments: Arguments) -> RunConfig:
    """Check what needs no model and say what to run, all but the methods."""
    from ivc_jax.evals.benchmarks import tasks
    from ivc_jax.methods.coordinates import choose_scale
    from ivc_jax.methods.fields import check_keep_ratio

    names = arguments.data.tasks or (() if arguments.model.model else ("grounding",))
    if not names:
        raise SettingsError("tasks: name at least one for a model that is not the bundled one")
    tasks.find(names)
    check_keep_ratio(arguments.choice.budget, "budget")
    # two shares, scaled down with small budgets, must fit into what is kept
    largest = arguments.choice.budget / (2 * choose_scale(arguments.choice.budget))
    for fraction in arguments.choice.fractions:
        if not 0 <= fraction <= largest:
            raise SettingsError(
                f"fractions must be in [0, {largest:g}], got {fraction:g}: cosine and sine take "
                f"one each, and the budget is {arguments.choice.budget:g}"
            )
    for name in ("layers", "fractions"):
        if getattr(arguments.choice, name) == ():
            raise SettingsError(f"{name} is empty: name at least one")
    if not arguments.choice.tolerance >= 0:
        raise SettingsError(f"tolerance must not be negative, got {arguments.choice.tolerance:g}")
    return RunConfig(
        methods=("dense",),
        tasks=names,
        model=arguments.model.model,
        data_dir=arguments.data.data_dir,
        limit=arguments.data.limit,
        batch_size=arguments.run.batch_size,
        out=arguments.run.out,
        dtype=arguments.model.dtype,
        min_pixels=arguments.model.min_pixels,
        max_pixels=arguments.model.max_pixels,
        data_seeds=(0,),
        data_split="calibration",
        share_tower=True,  # all settings see the same tower
    )


def _make_grid(arguments: Arguments) -> Grid:
    """Name every setting; only the sizes of the model are read for it."""
    import ivc_jax
    from ivc_jax.commands.origin import find_model
    from ivc_jax.model import find_folder, read_config

    path = find_model(arguments.model.model)
    config = read_config(find_folder(path))
    usual, depth = config.released, config.decoder.num_layers  # blocks of the decoder
    if depth < 2:
        raise SettingsError(f"{path} has a single block: there is no layer to choose")
    # from 1: the method asks the block before the cut for values
    layers = sorted(set(arguments.choice.layers or range(1, depth)))
    for layer in layers:
        if not 1 <= layer < depth:
            raise SettingsError(
                f"layers must be in [1, {depth - 1}] for a model of {depth} blocks, got {layer}"
            )
    grid = {}
    for layer in layers:
        for fraction in sorted(set(arguments.choice.fractions)):
            method = ivc_jax.methods.IVCPrune(
                layer=layer,
                # a key in records: it says what is not usual
                cos_fraction=None if fraction == usual.cos_fraction else fraction,
                sin_fraction=None if fraction == usual.sin_fraction else fraction,
                budget=arguments.choice.budget,
            )
            grid[ivc_jax.methods.describe(method)] = (layer, fraction)
    return grid


def _choose_probe(arguments: Arguments) -> float:
    """Return the fraction of the first round: of those to choose from, the nearest to the usual."""
    return min(arguments.choice.fractions, key=lambda fraction: (abs(fraction - _PROBE), fraction))


def _measure(session: Any, grid: Grid, probe: float, console: Console) -> tuple[dict, Any]:
    """Run both rounds; return the `meta` of the results and the calibration."""
    from ivc_jax.studies.calibration import pareto

    chosen = {spec: setting for spec, setting in grid.items() if setting[1] == probe}
    console.print(f"first round: {len(chosen)} layers at fraction {probe:g}", markup=False)
    meta, calibration = _run_round(session, chosen, console)
    layers = sorted(pareto.find_best_layers(calibration.rows, _BEST_LAYERS))
    more = {spec for spec, (layer, _) in grid.items() if layer in layers} - chosen.keys()
    if not more:
        return meta | {"second_round": []}, calibration
    console.print(
        f"second round: {len(more)} other fractions at layers {' and '.join(map(str, layers))}",
        markup=False,
    )
    chosen = {spec: grid[spec] for spec in grid if spec in chosen or spec in more}
    meta, calibration = _run_round(session, chosen, console)
    return meta | {"second_round": layers}, calibration


def _run_round(session: Any, chosen: Grid, console: Console) -> tuple[dict, Any]:
    """Run what is missing of dense and these settings."""
    from ivc_jax.commands import session as sessions
    from ivc_jax.evals.running import summary
    from ivc_jax.evals.running.records import read_all
    from ivc_jax.studies.calibration import pareto

    specs = {pareto.DENSE, *chosen}
    methods = [entry for entry in session.plan.methods if entry.spec in specs]
    part = dataclasses.replace(session, plan=dataclasses.replace(session.plan, methods=methods))
    with show_progress(console) as progress:
        meta = sessions.evaluate(part, progress).to_dict()
    # The folder may hold records of other settings, tasks and rows.
    records = [
        record
        for record in read_all(session.folder.path)
        if record.method in specs and record.task in meta["tasks"] and record.row <= meta["limit"]
    ]
    # examples are the same under every method: those of dense are counted
    counted = [record for record in records if record.method == pareto.DENSE]
    meta |= {
        "n": {task: sum(r.task == task and not r.failed for r in counted)
              for task in meta["tasks"]},
        "splits": sorted({record.split for record in counted}),
        "commits": sorted({record.commit for record in records}),
        "failed_rows": summary.count_failed(records),
    }  # fmt: skip
    return meta, pareto.Calibration(records, chosen, meta["tasks"])
