"""Short names of methods and tasks, and scores as publications write them."""

from collections.abc import Iterable, Mapping, Sequence

from ivc_jax.evals.benchmarks.tasks import BUNDLED_PREFIX, TASKS
from ivc_jax.evals.schema import Row

PERCENT = 100.0
_SIZES = ("keep_ratio", "budget")
SEEDS = ("seed", "random_seed")  # fields that tell draws of one method apart


def shorten_task(task: str) -> str:
    """Drop the name of the bundled benchmark."""
    return task.removeprefix(BUNDLED_PREFIX)


def label_methods(specs: Sequence[str], without: Sequence[str] = ()) -> dict[str, str]:
    """Name methods without keep ratio and budget, and without fields that all of a name share.

    "ivc:layer=3,keep_ratio=0.5" is "ivc" unless another "ivc" has another layer.

    Args:
        without: further fields to leave out, such as `SEEDS`.
    """
    fields = {spec: _read_fields(spec, (*_SIZES, *without)) for spec in specs}
    labels = {}
    for spec in specs:
        name = spec.partition(":")[0]  # "ivc" of "ivc:layer=3,keep_ratio=0.5"
        # only methods of one name are told apart by their fields
        peers = [fields[other] for other in specs if other.partition(":")[0] == name]
        telling = [  # fields in which methods of this name differ
            f"{key}={value}"
            for key, value in fields[spec].items()
            if any(peer.get(key) != value for peer in peers)
        ]
        labels[spec] = f"{name}:{','.join(telling)}" if telling else name
    return labels


def read_budget(spec: str) -> float | None:
    """Return the budget that a specification names."""
    text = _read_fields(spec).get("budget")
    return float(text) if text else None


def read_size(spec: str, keep_ratio: float) -> tuple[str, float]:
    """Return what methods are compared at: their budget, or their keep ratio if they have none."""
    budget = read_budget(spec)
    return ("keep_ratio", keep_ratio) if budget is None else ("budget", budget)


def _read_fields(spec: str, without: Sequence[str] = ()) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in spec.partition(":")[2].split(",") if pair)
    return {key: value for key, _, value in pairs if key not in without}


def name_with_size(labels: Mapping[str, str], rows: Iterable[Row]) -> dict[str, str]:
    """Name methods with their budget or keep ratio, for tables without a column of it."""
    sizes = {row.method: read_size(row.method, row.keep_ratio)[1] for row in rows}
    return {
        method: labels[method] if method == "dense" else f"{labels[method]}, {size:g}"
        for method, size in sizes.items()
    }


def find_points(task: str) -> float:
    """Return what a score of 1 is called: 100 for percent, as for averages, or 2800 for MME."""
    return TASKS[task].scoring.points if task in TASKS else PERCENT


def write_heading(task: str) -> str:
    """Name a column of scores, and their unit where it is not percent."""
    points = find_points(task)
    return shorten_task(task) if points == PERCENT else f"{shorten_task(task)} (of {points:g})"


def write_points(task: str, score: float, digits: int = 1) -> str:
    """Write a score from 0 to 1 in percent with that many digits, or in whole points."""
    points = find_points(task)
    return f"{points * score:.{digits if points == PERCENT else 0}f}"


def list_scored_by_unit(tasks: Iterable[str]) -> list[str]:
    """List the tasks whose score is no mean over rows (MME, POPE, MMBench, HallusionBench).

    Comparisons that resample rows average the scores of rows instead.
    """
    return [task for task in tasks if task in TASKS and TASKS[task].scoring.unit is not None]


def write_rows_note(tasks: Iterable[str]) -> str:
    """Say of which tasks a comparison shows another score than the table of scores does."""
    named = ", ".join(map(shorten_task, list_scored_by_unit(tasks)))
    note = "this table averages the scores of rows, which is not their own score as under Scores."
    return f" Of {named} {note}" if named else ""
