"""A session: everything open for one run, and the evaluation within it."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

import ivc_jax
from ivc_jax.commands.data import choose_tasks, open_task, read_bounds
from ivc_jax.commands.devices import choose_mesh, name_devices
from ivc_jax.commands.origin import find_commit, find_model, name_model
from ivc_jax.commands.settings import RunConfig, SettingsError
from ivc_jax.config import ModelConfig
from ivc_jax.engine.decode import run_decode
from ivc_jax.engine.modules import with_modules
from ivc_jax.engine.plan import make_plan
from ivc_jax.engine.prefill import count_programs
from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.benchmarks.released import find_bounds
from ivc_jax.evals.running import runner
from ivc_jax.evals.running.answerer import (
    ModelAnswerer,
    asks_for_objects,
    asks_for_relevance,
    can_share_pictures,
    fingerprint,
)
from ivc_jax.evals.running.mirror import Mirror
from ivc_jax.evals.running.recording import MethodEntry, RunIdentity
from ivc_jax.evals.running.records import MANIFEST, RECORDS, RunFolder
from ivc_jax.evals.running.survey import OBJECTS, TaskEntry
from ivc_jax.evals.schema import Meta
from ivc_jax.inputs.layout import arrange
from ivc_jax.inputs.processor import Processor
from ivc_jax.inputs.resize import SmartResize
from ivc_jax.model import Model
from ivc_jax.parallel.processes import wait_for_all
from ivc_jax.studies.study import Study

Log = Callable[[str], None]


@dataclasses.dataclass
class Session:
    """Everything open for one run."""

    settings: RunConfig
    folder: RunFolder
    mirror: Mirror
    plan: runner.RunPlan
    answerer: ModelAnswerer
    unreachable: dict[str, str]

    def close(self) -> None:
        """Close the files."""
        for entry in self.plan.tasks:
            entry.file.close()
        self.folder.close()


def open_session(settings: RunConfig, resume: bool, log: Log) -> Session:
    """Check settings, folder, data and model, cheapest first.

    Args:
        resume: go on with records that the folder holds; otherwise set them aside.

    Raises:
        ValueError: something cannot be used; the message is one line that names it.
    """
    chosen = choose_tasks(settings, log)
    methods = parse_methods(settings)
    bounds = read_bounds(settings, chosen)
    mesh = choose_mesh(settings)
    path = find_model(settings.model)
    # a bucket is worked on in a local folder and mirrored
    mirror = Mirror(settings.out, jax.process_index())
    folder = RunFolder(mirror.local, jax.process_index())
    try:
        # files before weights: what is quick to fail comes first
        entries = [open_task(settings, task, folder.path, log) for task in chosen]
        model_id = fingerprint(path)
        if resume:
            mirror.pull([])
            folder.refuse_other_model(model_id, name_model(path))
        log(f"loading {name_model(path)}")
        model, processor = _load(settings, path, mesh)
        entries = [_apply_protocol(settings, entry, model.config) for entry in entries]
        reached, unreachable = _check_methods(methods, model, settings.skip_unreachable)
        for reason in unreachable.values():
            log(f"left out: {reason}")
        entries = _read_objects(settings, entries, reached, log)
        plan = runner.RunPlan(
            tasks=entries,
            methods=reached,
            batch_size=settings.batch_size,
            identity=RunIdentity(name_model(path), settings.seed, find_commit()),
            limit=settings.limit,
            buckets=settings.buckets,
            max_new_tokens=bounds,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        if resume:
            mirror.pull([f"{plan.name_records(task)}.jsonl" for task in chosen])
        else:
            _set_aside(folder, log)
        folder.claim(
            _identify(settings, model_id, model),
            {entry.task.name: entry.file.fingerprint() for entry in entries},
            name_model(path),
        )
    except BaseException:
        folder.close()
        raise
    log(f"{name_devices()}, {model.dtype!s}, jax {jax.__version__}")
    answerer = _make_answerer(settings, reached, model, processor)
    return Session(settings, folder, mirror, plan, answerer, unreachable)


def _make_answerer(
    settings: RunConfig, methods: list[MethodEntry], model: Model, processor: Processor | None
) -> ModelAnswerer:
    """Say what the batches of these methods share and hold."""
    # Where times of a prefill leave the tower out, they do not depend on who shares a picture.
    resolved = [entry.method.resolve(model.config) for entry in methods]
    share = settings.share_tower and can_share_pictures(resolved)
    asked = any(entry.with_objects for entry in methods)
    # Several processes would have to rate the same frames at a time.
    rates = any(map(asks_for_relevance, resolved)) and jax.process_count() == 1
    return ModelAnswerer(model, processor, settings.share_tower, share, asked, rates)


def _load(settings: RunConfig, path: str, mesh: Mesh | None) -> tuple[Model, Processor | None]:
    names = ("min_pixels", "max_pixels", "max_tiles", "pad", "video")
    shown = {name: getattr(settings, name) for name in names}
    return ivc_jax.load(path, settings.dtype, mesh, settings.weights, **shown)


def _apply_protocol(settings: RunConfig, entry: TaskEntry, config: ModelConfig) -> TaskEntry:
    """Treat the rows of a task by the protocol of the run; bounds that are given stay."""
    released = settings.protocol == "released"
    given = (settings.min_pixels, settings.max_pixels, settings.max_tiles) != (None, None, None)
    bounds = None
    if released and not given:
        bounds = find_bounds(config, entry.task.group, entry.task.name)
    return dataclasses.replace(entry, released=released, bounds=bounds)


def _set_aside(folder: RunFolder, log: Log) -> None:
    """Move earlier records away; the first process does it for all that share the folder."""
    if jax.process_index() == 0 and (moved := folder.set_aside()):
        log(f"earlier records moved to {moved}")
    wait_for_all("earlier records are set aside")
    if jax.process_index():
        folder.set_aside()


def evaluate(session: Session, progress: runner.Progress) -> Meta:
    """Run what is missing and return the `meta` of the results."""
    plan, model = session.plan, session.answerer.model
    # files that this process writes
    own = [f"{RECORDS}/{plan.name_records(entry.task)}.jsonl" for entry in plan.tasks]
    own += [MANIFEST] if plan.process_index == 0 else []

    def advance(task: str, done: int, total: int) -> None:
        progress(task, done, total)
        session.mirror.push(own)  # which looks at the clock itself

    statistics = runner.run(plan, session.answerer, session.folder, advance)
    session.mirror.push(own, now=True)  # the last records, however young
    rope = model.config.decoder.rope
    return Meta(
        model=plan.identity.model,
        device=name_devices(),
        dtype=str(model.dtype),
        weights=model.weights,
        jax_version=jax.__version__,
        commit=plan.identity.commit,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seed=plan.identity.seed,
        batch_size=plan.batch_size,
        shared_tower=session.answerer.share_tower,
        protocol=session.settings.protocol,
        pixel_bounds=_list_pixel_bounds(session),
        limit=plan.limit,
        compiled_programs=count_programs(),
        compiled_decodes=run_decode._cache_size(),
        statistics=statistics,
        mesh=dict(model.mesh.shape) if model.mesh else None,
        processes=plan.process_count,
        tasks=[entry.task.name for entry in plan.tasks],
        methods=[entry.spec for entry in plan.methods],
        unreachable=session.unreachable,
        studies=[
            dataclasses.asdict(_write_study(s, plan.identity.seed))
            for s in session.settings.studies
        ],
        files={entry.task.name: str(entry.file.path) for entry in plan.tasks},
        rope={"head_dim": rope.head_dim, "theta": rope.theta},
        image_start=_find_image_start(session),
    )


def _list_pixel_bounds(session: Session) -> dict[str, list[int]]:
    """List the least and the largest area of a picture by task, where there are such bounds."""
    rules = {
        entry.task.name: session.answerer.make_reader(entry.bounds).pictures
        for entry in session.plan.tasks
    }
    return {
        name: [rule.min_pixels, rule.max_pixels]
        for name, rule in rules.items()
        if isinstance(rule, SmartResize)
    }


def parse_methods(settings: RunConfig) -> list[Any]:
    """Parse the specifications, give the run's seed to those that name none, drop doubles."""
    found = []  # not a set: records and tables keep the order
    for spec in settings.methods:
        method = _parse(spec, settings.seed)
        if method not in found:
            found.append(method)
    return found


def _write_study(study: Study, seed: int) -> Study:
    """Write the specifications of a study as records do."""

    def written(spec: str) -> str:
        return ivc_jax.methods.describe(_parse(spec, seed))

    variants = tuple(dataclasses.replace(v, spec=written(v.spec)) for v in study.variants)
    return dataclasses.replace(study, reference=written(study.reference), variants=variants)


def _parse(spec: str, seed: int) -> Any:
    method = ivc_jax.methods.parse(spec)
    return method if "seed=" in spec else _seed(method, seed)


def _seed(method: Any, seed: int) -> Any:
    changes = {"seed": seed} if hasattr(method, "seed") else {}
    if getattr(getattr(method, "coordinates", None), "rule", None) == "random":
        changes["random_seed"] = seed
    if hasattr(method, "host"):  # a modifier: the method within draws the lots
        changes["host"] = _seed(method.host, seed)
    return dataclasses.replace(method, **changes) if changes else method


def _check_methods(
    methods: list[Any], model: Any, skip_unreachable: bool
) -> tuple[list[MethodEntry], dict[str, str]]:
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
        with_modules(model, resolved)
        # dense has no stage
        keep_ratio = resolved.stages[-1].keep_ratio if resolved.stages else 1.0
        entries.append(MethodEntry(spec, keep_ratio, method, asks_for_objects(resolved)))
    return entries, unreachable


def _read_objects(
    settings: RunConfig, entries: list[TaskEntry], methods: list[MethodEntry], log: Log
) -> list[TaskEntry]:
    """Let tasks say where objects are if a method asks; see `RunConfig.skip_without_objects`.

    Raises:
        SettingsError: a task does not know, and its methods may not be left out.
    """
    asking = [method.spec for method in methods if method.with_objects]
    if not asking:
        return entries
    for entry in entries:
        if not entry.knows_objects:
            lack = f"{entry.file.path.name} has no column {OBJECTS!r}"
            if not settings.skip_without_objects:
                raise SettingsError(
                    f"{lack}, which {asking[0]} needs; add it, or leave out the task or the method"
                )
            log(f"left out: {lack}, which {len(asking)} methods need, such as {asking[0]}")
    return [dataclasses.replace(entry, objects=entry.knows_objects) for entry in entries]


def _identify(settings: RunConfig, model_id: str, model: Any) -> dict[str, Any]:
    """List what makes records comparable, scores and times alike."""
    # Named only where they differ from the usual: folders of earlier runs do not know them.
    unusual = {
        "official prompts": settings.official_prompts or None,
        "fixed relaxed accuracy": settings.fixed_relaxed_accuracy or None,
        "shared tower": settings.share_tower or None,
        "mesh": settings.mesh,
        "weights": settings.weights,
        "max new tokens": list(settings.max_new_tokens) or None,
        "protocol": settings.protocol if settings.protocol != "own" else None,
        "min pixels": settings.min_pixels,
        "max pixels": settings.max_pixels,
        "max tiles": settings.max_tiles,
        "pad": settings.pad,
        "video": settings.video.list_given() or None,
    }
    return {
        **{name: value for name, value in unusual.items() if value is not None},
        "model": model_id,
        "seed": settings.seed,
        "dtype": str(model.dtype),
        "device": name_devices(),
        "batch size": settings.batch_size,
        "prompts version": tasks.PROMPTS_VERSION,
        "buckets": settings.buckets,
        "processes": jax.process_count(),
    }


def _find_image_start(session: Session) -> int | None:
    """Return the position id at which the first image of the first readable example starts."""
    entry = session.plan.tasks[0]
    for position in range(len(entry.file.list_ids(session.plan.limit))):
        try:
            row = entry.read(position)
            messages = entry.write_messages(row, session.answerer.family)
            sample = session.answerer.process(messages, entry.bounds)
        except ValueError:
            continue
        (arranged,) = arrange(sample, session.answerer.model.config)  # a sample
        if arranged.segments:
            # time axis; all three start alike
            return int(arranged.positions[0, arranged.visual_slot[0]])
    return None
