"""Open what a run needs, complain before any long work, and evaluate."""

import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax

import ivc_jax
from experiments.settings import RunConfig, SettingsError
from experiments.studies.study import Study
from ivc_jax.engine.plan import make_plan
from ivc_jax.engine.prefill import compiled_programs
from ivc_jax.evals import runner, tasks
from ivc_jax.evals.answerer import ModelAnswerer, fingerprint
from ivc_jax.evals.records import RunFolder
from ivc_jax.evals.tsv import TsvFile
from ivc_jax.inputs.bucket import Buckets

_ROOT = pathlib.Path(__file__).resolve().parents[1]

Log = Callable[[str], None]


@dataclasses.dataclass
class Session:
    """Everything open for one run."""

    settings: RunConfig
    folder: RunFolder
    plan: runner.RunPlan
    answerer: ModelAnswerer
    unreachable: dict[str, str]

    def close(self) -> None:
        """Close the files."""
        for entry in self.plan.tasks:
            entry.file.close()
        self.folder.close()


def use_compile_cache(enabled: bool) -> None:
    """Keep compiled programs in the user's cache folder, small ones too."""
    if not enabled:
        return
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "ivc_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def open_session(settings: RunConfig, resume: bool, log: Log) -> Session:
    """Check settings, folder, data and model, cheapest first.

    Args:
        resume: go on with records that the folder holds; otherwise set them aside.

    Raises:
        ValueError: something cannot be used; the message is one line that names it.
    """
    chosen = _chosen_tasks(settings, log)
    methods = _methods(settings)
    path = settings.model or str(_ROOT / "digit_scenes" / "checkpoint")
    folder = RunFolder(settings.out, jax.process_index())
    try:
        entries = [_open_task(settings, task, folder.path) for task in chosen]
        log(f"loading {_shown(path)}")
        model, processor = ivc_jax.load(path, dtype=settings.dtype)
        reached, unreachable = _method_entries(methods, model, settings.skip_unreachable)
        for reason in unreachable.values():
            log(f"left out: {reason}")
        plan = runner.RunPlan(
            tasks=entries,
            methods=reached,
            batch_size=settings.batch_size,
            model=_shown(path),
            seed=settings.seed,
            commit=commit(),
            limit=settings.limit,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        if not resume and (moved := folder.set_aside()):
            log(f"earlier records moved to {moved}")
        folder.claim(
            _identity(settings, path, model),
            {entry.task.name: entry.file.fingerprint() for entry in entries},
        )
    except BaseException:
        folder.close()
        raise
    log(f"{_device()}, {_dtype(model)}, jax {jax.__version__}")
    answerer = ModelAnswerer(model, processor, _buckets(settings), settings.share_tower)
    return Session(settings, folder, plan, answerer, unreachable)


def evaluate(session: Session, progress: runner.Progress) -> dict[str, Any]:
    """Run what is missing and return the `meta` of the results."""
    plan, model = session.plan, session.answerer.model
    runner.run(plan, session.answerer, session.folder, progress)
    rope = model.config.decoder.rope
    return {
        "model": plan.model,
        "device": _device(),
        "dtype": _dtype(model),
        "jax_version": jax.__version__,
        "commit": plan.commit,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "shared_tower": session.answerer.share_tower,
        "limit": plan.limit,
        "compiled_programs": compiled_programs(),
        "tasks": [entry.task.name for entry in plan.tasks],
        "methods": [entry.spec for entry in plan.methods],
        "unreachable": session.unreachable,
        "studies": [
            dataclasses.asdict(_as_recorded(s, plan.seed)) for s in session.settings.studies
        ],
        "files": {entry.task.name: str(entry.file.path) for entry in plan.tasks},
        "rope": {"head_dim": rope.head_dim, "theta": rope.theta},
        "image_start": _image_start(session),
    }


def _chosen_tasks(settings: RunConfig, log: Log) -> list[tasks.Task]:
    """Look up the tasks of a run; a broad configuration may skip those without a file."""
    found = tasks.find(settings.tasks)
    if settings.official_prompts:
        found = [tasks.with_official_prompt(task) for task in found]
    folder = pathlib.Path(settings.data_dir or "")
    if settings.skip_missing_files and settings.data_dir and folder.is_dir():
        present = [task for task in found if task.bundled or (folder / task.file_name).exists()]
        if not present:
            names = ", ".join(task.file_name for task in found)
            raise SettingsError(f"--data-dir {folder} holds none of {names}")
        if len(present) < len(found):
            log(f"no file for {', '.join(t.name for t in found if t not in present)}: left out")
        found = present
    return found


def _methods(settings: RunConfig) -> list[Any]:
    """Parse the specifications, give the run's seed to those that name none, drop doubles."""
    found = []
    for spec in settings.methods:
        method = _parsed(spec, settings.seed)
        if method not in found:
            found.append(method)
    return found


def _as_recorded(study: Study, seed: int) -> Study:
    """Write the specifications of a study as records do."""

    def written(spec: str) -> str:
        return ivc_jax.methods.describe(_parsed(spec, seed))

    variants = tuple(dataclasses.replace(v, spec=written(v.spec)) for v in study.variants)
    return dataclasses.replace(study, reference=written(study.reference), variants=variants)


def _parsed(spec: str, seed: int) -> Any:
    method = ivc_jax.methods.parse(spec)
    return method if "seed=" in spec else _seeded(method, seed)


def _seeded(method: Any, seed: int) -> Any:
    if hasattr(method, "host"):
        return dataclasses.replace(method, host=_seeded(method.host, seed))
    return dataclasses.replace(method, seed=seed) if hasattr(method, "seed") else method


def _method_entries(
    methods: list[Any], model: Any, skip_unreachable: bool
) -> tuple[list[runner.MethodEntry], dict[str, str]]:
    """Check the methods against the model; the keep ratio of a method is that of its last cut.

    Returns:
        The methods that can run, and why others cannot reach their budget.
    """
    entries, unreachable = [], {}
    for method in methods:
        spec = ivc_jax.methods.describe(method)
        try:
            resolved = method.resolve(model.config)
        except ivc_jax.methods.BudgetError as error:
            if not skip_unreachable:
                raise
            unreachable[spec] = str(error)
            continue
        make_plan(model.config.decoder.num_layers, resolved)
        keep_ratio = resolved.stages[-1].keep_ratio if resolved.stages else 1.0
        entries.append(runner.MethodEntry(spec, keep_ratio, method))
    return entries, unreachable


def _open_task(settings: RunConfig, task: tasks.Task, out: pathlib.Path) -> runner.TaskEntry:
    folder = pathlib.Path(settings.data_dir) if settings.data_dir else None
    path = folder / task.file_name if folder else None
    if folder and not folder.is_dir():
        raise SettingsError(f"--data-dir {folder} is not a folder")
    if task.bundled and not (path and path.exists()):
        path = _bundled_data(settings, out) / task.file_name
    if path is None:
        raise SettingsError(f"task {task.name} needs --data-dir, a folder with {task.file_name}")
    return runner.TaskEntry(task, TsvFile(path, task.scoring.columns))


def _bundled_data(settings: RunConfig, out: pathlib.Path) -> pathlib.Path:
    """Draw the bundled benchmark into the result folder unless it is there."""
    import digit_scenes.tsv

    drawn = (settings.data_split, settings.num_scenes, *settings.data_seeds)
    folder = out / "data" / "-".join(map(str, ("digit_scenes", *drawn)))
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        digit_scenes.tsv.write(draft, settings.num_scenes, settings.data_seeds, settings.data_split)
        # renamed when complete: an interrupted run must not leave half a benchmark behind
        draft.rename(folder)
    return folder


def _identity(settings: RunConfig, path: str, model: Any) -> dict[str, Any]:
    """List what makes records comparable, scores and times alike."""
    # Named only where they differ from the usual: folders of earlier runs do not know them.
    unusual = {"official prompts": settings.official_prompts, "shared tower": settings.share_tower}
    return {
        **{name: True for name, chosen in unusual.items() if chosen},
        "model": fingerprint(path),
        "seed": settings.seed,
        "dtype": _dtype(model),
        "device": _device(),
        "batch size": settings.batch_size,
        "prompts version": tasks.PROMPTS_VERSION,
        "buckets": [list(settings.visual_buckets), list(settings.patch_buckets)],
        "processes": jax.process_count(),
    }


def _buckets(settings: RunConfig) -> Buckets:
    usual = Buckets()
    return Buckets(
        visual=tuple(sorted({*usual.visual, *settings.visual_buckets})),
        patches=tuple(sorted({*usual.patches, *settings.patch_buckets})),
    )


def _image_start(session: Session) -> int | None:
    """Return the position id at which the first image of the first readable example starts."""
    entry = session.plan.tasks[0]
    for position in range(len(entry.file.ids(session.plan.limit))):
        try:
            row = entry.file.read(position)
            prompt = entry.task.prompt(row.cells, session.answerer.family)
            host = session.answerer.pad([prompt], [row.images])
        except ValueError:
            continue
        return int(host.layout.positions[0, 0, host.layout.visual_index[0, 0]])
    return None


def _dtype(model: Any) -> str:
    return str(jax.tree.leaves(model.params["decoder"])[0].dtype)


def _device() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _shown(path: str) -> str:
    """Name a model in records: relative to the project if it lies there."""
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return path
    folder = folder.resolve()
    return str(folder.relative_to(_ROOT) if folder.is_relative_to(_ROOT) else folder)


@functools.cache
def commit() -> str:
    """Return the commit of this checkout, marked "-dirty" if files differ from it."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
