"""Evaluate pruning methods on benchmarks: records, tables, figures and a report.

    ivc-jax run                                 # bundled model and benchmark
    ivc-jax run methods                         # all methods at equal budgets
    ivc-jax run rope                            # an ablation; others: ivc-jax --help
    ivc-jax run --model DIR --data-dir TSVS --tasks RefCOCO_testA \
        --methods dense ivc:keep_ratio=0.5 --out runs/refcoco

In a checkout `python experiments/run.py ...` is the same.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import (
    DataOptions,
    FrameOptions,
    HostOptions,
    ModelOptions,
    RunOptions,
    SeveralHosts,
    Tables,
    load_plugins,
    override,
)
from ivc_jax.commands.progress import show_progress
from ivc_jax.commands.settings import RunConfig, load_config


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Evaluate pruning methods on benchmarks.

    Writes records/*.jsonl, results.json, report.md, report.html and figures/*.png into the result
    folder. An interrupted run goes on where it stopped when the same command is given again.

    Attributes:
        config: one of those that `--help` of the program lists, or a path to a file like those.
        tables: write the tables of the report as files of these formats too.
        traceback: show where an error came from.
    """

    config: Annotated[tyro.conf.Positional[str], option("CONFIG")] = "default"
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = dataclasses.field(default_factory=ModelOptions)
    video: tyro.conf.OmitArgPrefixes[FrameOptions] = dataclasses.field(default_factory=FrameOptions)
    data: tyro.conf.OmitArgPrefixes[DataOptions] = dataclasses.field(default_factory=DataOptions)
    run: tyro.conf.OmitArgPrefixes[RunOptions] = dataclasses.field(default_factory=RunOptions)
    hosts: SeveralHosts = dataclasses.field(default_factory=HostOptions)
    tables: Tables = None
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = SCRIPT) -> int:
    """Run from the command line; return the exit code."""
    return run_command(
        Arguments, _run, arguments, program, config="default", width=160, resumes=True
    )


def _run(arguments: Arguments, command: str, console: Console) -> None:
    config = load_config(arguments.config)
    settings = override(config, arguments.model, arguments.video, arguments.data, arguments.run)
    formats = arguments.tables or ()
    evaluate(settings, arguments.run, arguments.hosts, command, console, formats=formats)


def evaluate(
    settings: RunConfig,
    run: RunOptions,
    hosts: HostOptions,
    command: str,
    console: Console,
    choose: Callable[[RunConfig], RunConfig] = lambda settings: settings,
    describe: Callable[[Any], dict[str, Any]] = lambda session: {},
    formats: Sequence[str] = (),
) -> None:
    """Evaluate, then write tables, figures and report.

    Args:
        settings: what to run.
        run: whether to go on with earlier records, and to keep compiled programs.
        hosts: other processes of the run.
        command: as given, for the report.
        console: to print to.
        choose: changes settings before anything is opened.
        describe: adds to the `meta` of the results what only the open session knows.
        formats: of the files that the report's tables become besides.
    """
    # Imported late, so that a wrong option or --help does not wait for it.
    from ivc_jax.commands import session as sessions
    from ivc_jax.commands.compile_cache import use_compile_cache
    from ivc_jax.commands.devices import join
    from ivc_jax.commands.merge import finish

    start = time.monotonic()
    load_plugins(run.plugin)
    joined = (hosts.coordinator, hosts.num_processes, hosts.process_id)
    console = join(console, hosts.distributed, *joined)
    use_compile_cache(not run.no_compile_cache)
    settings = choose(settings)
    with contextlib.ExitStack() as stack:
        with show_progress(console) as progress:
            session = sessions.open_session(settings, not run.no_resume, console.print)
            stack.callback(session.close)
            meta = sessions.evaluate(session, progress)
        seconds = round(time.monotonic() - start, 1)
        meta = dataclasses.replace(meta, command=command, wall_seconds=seconds, **describe(session))
        finish(session.folder, session.mirror, meta, console, formats)
