"""What a report says of the treatment of pictures and cells."""

from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.schema import Meta
from ivc_jax.reports.labels import shorten_task

_RELEASED = (
    "Pictures and cells are treated as in the released evaluation: pictures are saved as JPEG of "
    "quality 75 first, without alpha, and options and hints that pandas takes for missing (None, "
    "NA, N/A, null) are dropped."
)
_OWN = (
    "Pictures are read as the files hold them, and None, NA, N/A and null are options. The "
    "released evaluation saves pictures as JPEG first, has pixel bounds of its own by model and "
    "task, drops such options, and cuts the last character of Qwen2-VL's expressions: "
    "`--protocol released`."
)


def describe_protocol(meta: Meta) -> str:
    """Say how pictures and cells were treated; "" where only the bundled benchmark ran."""
    if all(task in TASKS and TASKS[task].bundled for task in meta.tasks):
        return ""
    bounds = write_pixel_bounds(meta)
    pixels = f" A resized picture has {bounds} pixels." if bounds else ""
    return (_RELEASED if meta.protocol == "released" else _OWN) + pixels


def write_pixel_bounds(meta: Meta) -> str:
    """Write the bounds on the area of pictures, with the tasks that each are for if they differ."""
    tasks: dict[tuple[int, ...], list[str]] = {}
    for task, bounds in meta.pixel_bounds.items():
        tasks.setdefault(tuple(bounds), []).append(shorten_task(task))
    written = {f"{low:,} to {high:,}": names for (low, high), names in tasks.items()}
    if len(written) < 2:
        return "".join(written)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in written.items())
