"""Read visual tokens as words: find a model's sinks and dead tokens, and see who keeps them.

    ivc-jax lens                                          # bundled model, its own scenes
    ivc-jax lens --model DIR --images PICTURES --table DIR/embedlens.json

Writes table.json, which `--methods embedlens:table=FILE` reads, lens.json, report.md and
figures/*.png. Every number of the report is one of lens.json.
"""

import dataclasses
import pathlib
import time
from typing import Annotated

import tyro
from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import PictureOptions, WeightOptions
from ivc_jax.commands.pictures import find_pictures
from ivc_jax.studies.lens.calibrate import Thresholds

_SHOWN, _DRAWN = 12, 6  # words in the table, pictures in the figure


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What is compared, and where results go.

    Attributes:
        methods: whose kept tokens are looked at.
        budget: of these, where none are named.
        table: where the table goes besides the result folder.
        out: result folder.
    """

    methods: Annotated[tuple[str, ...] | None, option("SPEC ...", "all that prune")] = None
    budget: Annotated[float, option("SHARE")] = 0.5
    table: Annotated[str | None, option("FILE", "nowhere")] = None
    out: Annotated[str, option("DIR")] = "runs/lens"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Read visual tokens as words: find a model's sinks and dead tokens, and see who keeps them.

    Attributes:
        traceback: show where an error came from.
    """

    model: tyro.conf.OmitArgPrefixes[WeightOptions] = dataclasses.field(
        default_factory=WeightOptions
    )
    pictures: tyro.conf.OmitArgPrefixes[PictureOptions] = dataclasses.field(
        default_factory=PictureOptions
    )
    limits: tyro.conf.OmitArgPrefixes[Thresholds] = dataclasses.field(default_factory=Thresholds)
    run: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions()
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} lens") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program)


def _run(arguments: Arguments, command: str, console: Console) -> None:
    """Check, calibrate, measure and write."""
    # Imported late, so that a wrong option or --help does not wait for JAX.
    import ivc_jax
    from ivc_jax.commands.compile_cache import use_compile_cache
    from ivc_jax.commands.origin import find_commit, find_model, name_model
    from ivc_jax.methods.fields import check_keep_ratio
    from ivc_jax.studies.lens import report

    start, options = time.monotonic(), arguments.pictures
    check_keep_ratio(arguments.run.budget, "budget")
    options.check()
    arguments.limits.check()
    for spec in arguments.run.methods or ():
        ivc_jax.methods.parse(spec)  # a typing error shows before the model is read
    folder = pathlib.Path(arguments.run.out)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    calibration, held_out = find_pictures(options.images, options.limit, options.held_out)
    use_compile_cache()
    path = find_model(arguments.model.model)
    console.print(f"loading {path}", markup=False)
    model, processor = arguments.model.load(path)
    with console.status("calibrating") as status:
        result = report.measure(
            model, processor, calibration, held_out, arguments.limits,
            methods=arguments.run.methods, budget=arguments.run.budget,
            batch_size=options.batch_size, progress=lambda text: status.update(text),
        )  # fmt: skip
    result.meta |= {
        "command": command,
        "commit": find_commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": name_model(path),
        "source": "pictures of a folder" if options.images else "scenes of training digits",
        "seconds": round(time.monotonic() - start, 1),
    }
    report.write(folder, result, [picture for picture, _ in held_out[:_DRAWN]], _SHOWN)
    if arguments.run.table is not None:
        report.write_table(pathlib.Path(arguments.run.table).expanduser(), result)
    for line in report.summarise(result):
        console.print(line, markup=False)
    console.print(f"report: {folder / 'report.md'}", markup=False)
