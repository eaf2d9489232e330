"""Tasks of a run and their files; the bundled benchmark is drawn where it is missing."""

import os
import pathlib
import shutil
from collections.abc import Callable

from etils import epath

from ivc_jax import cloud
from ivc_jax.commands.settings import RunConfig, SettingsError
from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.running.survey import TaskEntry

Log = Callable[[str], None]


def choose_tasks(settings: RunConfig, log: Log) -> list[tasks.Task]:
    """Look up the tasks of a run; a broad configuration may skip those without a file."""
    found = tasks.find(settings.tasks)
    if settings.official_prompts or settings.protocol == "released":
        found = [tasks.use_official_prompt(task) for task in found]
    if settings.fixed_relaxed_accuracy:
        found = [tasks.use_fixed_relaxed_accuracy(task) for task in found]
    folder = epath.Path(settings.data_dir or "")
    if settings.skip_missing_files and settings.data_dir and folder.is_dir():
        present = [task for task in found if task.bundled or (folder / task.file_name).exists()]
        if not present:
            names = ", ".join(task.file_name for task in found)
            raise SettingsError(f"--data-dir {folder} holds none of {names}")
        if len(present) < len(found):
            log(f"no file for {', '.join(t.name for t in found if t not in present)}: left out")
        found = present
    return found


def read_bounds(settings: RunConfig, chosen: list[tasks.Task]) -> dict[str, int]:
    """Read bounds on answers: by name of the task, "" for all others."""
    bounds = {}
    for text in settings.max_new_tokens:
        name, _, number = text.rpartition("=")  # "32" and "ChartQA_TEST=32"
        if not number.isdigit() or int(number) < 1:
            raise SettingsError(f"max_new_tokens {text!r} must be N or TASK=N, N at least 1")
        key = tasks.find([name])[0].name if name else ""
        if key and key not in {task.name for task in chosen}:
            raise SettingsError(f"max_new_tokens {text!r}: the run has no task {key}")
        bounds[key] = int(number)
    return bounds


def open_task(settings: RunConfig, task: tasks.Task, out: pathlib.Path, log: Log) -> TaskEntry:
    """Find and open the file of a task.

    Raises:
        SettingsError: there is none; says what it is called and where it comes from.
        TsvError: it cannot be used.
    """
    path = find_file(settings.data_dir, task) if settings.data_dir else None
    if task.bundled and not (path and path.exists()):
        path = _draw_bundled(settings, out) / task.file_name
    if path is None or not path.exists():
        where = f"which {settings.data_dir} lacks" if path else "a folder that holds it"
        raise SettingsError(
            f"task {task.name} needs --data-dir with the file {task.file_name}, {where};"
            f" it comes from {task.source}"
        )
    entry = TaskEntry.open(task, path)
    count = len(entry.file.list_ids(settings.limit))  # which reads the rows once: is it UTF-8?
    if settings.limit is None and (remark := task.remark_on_rows(count)):
        log(remark)
    return entry


def find_file(data_dir: str, task: tasks.Task) -> pathlib.Path:
    """Return where a folder holds the file of a task, if it does; that of a bucket is fetched.

    Raises:
        SettingsError: there is no such folder.
    """
    if not cloud.is_remote(data_dir):
        folder = pathlib.Path(data_dir)
        if not folder.is_dir():
            raise SettingsError(f"--data-dir {folder} is not a folder")
        return folder / task.file_name
    # of buckets, files are copied once and read locally
    path = cloud.find_cache(data_dir, "data") / task.file_name
    cloud.pull_file(f"{data_dir.rstrip('/')}/{task.file_name}", path)
    return path


def _draw_bundled(settings: RunConfig, out: pathlib.Path) -> pathlib.Path:
    """Draw the bundled benchmark into the result folder unless it is there."""
    import digit_scenes.tsv

    # part of the name: other scenes are another folder
    size = f"{digit_scenes.tsv.GRID}x{digit_scenes.tsv.GRID}"
    # Nearly every scene has a question of every task: a larger limit is met by more of them, and
    # these leave the first ones as they are.
    asked = -(-(settings.limit or 0) // len(settings.data_seeds))
    num_scenes = max(settings.num_scenes, asked)
    drawn = (size, settings.data_split, num_scenes, *settings.data_seeds)
    folder = out / "data" / "-".join(map(str, ("digit_scenes", *drawn)))
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        digit_scenes.tsv.write(draft, num_scenes, settings.data_seeds, settings.data_split)
        # renamed when complete: an interrupted run must not leave half a benchmark behind
        try:
            draft.rename(folder)
        except OSError:  # another process of the run was faster
            shutil.rmtree(draft)
    return folder
