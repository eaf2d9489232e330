"""Train CoViPAL's pruning module for a frozen model, in two stages.

    ivc-jax covipal-train                      # bundled model, scenes of the bundled benchmark
    ivc-jax covipal-train --model DIR --data mix.tsv --out runs/covipal-7b
    ivc-jax run --model DIR --methods covipal:weights=runs/covipal-7b,keep_ratio=0.25

Files are those of a task, or any with columns index, image, question and answer. Without one,
scenes of training digits are drawn. An interrupted run goes on where it stopped when the same
command is given again, and ends with the same bytes. Writes module.safetensors, README.md (its
card), log.jsonl and Orbax checkpoints.
"""

import dataclasses
import pathlib
import shutil
from typing import Annotated, Any

import tyro
from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import WeightOptions
from ivc_jax.commands.settings import RunConfig, SettingsError
from ivc_jax.module_sizes import Sizes
from ivc_jax.studies.covipal.settings import Training

_LINES = 50  # steps from line to line


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Questions, pictures and answers.

    Attributes:
        data: TSV files.
        tasks: of the bundled benchmark, drawn where no file is given.
        scenes: how many are drawn.
        scene_seed: of these.
        limit: rows of each file.
    """

    data: Annotated[tuple[str, ...] | None, option("FILE ...", "none")] = None
    tasks: Annotated[tuple[str, ...] | None, option("NAME ...", "all")] = None
    scenes: Annotated[int, option("N")] = 400
    scene_seed: Annotated[int, option("N")] = 17
    limit: Annotated[int | None, option("N", "all")] = None


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where the run is kept.

    Attributes:
        out: result folder.
        save_every: steps from checkpoint to checkpoint.
        export_to: a safetensors file that the module is copied to, its card beside it as .md.
        no_compile_cache: do not keep compiled programs for later runs.
    """

    out: Annotated[str, option("DIR")] = "runs/covipal"
    save_every: Annotated[int, option("N")] = 50
    export_to: Annotated[str | None, option("FILE", "none")] = None
    no_compile_cache: bool = False


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train CoViPAL's pruning module for a frozen model, in two stages.

    Attributes:
        traceback: show where an error came from.
    """

    model: tyro.conf.OmitArgPrefixes[WeightOptions] = dataclasses.field(
        default_factory=WeightOptions
    )
    data: tyro.conf.OmitArgPrefixes[DataOptions] = DataOptions()
    module: tyro.conf.OmitArgPrefixes[Sizes] = Sizes()
    training: tyro.conf.OmitArgPrefixes[Training] = Training()
    run: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions()
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} covipal-train") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program, resumes=True)


def _run(arguments: Arguments, command: str, console: Console) -> None:
    """Open files, load the model, train and write."""
    # Imported late, so that a wrong option or --help does not wait for JAX.
    from ivc_jax.commands.compile_cache import use_compile_cache
    from ivc_jax.commands.origin import find_model
    from ivc_jax.evals.running.answerer import fingerprint
    from ivc_jax.studies.covipal.data import Rows
    from ivc_jax.studies.covipal.train import train

    if arguments.run.save_every < 1:
        raise SettingsError(f"save_every must be at least 1, got {arguments.run.save_every}")
    out, options = pathlib.Path(arguments.run.out), arguments.model
    out.mkdir(parents=True, exist_ok=True)
    entries = _open_files(arguments.data, out)
    use_compile_cache(not arguments.run.no_compile_cache)
    checkpoint = find_model(options.model)
    model, processor = options.load(checkpoint)
    pixels = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
    rows = Rows.find(model, processor, entries, arguments.data.limit)
    for failure in rows.failures:
        console.print(f"left out: {failure}", markup=False)
    console.print(f"{len(rows.places)} rows of {len(entries)} files", markup=False)

    def report(stage: str, done: int, total: int) -> None:
        if done % _LINES == 0 or done == total:
            console.print(f"{stage}: {done} of {total} steps", markup=False)

    path = train(
        *(rows, arguments.module, arguments.training, out),
        command=command,
        origin={"checkpoint": fingerprint(checkpoint), "dtype": str(model.dtype), **pixels},
        save_every=arguments.run.save_every,
        report=report,
    )
    if arguments.run.export_to:
        target = pathlib.Path(arguments.run.export_to)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.with_name("README.md"), target.with_suffix(".md"))
        path = shutil.copyfile(path, target)
    console.print(f"module: {path}", markup=False)


def _open_files(options: DataOptions, out: pathlib.Path) -> list[Any]:
    """Open the files that are given, or those of the bundled tasks, which are drawn."""
    from ivc_jax.commands.data import open_task
    from ivc_jax.evals.benchmarks import tasks
    from ivc_jax.studies.covipal.data import open_file

    if options.data:
        if options.tasks:
            raise SettingsError("data and tasks exclude each other: files name their tasks")
        return [open_file(pathlib.Path(name)) for name in options.data]
    settings = RunConfig(
        methods=("dense",),
        tasks=options.tasks or tasks.BUNDLED,
        num_scenes=options.scenes,
        data_seeds=(options.scene_seed,),
        data_split="calibration",
        limit=options.limit,
    )
    return [
        open_task(settings, task, out, lambda line: None) for task in tasks.find(settings.tasks)
    ]
