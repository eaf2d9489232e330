"""Measure the paper's grounding and VQA tables and print them beside the published numbers.

    ivc-jax paper --model Qwen/Qwen2.5-VL-7B-Instruct --data-dir TSVS
    ivc-jax paper --model DIR --data-dir TSVS --tables grounding \
        --methods dense fastv:keep_ratio=0.5 ivc:keep_ratio=0.5 --limit 200 --out runs/paper-200

Rows, columns and published numbers are in ivc_jax/studies/paper. Sets whose file the data
folder lacks are left out and shown as "-". Writes paper.md, paper.html and paper.json
beside the usual report; an interrupted run goes on where it stopped when the same command is given
again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from ivc_jax.commands import run
from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import (
    HostOptions,
    ModelOptions,
    RunOptions,
    SeveralHosts,
    override,
)
from ivc_jax.commands.settings import RunConfig, SettingsError, load_config

_CONFIG = "paper"


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Questions and pictures.

    Attributes:
        tables: grounding (RefCOCO, RefCOCO+, RefCOCOg) and vqa (nine sets).
        data_dir: folder of the TSV files; sets without a file are left out.
        limit: rows of each set.
    """

    tables: tuple[Literal["grounding", "vqa"], ...] = ("grounding", "vqa")
    data_dir: Annotated[str | None, option("DIR", "none, and it is needed")] = None
    limit: Annotated[int | None, option("N", "all")] = None


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure the paper's grounding and VQA tables.

    Attributes:
        traceback: show where an error came from.
    """

    model: tyro.conf.OmitArgPrefixes[ModelOptions] = dataclasses.field(default_factory=ModelOptions)
    data: tyro.conf.OmitArgPrefixes[DataOptions] = dataclasses.field(default_factory=DataOptions)
    run: tyro.conf.OmitArgPrefixes[RunOptions] = dataclasses.field(default_factory=RunOptions)
    hosts: SeveralHosts = dataclasses.field(default_factory=HostOptions)
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} paper") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program, config=_CONFIG, width=200, resumes=True)


def _run(arguments: Arguments, command: str, console: Console) -> None:
    """Choose the sets, evaluate, and write the tables and the usual report."""
    tables = arguments.data.tables
    settings = override(load_config(_CONFIG), arguments.model, arguments.data, arguments.run)

    def choose(settings: RunConfig) -> RunConfig:
        return dataclasses.replace(settings, tasks=find_sets(settings, tables))

    def shown(session: Any) -> dict[str, Any]:
        methods = {entry.spec: entry.method for entry in session.plan.methods}
        return {"paper": describe(session.answerer.model.config, methods, tables)}

    run.evaluate(settings, arguments.run, arguments.hosts, command, console, choose, shown)


def find_sets(settings: RunConfig, tables: Sequence[str]) -> tuple[str, ...]:
    """List the tasks of the tables that the data folder has a file of.

    For Qwen2.5-VL, which is scored in the frame of its resized images either way, a file in that
    frame (RefCOCO_testA_for_qwen25vl) stands in for a missing one. The checkpoint is looked at
    only if that decides.

    Raises:
        SettingsError: no table or no folder is named, or the folder has none of the files.
    """
    from etils import epath

    from ivc_jax.evals.benchmarks.tasks import REFCOCO, RESIZED_SUFFIX, TASKS
    from ivc_jax.studies.paper.published import TABLES

    sets = [set_ for table in TABLES if table in tables for set_ in TABLES[table]]
    if not sets:
        raise SettingsError(f"tables is empty: name at least one of {', '.join(TABLES)}")
    files = ", ".join(TASKS[set_].file_name for set_ in sets)
    if not settings.data_dir:
        raise SettingsError(f"the paper's tables need --data-dir with any of {files}")
    folder = epath.Path(settings.data_dir)

    def has_file(name: str) -> bool:
        return (folder / TASKS[name].file_name).exists()

    found = {set_: set_ for set_ in sets if has_file(set_)}  # set -> task
    resized = {set_: f"{set_}{RESIZED_SUFFIX}" for set_ in sets if set_ in REFCOCO}
    # only where the file in the original frame is missing
    resized = {s: name for s, name in resized.items() if s not in found and has_file(name)}
    if resized and _takes_resized_frame(settings):
        found |= resized
    if not found:
        raise SettingsError(f"--data-dir {folder} holds none of {files}")
    return tuple(found[set_] for set_ in sets if set_ in found)


def _takes_resized_frame(settings: RunConfig) -> bool:
    from ivc_jax.model import find_folder, read_config

    return read_config(find_folder(settings.model)).family == "qwen2_5_vl"


def describe(config: Any, methods: Mapping[str, Any], tables: Sequence[str]) -> dict[str, Any]:
    """Say what the tables show, for `Meta.paper` (see `tables.py`).

    A method is a row of the paper if both are the same once the model's layers are filled in.

    Args:
        config: `ModelConfig` of the checkpoint.
        methods: by specification as recorded.
    """
    from ivc_jax.methods import MethodError, parse
    from ivc_jax.methods import describe as written
    from ivc_jax.studies.paper.published import PUBLISHED, ROWS, TABLES, find

    published = find(PUBLISHED, config)
    # with layers filled in, so that equal settings are equal
    resolved = {spec: method.resolve(config) for spec, method in methods.items()}
    rows = {}
    for label, spec in ROWS.items():
        try:
            row = parse(spec).resolve(config)
        except MethodError:  # the model is too shallow for it
            continue
        rows |= {spec: label for spec, method in resolved.items() if _drop_seed(method) == row}
    return {
        "model": published.model if published else None,
        "tables": [table for table in TABLES if table in tables],
        "rows": rows,
        "resolved": {spec: written(m, config.released) for spec, m in resolved.items()},
    }


def _drop_seed(method: Any) -> Any:
    """Leave out the run's seed: no row of the paper draws lots."""
    return dataclasses.replace(method, seed=0) if hasattr(method, "seed") else method
