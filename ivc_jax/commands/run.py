"""Evaluate pruning methods on benchmarks: records, tables, figures and a report.

    python experiments/run.py                                 # bundled model and benchmark
    python experiments/run.py methods                         # all methods at equal budgets
    python experiments/run.py rope                            # an ablation; others in configs/
    python experiments/run.py --model DIR --data-dir TSVS --tasks RefCOCO_testA \
        --methods dense ivc:keep_ratio=0.5 --out runs/refcoco
    python experiments/run.py inspect photo.jpg --model DIR --prompt "Where is the cat?"
    python experiments/run.py choose-layer --budget 0.5       # IVC-Prune's layer and fractions
    python experiments/run.py sets                            # IVC sets of real grids, no model
    python experiments/run.py paper --model DIR --data-dir TSVS         # the paper's tables
    python experiments/run.py refcoco --annotations DIR --images DIR --out TSVS
    python experiments/run.py plan --model DIR --topology v5e:2x4 --mesh data=2,model=4
    python experiments/run.py merge runs/host0 runs/host1 --out runs/all
"""

import dataclasses
import importlib
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from rich.console import Console

from ivc_jax.commands import console as display
from ivc_jax.commands.cli import option, run_command
from ivc_jax.commands.settings import RunConfig, load_config

_COMMANDS = {
    "inspect": "inspect",
    "choose-layer": "choose_layer",
    "sets": "sets",
    "refcoco": "refcoco",
    "merge": "merge",
    "paper": "paper",
    "plan": "plan",
    "report": "report",
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Evaluate pruning methods on benchmarks.

    Writes records/*.jsonl, results.json, report.md, report.html and figures/*.png into the result
    folder. An interrupted run goes on where it stopped when the same command is given again.

    Attributes:
        config: a name from experiments/configs, or a path to a file like those.
        model: checkpoint folder or hub name; default: the bundled checkpoint.
        methods: such as dense, "ivc:layer=3,keep_ratio=0.5" or fastv:budget=0.5.
        tasks: such as grounding or RefCOCO_testA.
        data_dir: folder of the TSV files; the bundled benchmark is drawn where it is missing.
        limit: rows of each task.
        batch_size: examples that run together, on all devices.
        buckets: most padded shapes; which ones, the data decide.
        max_new_tokens: bounds on answers: N for all tasks, TASK=N for one.
        seed: of the methods that draw lots.
        out: result folder.
        dtype: of the weights; default: float32 on CPU, bfloat16 elsewhere.
        weights: int8 keeps the decoder's matrices in 8 bits.
        mesh: devices, such as data=8,model=4; default: one, or data over all of several processes.
        distributed: join the other processes of a TPU pod or a cluster, which are found by
            themselves.
        coordinator: address:port of process 0, where they are not found.
        num_processes: how many processes there are, with a coordinator.
        process_id: number of this one, with a coordinator.
        no_resume: set earlier records in the result folder aside and start over.
        no_compile_cache: do not keep compiled programs for later runs.
        traceback: show where an error came from.
    """

    config: Annotated[tyro.conf.Positional[str], option("CONFIG")] = "default"
    model: Annotated[str | None, option("PATH")] = None
    methods: Annotated[tuple[str, ...] | None, option("SPEC ...")] = None
    tasks: Annotated[tuple[str, ...] | None, option("NAME ...")] = None
    data_dir: Annotated[str | None, option("DIR")] = None
    limit: Annotated[int | None, option("N")] = None
    batch_size: Annotated[int | None, option("B")] = None
    buckets: Annotated[int | None, option("N")] = None
    max_new_tokens: Annotated[tuple[str, ...] | None, option("N | TASK=N ...")] = None
    seed: Annotated[int | None, option("N")] = None
    out: Annotated[str | None, option("DIR")] = None
    dtype: Annotated[str | None, option("TYPE")] = None
    weights: Annotated[str | None, option("TYPE")] = None
    mesh: Annotated[str | None, option("data=N,model=N")] = None
    distributed: bool = False
    coordinator: Annotated[str | None, option("ADDRESS:PORT")] = None
    num_processes: Annotated[int | None, option("N")] = None
    process_id: Annotated[int | None, option("N")] = None
    no_resume: bool = False
    no_compile_cache: bool = False
    traceback: bool = False

    def settings(self) -> RunConfig:
        """Return the named configuration with the fields given on the command line."""
        config = load_config(self.config)
        names = {field.name for field in dataclasses.fields(RunConfig)}
        given = {
            name: value for name, value in vars(self).items() if name in names and value is not None
        }
        return dataclasses.replace(config, **given)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in _COMMANDS:
        # Imported late, as all that waits for JAX or matplotlib.
        return importlib.import_module(f"ivc_jax.commands.{_COMMANDS[given[0]]}").main(given[1:])
    return run_command(Arguments, evaluate, given, width=160, resumes=True)


def evaluate(
    arguments: Arguments,
    command: str,
    console: Console,
    choose: Callable[[RunConfig], RunConfig] = lambda settings: settings,
    describe: Callable[[Any], dict[str, Any]] = lambda session: {},
) -> None:
    """Evaluate, then write tables, figures and report.

    Args:
        arguments: of the command line.
        command: as given, for the report.
        console: to print to.
        choose: changes settings before anything is opened.
        describe: adds to the `meta` of the results what only the open session knows.
    """
    # Imported late, so that a wrong option or --help does not wait for JAX.
    from ivc_jax.commands import evaluation, merge
    from ivc_jax.commands.devices import join, use_compile_cache

    start = time.monotonic()
    settings = arguments.settings()
    joined = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    console = join(console, arguments.distributed, *joined)
    use_compile_cache(not arguments.no_compile_cache)
    settings = choose(settings)
    session = evaluation.open_session(settings, resume=not arguments.no_resume, log=console.print)
    try:
        with display.progress_bar(console) as progress:
            meta = evaluation.evaluate(session, progress)
        seconds = round(time.monotonic() - start, 1)
        meta = dataclasses.replace(meta, command=command, wall_seconds=seconds, **describe(session))
        merge.finish(session.folder, session.mirror, meta, console)
    finally:
        session.close()
