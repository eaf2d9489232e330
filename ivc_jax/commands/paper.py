"""Measure the paper's grounding and VQA tables and print them beside the published numbers.

    python experiments/run.py paper --model Qwen/Qwen2.5-VL-7B-Instruct --data-dir TSVS
    python experiments/run.py paper --model DIR --data-dir TSVS --tables grounding \
        --methods dense fastv:keep_ratio=0.5 ivc:keep_ratio=0.5 --limit 200 --out runs/paper-200

Rows, columns and published numbers are in ivc_jax/studies/paper. Sets whose file the data
folder lacks are left out and shown as "-". Writes paper.md and paper.json beside the usual report;
an interrupted run goes on where it stopped when the same command is given again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from ivc_jax.commands import run
from ivc_jax.commands.cli import option, run_command
from ivc_jax.commands.settings import RunConfig, SettingsError

_Hidden = tyro.conf.Suppress


@dataclasses.dataclass(frozen=True)
class Arguments(run.Arguments):
    """Measure the paper's grounding and VQA tables.

    Attributes:
        model: checkpoint folder or hub name; default: the paper's Qwen2.5-VL-7B, from the hub.
        methods: default: dense and the paper's rows that there are methods for.
        data_dir: folder of the TSV files; sets without a file are left out.
        tables: grounding (RefCOCO, RefCOCO+, RefCOCOg) and vqa (nine sets).
    """

    config: Annotated[str, _Hidden] = "paper"
    tasks: Annotated[tuple[str, ...] | None, _Hidden] = None
    model: Annotated[str | None, option("PATH")] = None
    methods: Annotated[tuple[str, ...] | None, option("SPEC ...")] = None
    data_dir: Annotated[str | None, option("DIR")] = None
    tables: tuple[Literal["grounding", "vqa"], ...] = ("grounding", "vqa")


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, "paper", width=200, resumes=True)


def _run(arguments: Arguments, command: str, console: Console) -> None:
    """Choose the sets, evaluate, and write the tables and the usual report."""

    def choose(settings: RunConfig) -> RunConfig:
        # Imported late, so that a wrong option or --help does not wait for JAX.
        from ivc_jax.model import find_folder, read_config

        family = read_config(find_folder(settings.model)).family
        sets = sets_with_a_file(settings, arguments.tables, family)
        return dataclasses.replace(settings, tasks=sets)

    def shown(session: Any) -> dict[str, Any]:
        methods = {entry.spec: entry.method for entry in session.plan.methods}
        return {"paper": describe(session.answerer.model.config, methods, arguments.tables)}

    run.evaluate(arguments, command, console, choose, shown)


def sets_with_a_file(settings: RunConfig, tables: Sequence[str], family: str) -> tuple[str, ...]:
    """List the tasks of the tables that the data folder has a file of.

    For Qwen2.5-VL, which is scored in the frame of its resized images either way, a file in that
    frame (RefCOCO_testA_for_qwen25vl) stands in for a missing one.

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
    found = []
    for set_ in sets:
        resized = family == "qwen2_5_vl" and set_ in REFCOCO
        names = (set_, f"{set_}{RESIZED_SUFFIX}") if resized else (set_,)
        found += [name for name in names if (folder / TASKS[name].file_name).exists()][:1]
    if not found:
        raise SettingsError(f"--data-dir {folder} holds none of {files}")
    return tuple(found)


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
    resolved = {spec: method.resolve(config) for spec, method in methods.items()}
    rows = {}
    for label, spec in ROWS.items():
        try:
            row = parse(spec).resolve(config)
        except MethodError:  # the model is too shallow for it
            continue
        rows |= {spec: label for spec, method in resolved.items() if _without_seed(method) == row}
    return {
        "model": published.model if published else None,
        "tables": [table for table in TABLES if table in tables],
        "rows": rows,
        "resolved": {spec: written(method) for spec, method in resolved.items()},
    }


def _without_seed(method: Any) -> Any:
    """Leave out the run's seed: no row of the paper draws lots."""
    return dataclasses.replace(method, seed=0) if hasattr(method, "seed") else method
